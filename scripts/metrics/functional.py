"""How well anomaly maps agree with labels, from `pixel_counts`.

Bins take the place of samples. A score within a bin is not told from another: metrics that need the order of all pixels
have an error, which `binning_errors` bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import digamma
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from .histograms import ANOMALOUS, NORMAL, REGIONS


def pixel_metrics(
    counts: np.ndarray, edges: np.ndarray, thresholds: Mapping[str, float], fpr_limit: float = 0.3
) -> dict[str, float]:
    """Metrics of pixels, NaN where one is not defined.

    AUPRO is the mean over regions of the share found, as a function of the false-positive rate of all normal pixels,
    integrated to the limit and divided by it (Bergmann et al., 2021, IJCV 129, section 5). Maximal Dice is that of the
    pooled pixels, over all thresholds.

    Args:
        counts: see `count_pixels`, ``[3,B]``, of one case or summed over cases.
        edges: ``[B]``.
        thresholds: by the name that their metrics end in; edges, or the metrics are those of the next one.
        fpr_limit: false-positive rate to which AUPRO goes.

    Returns:
        ``pixel_auroc``, ``pixel_ap``, ``aupro_<limit>``, ``max_dice`` and its threshold; ``dice``, ``sensitivity``,
        ``precision`` and ``false_positive_rate`` of the pixels that reach each threshold.
    """
    counts, edges = _occupied(counts, edges)
    n_normal, n_anomalous, _ = counts.sum(1)
    values = dict.fromkeys(
        ["pixel_auroc", "pixel_ap", f"aupro_{fpr_limit:g}", "max_dice", "max_dice_threshold"], np.nan
    )
    if n_normal and n_anomalous:
        samples = _samples(counts)
        dice = _dice(counts)
        values.update(
            {
                "pixel_auroc": roc_auc_score(**samples),
                "pixel_ap": average_precision_score(**samples),
                f"aupro_{fpr_limit:g}": _aupro(counts, fpr_limit),
                "max_dice": dice.max(),
                "max_dice_threshold": edges[dice.argmax()],
            }
        )
    for name, threshold in thresholds.items():
        false, true, _ = counts[:, np.searchsorted(edges, threshold) :].sum(1)
        values[f"dice_{name}"] = _ratio(2 * true, true + false + n_anomalous) if n_anomalous else np.nan
        values[f"sensitivity_{name}"] = _ratio(true, n_anomalous)
        values[f"precision_{name}"] = _ratio(true, true + false) if n_anomalous else np.nan
        values[f"false_positive_rate_{name}"] = _ratio(false, n_normal)
    return {name: float(value) for name, value in values.items()}


def binning_errors(counts: np.ndarray, fpr_limit: float = 0.3) -> dict[str, float]:
    """By how much at most `pixel_metrics` may differ from metrics of the scores themselves.

    The order of the pixels of a bin is not known. Pairs of a normal and an anomalous one count half in the AUROC, and
    can count between nothing and all. So can areas under the PRO curve; the bin at its limit is taken whole. The
    precision at an anomalous pixel lies between that with all normal pixels of its bin above it and that with none.

    Args:
        counts: see `count_pixels`, ``[3,B]``.
        fpr_limit: see `pixel_metrics`.

    Returns:
        Bounds of ``pixel_auroc``, ``pixel_ap``, ``aupro_<limit>`` and ``max_dice``; empty where these are not defined.
    """
    counts = counts[:, counts.any(0)]
    if not counts[:2].any(1).all():
        return {}
    normal, anomalous, regions = counts / counts.sum(1, keepdims=True)
    rates = _pro_curve(counts)[0][::-1]
    areas = np.where(rates[:-1] <= fpr_limit, normal / 2, (fpr_limit - rates[1:]).clip(min=0)) * regions

    n, a = counts[:2]
    false, true = _reaching(counts)[:2]
    ap = np.sum(anomalous * true / (true + false))
    highest = np.sum(anomalous * true / (true + false - n).clip(min=1))
    # sum over k = 1..a of (t + k) / (t + k + f); t before the bin, f with all of it
    lowest = np.sum(a - false * (digamma(true + false + 1) - digamma(true - a + false + 1))) / a.sum()
    best = 2 * true / (true + false - n + a.sum())
    return {
        "pixel_auroc": float(np.sum(normal * anomalous) / 2),
        "pixel_ap": float(max(min(highest, 1) - ap, ap - lowest)),
        f"aupro_{fpr_limit:g}": float(np.sum(areas) / fpr_limit),
        "max_dice": float(best.max() - _dice(counts).max()),
    }


def case_metrics(rows: Sequence[Mapping[str, float | None]], weights: np.ndarray) -> dict[str, float]:
    """Metrics of whole cases and their lesions, NaN where one is not defined.

    Args:
        rows: of each case ``image_score``, ``is_anomalous`` and what `count_regions` gives; None where not known.
        weights: how often each case counts, ``[len(rows)]``.

    Returns:
        ``image_auroc``, ``image_ap``, ``lesion_sensitivity`` and ``false_regions_per_case``.
    """
    values = dict.fromkeys(["image_auroc", "image_ap", "lesion_sensitivity", "false_regions_per_case"], np.nan)
    names = ("image_score", "is_anomalous", "lesions", "missed_lesions", "false_regions")
    scores, anomalous, *regions = np.array([[row[name] for name in names] for row in rows], float).reshape(-1, 5).T
    known = np.isfinite(anomalous) & (weights > 0)
    if len(np.unique(anomalous[known])) == 2:
        samples = {"y_true": anomalous[known], "y_score": scores[known], "sample_weight": weights[known]}
        values["image_auroc"] = float(roc_auc_score(**samples))
        values["image_ap"] = float(average_precision_score(**samples))
    outlined = np.isfinite(regions[0])
    lesions, missed, false = (float(weights[outlined] @ column[outlined]) for column in regions)
    values["lesion_sensitivity"] = _ratio(lesions - missed, lesions)
    values["false_regions_per_case"] = _ratio(false, float(weights[outlined].sum()))
    return values


def curves(counts: np.ndarray, edges: np.ndarray, n_points: int = 500) -> dict[str, dict[str, list[float]]]:
    """The curves behind the metrics.

    Args:
        counts: see `count_pixels`, ``[3,B]``.
        edges: ``[B]``.
        n_points: at most so many of each, the ends among them.

    Returns:
        ``roc`` (``fpr``, ``tpr``), ``pr`` (``recall``, ``precision``), ``pro`` (``fpr``, ``pro``) and ``dice``
        (``threshold``, ``dice``); without points where there are no normal or no anomalous pixels.
    """
    counts, edges = _occupied(counts, edges)
    empty = np.empty(0)
    found = {"roc": (empty, empty), "pr": (empty, empty), "pro": (empty, empty), "dice": (empty, empty)}
    if counts[:2].any(1).all():
        samples = _samples(counts)
        found["roc"] = roc_curve(**samples, drop_intermediate=False)[:2]
        found["pr"] = precision_recall_curve(**samples)[1::-1]
        found["pro"] = _pro_curve(counts)
        found["dice"] = (edges, _dice(counts))
    axes = {"roc": ("fpr", "tpr"), "pr": ("recall", "precision"), "pro": ("fpr", "pro"), "dice": ("threshold", "dice")}
    return {
        name: {axis: _thinned(points, n_points).tolist() for axis, points in zip(axes[name], curve, strict=True)}
        for name, curve in found.items()
    }


def _occupied(counts: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the bins that are empty."""
    used = counts.any(0)
    return counts[:, used], edges[used]


def _samples(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Bins as weighted samples, for scikit-learn."""
    classes, bins = np.nonzero(counts[:2])
    return {"y_true": classes, "y_score": bins, "sample_weight": counts[classes, bins]}


def _reaching(counts: np.ndarray) -> np.ndarray:
    """Counts ``[3,B]`` in each bin and all above it."""
    return np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]


def _dice(counts: np.ndarray) -> np.ndarray:
    """Dice ``[B]`` of what reaches the lower edge of each bin."""
    false, true = _reaching(counts)[:2]
    return 2 * true / (true + false + counts[ANOMALOUS].sum())


def _pro_curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rates and mean shares of regions found, ``[B + 1]`` each, from no pixel to all."""
    reaching = _reaching(counts)[:, ::-1]
    shares = np.pad(reaching / reaching[:, -1:], ((0, 0), (1, 0)))
    return shares[NORMAL], shares[REGIONS]


def _aupro(counts: np.ndarray, fpr_limit: float) -> float:
    rates, shares = _pro_curve(counts)
    inside = rates <= fpr_limit
    at_limit = np.interp(fpr_limit, rates, shares)
    return auc([*rates[inside], fpr_limit], [*shares[inside], at_limit]) / fpr_limit


def _thinned(points: np.ndarray, n_points: int) -> np.ndarray:
    if len(points) <= n_points:
        return points
    return points[np.linspace(0, len(points) - 1, n_points).round().astype(int)]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan
