"""Metrics of cases, lesions, regions and masks, computed from a row of numbers per case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .froc import FALSE_REGION_RATES, froc_curve, sensitivities_at
from .functional import overlap_metrics, ratio

COUNTS = (  # of `count_mask` and `match_regions`
    *("anomalous_pixels", "normal_pixels", "true_pixels", "false_pixels"),
    *("lesions", "missed_lesions", "regions", "false_regions", "iou_sum"),
)
LISTS = ("lesion_sizes", "lesion_peaks", "lesions_detected", "false_peaks")  # of `match_regions`
THIRDS = ("small", "medium", "large")


class CaseTable(NamedTuple):
    """Numbers of N cases with L lesions and F false regions; NaN for unknown values.

    Attributes:
        image_scores: score of each case ``[N]``.
        is_anomalous: 1 for an anomalous case, 0 for a normal one ``[N]``.
        counts: ``COUNTS`` of each case ``[N,9]``.
        lesion_cases: index of the case of each lesion ``[L]``.
        lesion_thirds: index of its third by size ``[L]``, see `lesion_thirds`.
        lesion_peaks: highest peak of the candidate regions that hit it ``[L]``; NaN if there is none.
        lesions_detected: whether a detected region hits it ``[L]``.
        false_cases: index of the case of each false candidate region ``[F]``.
        false_peaks: its peak ``[F]``.
        size_limits: largest size of a small and of a medium lesion, by unit.
    """

    image_scores: np.ndarray
    is_anomalous: np.ndarray
    counts: np.ndarray
    lesion_cases: np.ndarray
    lesion_thirds: np.ndarray
    lesion_peaks: np.ndarray
    lesions_detected: np.ndarray
    false_cases: np.ndarray
    false_peaks: np.ndarray
    size_limits: dict[str, list[float]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> CaseTable:
        """Make the table from rows with ``image_score``, ``is_anomalous``, ``size_unit``, ``COUNTS`` and ``LISTS``."""
        names = ("image_score", "is_anomalous", *COUNTS)
        numbers = np.array([[row[name] for name in names] for row in rows], float).reshape(len(rows), len(names))
        sizes, peaks, detected, false = (
            np.array([value for row in rows for value in row[name] or []], float) for name in LISTS
        )
        lesion_cases, false_cases = (
            np.repeat(np.arange(len(rows)), np.array([len(row[name] or []) for row in rows], int))
            for name in ("lesion_sizes", "false_peaks")
        )
        units = np.array([row["size_unit"] for row in rows], str)[lesion_cases]
        thirds, limits = lesion_thirds(sizes, units)
        return cls(
            numbers[:, 0],
            numbers[:, 1],
            numbers[:, 2:],
            lesion_cases,
            thirds,
            peaks,
            detected > 0,
            false_cases,
            false,
            limits,
        )

    def froc(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the FROC curve for a weight of each case ``[N]``; see `froc_curve`."""
        n_cases = float(weights[np.isfinite(self.counts[:, 0])].sum())
        return froc_curve(
            self.lesion_peaks, self.false_peaks, n_cases, weights[self.lesion_cases], weights[self.false_cases]
        )


def lesion_thirds(sizes: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Divide lesions into thirds by their size, each unit by itself.

    Args:
        sizes: size of each lesion ``[L]``.
        units: its unit ``[L]``.

    Returns:
        Index of the third of each lesion ``[L]``, lesions of the same size in the same third; and by unit the largest
        sizes of the first and the second third.
    """
    thirds, limits = np.zeros(len(sizes), int), {}
    for unit in np.unique(units):
        of_unit = units == unit
        ends = np.quantile(sizes[of_unit], [1 / 3, 2 / 3], method="inverted_cdf")
        thirds[of_unit] = np.searchsorted(ends, sizes[of_unit])
        limits[str(unit)] = ends.tolist()
    return thirds, limits


def count_metrics(counts: np.ndarray) -> dict[str, float]:
    """Compute metrics of the mask and of the detected regions; a metric that is not defined is NaN.

    A region is true if it touches a lesion, and a lesion is found if a region touches it; F1 is the harmonic mean of
    both shares. Panoptic quality is the sum of the intersections over union of the matched pairs, divided by the mean
    of the number of regions and the number of lesions (Kirillov et al., 2019, CVPR, equation 1).

    Args:
        counts: ``COUNTS`` of one case or summed over cases ``[9]``.

    Returns:
        ``dice``, ``sensitivity``, ``precision`` and ``false_positive_rate`` ``_of_mask``; ``lesion_sensitivity``,
        ``region_precision``, ``region_f1`` and ``panoptic_quality``.
    """
    anomalous, normal, true, false, lesions, missed, regions, false_regions, iou_sum = map(float, counts)
    found, true_regions = ratio(lesions - missed, lesions), ratio(regions - false_regions, regions)
    f1 = ratio(2 * found * true_regions, found + true_regions) if regions and found + true_regions else 0.0
    return {
        "lesion_sensitivity": found,
        "region_precision": true_regions if lesions else np.nan,
        "region_f1": f1 if lesions else np.nan,
        "panoptic_quality": ratio(2 * iou_sum, regions + lesions) if lesions else np.nan,
        **overlap_metrics(true, false, anomalous, normal, "of_mask"),
    }


def case_metrics(table: CaseTable, weights: np.ndarray) -> dict[str, float]:
    """Compute metrics over cases; a metric that is not defined is NaN.

    Args:
        table: numbers of the cases.
        weights: integer weight of each case ``[N]``.

    Returns:
        ``image_auroc`` and ``image_ap``; `count_metrics` of the pooled cases, ``false_regions_per_case``, and the
        ``mean_dice_of_mask`` and ``median_dice_of_mask`` of the cases with a lesion; ``lesion_sensitivity`` of the
        thirds of the lesions by size, and at each rate of false regions per case, with the mean of these as
        ``froc_score``.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # here, as inference does not need it

    values = {"image_auroc": np.nan, "image_ap": np.nan}
    known = np.isfinite(table.is_anomalous) & (weights > 0)
    if len(np.unique(table.is_anomalous[known])) == 2:
        samples = {"y_true": table.is_anomalous[known], "y_score": table.image_scores[known]}
        values["image_auroc"] = float(roc_auc_score(**samples, sample_weight=weights[known]))
        values["image_ap"] = float(average_precision_score(**samples, sample_weight=weights[known]))

    outlined = np.isfinite(table.counts[:, 0])
    counts, n_drawn = table.counts[outlined], weights[outlined]
    values.update(count_metrics(n_drawn @ counts))
    values["false_regions_per_case"] = ratio(float(n_drawn @ counts[:, COUNTS.index("false_regions")]), n_drawn.sum())
    anomalous, _, true, false = counts[:, :4].T
    with_lesion = anomalous > 0
    dice = 2 * true[with_lesion] / (anomalous + true + false)[with_lesion]
    repeated = np.repeat(dice, n_drawn[with_lesion].astype(int))
    values["mean_dice_of_mask"] = float(repeated.mean()) if len(repeated) else np.nan
    values["median_dice_of_mask"] = float(np.median(repeated)) if len(repeated) else np.nan

    lesion_weights = weights[table.lesion_cases]
    for index, name in enumerate(THIRDS):
        of_size = lesion_weights * (table.lesion_thirds == index)
        values[f"lesion_sensitivity_{name}"] = ratio(float(of_size @ table.lesions_detected), of_size.sum())
    at_rates = sensitivities_at(*table.froc(weights))
    values["froc_score"] = float(at_rates.mean())
    for rate, sensitivity in zip(FALSE_REGION_RATES, at_rates, strict=True):
        values[f"lesion_sensitivity_at_{rate:g}"] = float(sensitivity)
    return values
