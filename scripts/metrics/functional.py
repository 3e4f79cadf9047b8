"""Pixel and case metrics, computed from histograms.

Bins replace samples. Scores within a bin are not distinguished, so metrics that depend on the order of the pixels have
an error, which `binning_errors` bounds.
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
    """Compute metrics of pixels; a metric that is not defined is NaN.

    AUPRO is the per-region overlap, averaged over regions, as a function of the false-positive rate of all normal
    pixels, integrated up to ``fpr_limit`` and divided by it (Bergmann et al., 2021, IJCV 129, section 5). Maximal Dice
    is the Dice coefficient of the pooled pixels, maximised over all thresholds.

    Args:
        counts: histograms ``[3,B]`` of one case or summed over cases, see `count_pixels`.
        edges: lower edges of the bins ``[B]``.
        thresholds: thresholds by the suffix of their metrics; a threshold that is no edge is rounded up to the next.
        fpr_limit: largest false-positive rate of AUPRO.

    Returns:
        ``pixel_auroc``, ``pixel_ap``, ``aupro_<limit>``, ``max_dice`` and its threshold; ``dice``, ``sensitivity``,
        ``precision`` and ``false_positive_rate`` at each threshold.
    """
    counts, edges = _without_empty_bins(counts, edges)
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
    """Bound the differences between `pixel_metrics` and metrics of the unbinned scores.

    The order of the pixels within a bin is unknown. A pair of a normal and an anomalous pixel counts 0.5 in the AUROC;
    the true value is between 0 and 1. The same holds for areas under the PRO curve; the bin at ``fpr_limit`` counts
    whole. The precision at an anomalous pixel is between its values with all and with none of the normal pixels of its
    bin above it.

    Args:
        counts: histograms ``[3,B]``, see `count_pixels`.
        fpr_limit: largest false-positive rate of AUPRO.

    Returns:
        Bounds of ``pixel_auroc``, ``pixel_ap``, ``aupro_<limit>`` and ``max_dice``; empty if these are not defined.
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
    # sum over k = 1..a of (t + k) / (t + k + f); t excludes the bin, f includes it
    lowest = np.sum(a - false * (digamma(true + false + 1) - digamma(true - a + false + 1))) / a.sum()
    best = 2 * true / (true + false - n + a.sum())
    return {
        "pixel_auroc": float(np.sum(normal * anomalous) / 2),
        "pixel_ap": float(max(min(highest, 1) - ap, ap - lowest)),
        f"aupro_{fpr_limit:g}": float(np.sum(areas) / fpr_limit),
        "max_dice": float(best.max() - _dice(counts).max()),
    }


def case_metrics(rows: Sequence[Mapping[str, float | None]], weights: np.ndarray) -> dict[str, float]:
    """Compute metrics of cases and lesions; a metric that is not defined is NaN.

    Args:
        rows: for each case ``image_score``, ``is_anomalous`` and `count_regions`; None for unknown values.
        weights: weight of each case ``[len(rows)]``.

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
    """Compute the curves that the metrics summarise.

    Args:
        counts: histograms ``[3,B]``, see `count_pixels`.
        edges: lower edges of the bins ``[B]``.
        n_points: largest number of points of a curve, including both ends.

    Returns:
        ``roc`` (``fpr``, ``tpr``), ``pr`` (``recall``, ``precision``), ``pro`` (``fpr``, ``pro``) and ``dice``
        (``threshold``, ``dice``); without points if there are no normal or no anomalous pixels.
    """
    counts, edges = _without_empty_bins(counts, edges)
    empty = np.empty(0)
    points_of = {"roc": (empty, empty), "pr": (empty, empty), "pro": (empty, empty), "dice": (empty, empty)}
    if counts[:2].any(1).all():
        samples = _samples(counts)
        points_of["roc"] = roc_curve(**samples, drop_intermediate=False)[:2]
        points_of["pr"] = precision_recall_curve(**samples)[1::-1]
        points_of["pro"] = _pro_curve(counts)
        points_of["dice"] = (edges, _dice(counts))
    axes = {"roc": ("fpr", "tpr"), "pr": ("recall", "precision"), "pro": ("fpr", "pro"), "dice": ("threshold", "dice")}
    return {
        name: {axis: _thinned(points, n_points).tolist() for axis, points in zip(axes[name], curve, strict=True)}
        for name, curve in points_of.items()
    }


def _without_empty_bins(counts: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_filled = counts.any(0)
    return counts[:, is_filled], edges[is_filled]


def _samples(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Convert bins to weighted samples for scikit-learn."""
    classes, bins = np.nonzero(counts[:2])
    return {"y_true": classes, "y_score": bins, "sample_weight": counts[classes, bins]}


def _reaching(counts: np.ndarray) -> np.ndarray:
    """Sum the counts ``[3,B]`` of each bin and all bins above it."""
    return np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]


def _dice(counts: np.ndarray) -> np.ndarray:
    """Compute the Dice coefficient ``[B]`` at the lower edge of each bin."""
    false, true = _reaching(counts)[:2]
    return 2 * true / (true + false + counts[ANOMALOUS].sum())


def _pro_curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute false-positive rates and mean per-region overlaps ``[B + 1]``, from no pixel to all pixels."""
    reaching = _reaching(counts)[:, ::-1]
    fractions = np.pad(reaching / reaching[:, -1:], ((0, 0), (1, 0)))
    return fractions[NORMAL], fractions[REGIONS]


def _aupro(counts: np.ndarray, fpr_limit: float) -> float:
    rates, overlaps = _pro_curve(counts)
    inside = rates <= fpr_limit
    at_limit = np.interp(fpr_limit, rates, overlaps)
    return auc([*rates[inside], fpr_limit], [*overlaps[inside], at_limit]) / fpr_limit


def _thinned(points: np.ndarray, n_points: int) -> np.ndarray:
    if len(points) <= n_points:
        return points
    return points[np.linspace(0, len(points) - 1, n_points).round().astype(int)]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan
