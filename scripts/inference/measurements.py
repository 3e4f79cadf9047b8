"""The numbers that describe a case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform
from skimage.measure import label

from .visualization import foreground_mask, slice_axis

# Of the foreground beyond the normal limit: 0.08 at most was measured with lesions, all with another contrast
# (docs/thresholds.md).
OUTSIDE_SHARE = 0.3
IMAGE_SCORES = ("top_hundredth", "maximum")


class MeasureAnomalyd(Transform):
    """Puts the measurements of a case beside its map and mask, as ``result``: what MONAI Label answers with.

    Args:
        spatial_dim: axis of the oriented volume across which slices were taken.
    """

    def __init__(self, spatial_dim: int = 2) -> None:
        self.spatial_dim = spatial_dim

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Measure a case with ``image``, ``map`` and ``pred``, all in the orientation of the input."""
        image = data["image"]
        scores, mask = (data[key][0].cpu().numpy() for key in ("map", "pred"))
        foreground = foreground_mask(image.cpu().numpy())
        numbers = measurements(scores, mask > 0, foreground, affine_of(image), self.spatial_dim)
        return {**data, "result": numbers}


def affine_of(image: MetaTensor) -> np.ndarray:
    """The affine ``[4,4]`` in mm of an image that was turned back to how it was stored, 2-D or 3-D."""
    affine = np.eye(4)
    given = np.asarray(image.meta.get("original_affine", image.affine), dtype=float)
    affine[: len(given) - 1, : len(given) - 1] = given[:-1, :-1]
    affine[: len(given) - 1, 3] = given[:-1, -1]
    return affine


def measurements(
    scores: np.ndarray, mask: np.ndarray, foreground: np.ndarray, affine: np.ndarray, spatial_dim: int
) -> dict[str, Any]:
    """The numbers that describe a case.

    Args:
        scores: calibrated map of an image or a volume.
        mask: the same shape, true where something was found.
        foreground: the same shape, true where the image is not background.
        affine: of both, ``[4,4]``, in mm.
        spatial_dim: axis of the oriented volume across which slices were taken.

    Returns:
        ``image_score`` (mean of the highest hundredth of the map within the foreground, in units of the limit),
        ``anomalous_volume_ml`` (None for an image, which has no thickness), ``anomalous_fraction`` (of the foreground),
        ``fraction_beyond_limit`` (of the foreground, beyond 1.0 whatever the threshold of the mask),
        ``outside_fitted_range`` (whether that is more than a lesion explains), ``n_regions`` (connected through faces,
        edges and corners), and for a volume ``slices`` (indices, from 0, of those that the mask touches along
        ``slice_axis`` of the array).
    """
    beyond = float((scores[foreground] > 1).mean())
    numbers: dict[str, Any] = {
        "image_score": image_score(scores, foreground),
        "anomalous_volume_ml": None,
        "anomalous_fraction": float(mask[foreground].mean()),
        "fraction_beyond_limit": beyond,
        "outside_fitted_range": beyond > OUTSIDE_SHARE,
        "n_regions": int(label(mask, return_num=True)[1]),
        "shape": list(scores.shape),
    }
    if scores.ndim == 3:
        axis, _ = slice_axis(affine, spatial_dim)
        others = tuple(dim for dim in range(3) if dim != axis)
        numbers["anomalous_volume_ml"] = float(np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3])) / 1000)
        numbers["slice_axis"] = axis
        numbers["slices"] = np.flatnonzero(mask.any(others)).tolist()
    return numbers


def image_score(scores: np.ndarray, foreground: np.ndarray, kind: str = "top_hundredth") -> float:
    """The score of a whole case, in units of the limit.

    Args:
        scores: calibrated map.
        foreground: the same shape, true where the image is not background.
        kind: ``"top_hundredth"``, the mean of the highest hundredth of the map within the foreground; ``"maximum"``.

    Returns:
        The score.
    """
    inside = scores[foreground]
    highest = max(1, round(inside.size / 100)) if kind == "top_hundredth" else 1
    return float(np.partition(inside, -highest)[-highest:].mean())


def outside_warning(numbers: Mapping[str, Any]) -> str:
    """What to say of a case outside the fitted range; see `measurements`."""
    return (
        f"{numbers['fraction_beyond_limit']:.0%} of the foreground lies beyond the normal limit, so scanner, contrast "
        "or anatomy is outside the fitted range and the mask means little"
    )


def caption(case: str, numbers: Mapping[str, Any]) -> str:
    """What stands above the picture of a case; see `measurements`."""
    outside = "   OUTSIDE THE FITTED RANGE" if numbers["outside_fitted_range"] else ""
    return f"{case}   image score {numbers['image_score']:.2f}{outside}   not for diagnosis"
