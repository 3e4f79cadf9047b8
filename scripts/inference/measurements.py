"""The numbers that describe a case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform
from scipy.ndimage import find_objects

from ..models.detection import DetectionLimits
from .regions import Regions
from .visualization import slice_axis

# Lesions left at most 0.08 of the foreground beyond the decision threshold, another contrast all of it
# (docs/thresholds.md).
OUTSIDE_SHARE = 0.3
IMAGE_SCORES = ("top_1_percent_mean", "maximum", "top_hundredth")  # the last is the former name of the first


class MeasureAnomalyd(Transform):
    """Add the measurements of a case as ``result``, which MONAI Label returns with the mask.

    Args:
        spatial_dim: axis of the oriented volume across which slices were taken.
        limits: detection limits of the fitted model; None if it has none.
        case_alpha: highest p-value of a case that is flagged.
    """

    def __init__(self, spatial_dim: int = 2, limits: DetectionLimits | None = None, case_alpha: float = 0.05) -> None:
        self.spatial_dim = spatial_dim
        self.limits = limits
        self.case_alpha = case_alpha

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Measure a case with ``image``, ``map``, ``pred`` and what `DetectRegionsd` adds, as the input is oriented."""
        image = data["image"]
        scores, mask = (data[key][0].cpu().numpy() for key in ("map", "pred"))
        affine = affine_of(image)
        detected = data["regions"].reaching(data["peak_limit"])
        numbers = {
            **decision(detected, self.limits, self.case_alpha),
            **measurements(scores, mask > 0, data["foreground"], affine, self.spatial_dim),
            "n_regions": len(detected.peaks),
            "regions": region_entries(detected, scores, affine, self.limits),
        }
        return {**data, "result": numbers}


def affine_of(image: MetaTensor) -> np.ndarray:
    """Return the affine ``[4,4]`` in mm of a 2-D or 3-D image in the orientation of its file."""
    affine = np.eye(4)
    stored = np.asarray(image.meta.get("original_affine", image.affine), dtype=float)
    affine[: len(stored) - 1, : len(stored) - 1] = stored[:-1, :-1]
    affine[: len(stored) - 1, 3] = stored[:-1, -1]
    return affine


def voxel_mm3(affine: np.ndarray) -> float:
    """Return the volume of a voxel in mm³ from its affine ``[4,4]`` in mm."""
    return abs(float(np.linalg.det(affine[:3, :3])))


def measurements(
    scores: np.ndarray, mask: np.ndarray, foreground: np.ndarray, affine: np.ndarray, spatial_dim: int
) -> dict[str, Any]:
    """Measure a case.

    Args:
        scores: calibrated map of an image or a volume.
        mask: the same shape, true in anomalous regions.
        foreground: the same shape, true where the image is not background.
        affine: of both, ``[4,4]``, in mm.
        spatial_dim: axis of the oriented volume across which slices were taken.

    Returns:
        ``image_score`` (mean of the highest 1 % of the map within the foreground), ``anomalous_volume_ml`` (None for an
        image, which has no thickness), ``anomalous_fraction`` (of the foreground), ``fraction_beyond_limit`` (of the
        foreground, above 1.0 whatever the threshold of the mask), ``outside_fitted_range`` (whether that fraction is
        larger than a lesion explains), and for a volume
        ``slices`` (indices, from 0, of the slices with anomalous voxels along ``slice_axis`` of the array).
    """
    beyond = float((scores[foreground] > 1).mean())
    numbers: dict[str, Any] = {
        "image_score": image_score(scores, foreground),
        "anomalous_volume_ml": None,
        "anomalous_fraction": float(mask[foreground].mean()),
        "fraction_beyond_limit": beyond,
        "outside_fitted_range": beyond > OUTSIDE_SHARE,
        "shape": list(scores.shape),
    }
    if scores.ndim == 3:
        axis, _ = slice_axis(affine, spatial_dim)
        others = tuple(dim for dim in range(3) if dim != axis)
        numbers["anomalous_volume_ml"] = float(np.count_nonzero(mask) * voxel_mm3(affine) / 1000)
        numbers["slice_axis"] = axis
        numbers["slices"] = np.flatnonzero(mask.any(others)).tolist()
    return numbers


def decision(detected: Regions, limits: DetectionLimits | None, case_alpha: float) -> dict[str, Any]:
    """Decide about a case by its highest detected peak.

    Args:
        detected: detected regions of the case.
        limits: detection limits of the fitted model; None if it has none.
        case_alpha: highest p-value of a case that is flagged.

    Returns:
        ``p_value``, see `DetectionLimits.p_values` (1 without a region, None without limits); ``flagged``, whether it
        is at most ``case_alpha`` (None if the held-out normal cases are too few for that); and ``held_out_cases``,
        their number.
    """
    if limits is None:
        return {"p_value": None, "flagged": None, "held_out_cases": 0}
    p_value = float(limits.p_values(detected.peaks[0])) if len(detected.peaks) else 1.0
    flagged = p_value <= case_alpha if limits.can_flag(case_alpha) else None
    return {"p_value": p_value, "flagged": flagged, "held_out_cases": limits.n_cases}


def region_entries(
    detected: Regions, scores: np.ndarray, affine: np.ndarray, limits: DetectionLimits | None
) -> list[dict[str, Any]]:
    """Describe the detected regions of a case, those with the highest peak first.

    Args:
        detected: detected regions, outlined.
        scores: calibrated map.
        affine: of both, ``[4,4]``, in mm.
        limits: detection limits of the fitted model; None if it has none.

    Returns:
        For each region its ``peak``, ``p_value`` (None without limits), ``n_voxels``, ``volume_ml`` (None for an image)
        and ``peak_voxel``, the indices of its highest score in the array.
    """
    voxel_ml = voxel_mm3(affine) / 1000 if scores.ndim == 3 else None
    entries = []
    for number, (peak, size, place) in enumerate(
        zip(detected.peaks, detected.sizes, find_objects(detected.labels), strict=True), 1
    ):
        inside = np.where(detected.labels[place] == number, scores[place], -np.inf)
        highest = np.unravel_index(inside.argmax(), inside.shape)
        entries.append(
            {
                "peak": float(peak),
                "p_value": None if limits is None else float(limits.p_values(peak)),
                "n_voxels": int(size),
                "volume_ml": None if voxel_ml is None else float(size * voxel_ml),
                "peak_voxel": [int(side.start + index) for side, index in zip(place, highest, strict=True)],
            }
        )
    return entries


def image_score(scores: np.ndarray, foreground: np.ndarray, kind: str = "top_1_percent_mean") -> float:
    """Compute the score of a whole case from its calibrated map.

    Args:
        scores: calibrated map.
        foreground: the same shape, true where the image is not background.
        kind: ``"top_1_percent_mean"``, the mean of the highest 1 % of the map within the foreground, or ``"maximum"``.

    Returns:
        The score.
    """
    inside = scores[foreground]
    highest = 1 if kind == "maximum" else max(1, round(inside.size / 100))
    return float(np.partition(inside, -highest)[-highest:].mean())


def outside_warning(numbers: Mapping[str, Any]) -> str:
    """Return the warning for a case outside the fitted range; see `measurements`."""
    return (
        f"{numbers['fraction_beyond_limit']:.0%} of the foreground lies beyond the decision threshold, so scanner, "
        "contrast or anatomy is outside the fitted range and the mask means little"
    )


def caption(case: str, numbers: Mapping[str, Any]) -> str:
    """Return the caption of the picture of a case; see `measurements`."""
    outside = "   OUTSIDE THE FITTED RANGE" if numbers["outside_fitted_range"] else ""
    flagged = f"   FLAGGED, p = {numbers['p_value']:.2g}" if numbers.get("flagged") else ""
    return f"{case}   image score {numbers['image_score']:.2f}{flagged}{outside}   not for diagnosis"
