"""Pixel metrics, computed from histograms.

Bins replace samples. Scores within a bin are not distinguished, so metrics that depend on the order of the pixels have
an error, which `binning_errors` bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import digamma

from .histograms import ANOMALOUS, NORMAL, NORMAL_FOREGROUND, REGIONS

SETS_OF_PIXELS = {"": NORMAL, "_foreground": NORMAL_FOREGROUND}  # suffix of the metrics, histogram of normal pixels


def pixel_metrics(
    counts: np.ndarray, edges: np.ndarray, thresholds: Mapping[str, float], fpr_limit: float = 0.3
) -> dict[str, float]:
    """Compute metrics of pixels; a metric that is not defined is NaN.

    AUPRO is the per-region overlap, averaged over regions, as a function of the false-positive rate of all normal
    pixels, integrated up to ``fpr_limit`` and divided by it (Bergmann et al., 2021, IJCV 129, section 5). Maximal Dice
    is the Dice coefficient of the pooled pixels, maximised over all thresholds.

    Args:
        counts: histograms ``[4,B]`` of one case or summed over cases, see `count_pixels`.
        edges: lower edges of the bins ``[B]``.
        thresholds: thresholds by the suffix of their metrics; a threshold that is no edge is rounded up to the next.
        fpr_limit: largest false-positive rate of AUPRO.

    Returns:
        ``pixel_auroc`` and ``pixel_ap``, of all pixels and (``_foreground``) without the normal pixels of the
        background; ``aupro_<limit>``, ``max_dice`` and its threshold; `overlap_metrics` at each threshold.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # here, as inference does not need it

    counts, edges = _without_empty_bins(counts, edges)
    n_normal, n_anomalous = counts[[NORMAL, ANOMALOUS]].sum(1)
    values = {}
    for suffix, normal in SETS_OF_PIXELS.items():
        samples = _samples(counts[[normal, ANOMALOUS]])
        is_defined = len(np.unique(samples["y_true"])) == 2
        values[f"pixel_auroc{suffix}"] = roc_auc_score(**samples) if is_defined else np.nan
        values[f"pixel_ap{suffix}"] = average_precision_score(**samples) if is_defined else np.nan
    values.update(dict.fromkeys([f"aupro_{fpr_limit:g}", "max_dice", "max_dice_threshold"], np.nan))
    if n_normal and n_anomalous:
        dice = _dice(counts)
        values[f"aupro_{fpr_limit:g}"] = _aupro(counts, fpr_limit)
        values.update({"max_dice": dice.max(), "max_dice_threshold": edges[dice.argmax()]})
    for name, threshold in thresholds.items():
        false, true = counts[[NORMAL, ANOMALOUS], np.searchsorted(edges, threshold) :].sum(1)
        values.update(overlap_metrics(true, false, n_anomalous, n_normal, name))
    return {name: float(value) for name, value in values.items()}


def overlap_metrics(true: float, false: float, n_anomalous: float, n_normal: float, suffix: str) -> dict[str, float]:
    """Compute metrics of a decision about pixels; a metric that is not defined is NaN.

    Args:
        true: number of anomalous pixels that are called anomalous.
        false: number of normal pixels that are called anomalous.
        n_anomalous: number of anomalous pixels.
        n_normal: number of normal pixels.
        suffix: end of the names.

    Returns:
        ``dice``, ``sensitivity``, ``precision`` and ``false_positive_rate``.
    """
    return {
        f"dice_{suffix}": ratio(2 * true, true + false + n_anomalous) if n_anomalous else np.nan,
        f"sensitivity_{suffix}": ratio(true, n_anomalous),
        f"precision_{suffix}": ratio(true, true + false) if n_anomalous else np.nan,
        f"false_positive_rate_{suffix}": ratio(false, n_normal),
    }


def ratio(part: float, whole: float) -> float:
    """Divide; NaN if the whole is 0."""
    return float(part / whole) if whole else np.nan


def binning_errors(counts: np.ndarray, fpr_limit: float = 0.3) -> dict[str, float]:
    """Bound the differences between `pixel_metrics` and metrics of the unbinned scores.

    The order of the pixels within a bin is unknown. A pair of a normal and an anomalous pixel counts 0.5 in the AUROC;
    the true value is between 0 and 1. The same holds for areas under the PRO curve; the bin at ``fpr_limit`` counts
    whole. The precision at an anomalous pixel is between its values with all and with none of the normal pixels of its
    bin above it.

    Args:
        counts: histograms ``[4,B]``, see `count_pixels`.
        fpr_limit: largest false-positive rate of AUPRO.

    Returns:
        Bounds of ``pixel_auroc``, ``pixel_ap`` (also of the foreground), ``aupro_<limit>`` and ``max_dice``; without
        those that are not defined.
    """
    counts = counts[:, counts.any(0)]
    errors: dict[str, float] = {}
    for suffix, normal_row in SETS_OF_PIXELS.items():
        pair = counts[[normal_row, ANOMALOUS]]
        if pair.any(1).all():
            errors[f"pixel_auroc{suffix}"], errors[f"pixel_ap{suffix}"] = _auroc_and_ap_errors(*pair)
    if not errors:
        return {}
    normal, _, regions = counts[:NORMAL_FOREGROUND] / counts[:NORMAL_FOREGROUND].sum(1, keepdims=True)
    rates = _pro_curve(counts)[0][::-1]
    areas = np.where(rates[:-1] <= fpr_limit, normal / 2, (fpr_limit - rates[1:]).clip(min=0)) * regions

    false, true = _reaching(counts)[:2]
    best = 2 * true / (true + false - counts[NORMAL] + counts[ANOMALOUS].sum())
    errors[f"aupro_{fpr_limit:g}"] = float(np.sum(areas) / fpr_limit)
    errors["max_dice"] = float(best.max() - _dice(counts).max())
    return errors


def _auroc_and_ap_errors(n: np.ndarray, a: np.ndarray) -> tuple[float, float]:
    """Bound the errors of AUROC and average precision from the normal and the anomalous pixels of each bin ``[B]``."""
    is_filled = (n > 0) | (a > 0)
    n, a = n[is_filled], a[is_filled]
    false, true = _reaching(np.stack([n, a]))
    ap = np.sum(a * true / (true + false)) / a.sum()
    highest = np.sum(a * true / (true + false - n).clip(min=1)) / a.sum()
    # sum over k = 1..a of (t + k) / (t + k + f); t excludes the bin, f includes it
    lowest = np.sum(a - false * (digamma(true + false + 1) - digamma(true - a + false + 1))) / a.sum()
    auroc_error = np.sum(n / n.sum() * a / a.sum()) / 2
    return float(auroc_error), float(max(min(highest, 1) - ap, ap - lowest))


def curves(counts: np.ndarray, edges: np.ndarray, n_points: int = 500) -> dict[str, dict[str, list[float]]]:
    """Compute the curves that the metrics summarise.

    Args:
        counts: histograms ``[4,B]``, see `count_pixels`.
        edges: lower edges of the bins ``[B]``.
        n_points: largest number of points of a curve, including both ends.

    Returns:
        ``roc`` (``fpr``, ``tpr``), ``pr`` (``recall``, ``precision``), ``pro`` (``fpr``, ``pro``) and ``dice``
        (``threshold``, ``dice``); without points if there are no normal or no anomalous pixels.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # here, as inference does not need it

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
        name: {axis: thinned(points, n_points).tolist() for axis, points in zip(axes[name], curve, strict=True)}
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
    """Sum the counts ``[4,B]`` of each bin and all bins above it."""
    return np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]


def _dice(counts: np.ndarray) -> np.ndarray:
    """Compute the Dice coefficient ``[B]`` at the lower edge of each bin."""
    false, true = _reaching(counts)[:2]
    return 2 * true / (true + false + counts[ANOMALOUS].sum())


def _pro_curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute false-positive rates and mean per-region overlaps ``[B + 1]``, from no pixel to all pixels."""
    reaching = _reaching(counts[:NORMAL_FOREGROUND])[:, ::-1]
    fractions = np.pad(reaching / reaching[:, -1:], ((0, 0), (1, 0)))
    return fractions[NORMAL], fractions[REGIONS]


def _aupro(counts: np.ndarray, fpr_limit: float) -> float:
    from sklearn.metrics import auc  # here, as inference does not need it

    rates, overlaps = _pro_curve(counts)
    inside = rates <= fpr_limit
    at_limit = np.interp(fpr_limit, rates, overlaps)
    return auc([*rates[inside], fpr_limit], [*overlaps[inside], at_limit]) / fpr_limit


def thinned(points: np.ndarray, n_points: int = 500) -> np.ndarray:
    """Select at most ``n_points`` evenly spaced points of a curve ``[P]``, including both ends."""
    if len(points) <= n_points:
        return points
    return points[np.linspace(0, len(points) - 1, n_points).round().astype(int)]
