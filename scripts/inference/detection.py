"""The transform that makes the mask of an anomaly map."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from ..data.foreground import foreground_mask
from ..errors import InputError
from ..models.detection import DEFAULT_FALSE_REGIONS, MAX_FALSE_REGIONS, DetectionLimits
from .measurements import affine_of, voxel_mm3
from .regions import candidate_regions, outlined

MAX_NUMBER = 1e12


class DetectRegionsd(MapTransform):
    """Make masks of maps: a region counts if its peak is high enough, and extends as far as a share of its peak.

    Regions are connected components of the map at 1 and above within the foreground, in 2-D for an image and in 3-D for
    a volume. The limit of their peaks is that which as many regions of held-out normal cases reach as
    ``false_regions`` says. The mask of a model without such limits, and that of a bare ``threshold``, is the map at the
    threshold and above within the foreground.

    The transform adds ``regions``, all `Regions` whether detected or not, ``peak_limit``, the lowest detected peak, and
    the ``foreground``, see `foreground_mask`.

    Args:
        keys: channel-first maps ``[1,...]`` with an affine, to be replaced by masks; only one.
        limits: limits of the fitted model; None if it has none.
        false_regions: false regions in a normal case, on average.
        extent: share of its peak that the voxels of a region reach, at most 1; never below a score of 1.
        min_region_mm3: volume of the smallest region in mm³; in pixels for images.
        threshold: score that all voxels of the mask reach, instead of the rules above; 0 for these rules.
        image_key: image of the map, for its foreground.
        allow_missing_keys: whether a key may be missing.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        limits: DetectionLimits | None,
        false_regions: float = DEFAULT_FALSE_REGIONS,
        extent: float = 0.6,
        min_region_mm3: float = 0.0,
        threshold: float = 0.0,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        for name, value, highest in (
            ("false_regions", false_regions, MAX_FALSE_REGIONS),
            ("extent", extent, 1.0),
            ("min_region_mm3", min_region_mm3, MAX_NUMBER),
            ("threshold", threshold, MAX_NUMBER),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
                raise InputError(f"{name} must be a number from 0 to {highest:g}; got {value!r}.")
        self.limits = limits
        self.false_regions = false_regions
        self.extent = extent
        self.min_region_mm3 = min_region_mm3
        self.threshold = threshold
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make the mask of a case."""
        detected = dict(data)
        image = detected[self.image_key]
        foreground = foreground_mask(image.cpu().numpy())
        voxel_size, spacing = 1.0, None
        if foreground.ndim == 3:
            affine = affine_of(image)
            voxel_size, spacing = voxel_mm3(affine), nib.affines.voxel_sizes(affine)
        detected["foreground"] = foreground
        for key in self.key_iterator(detected):
            scores = detected[key][0].cpu().numpy()
            threshold, limit = self.threshold or 1.0, -np.inf
            regions = candidate_regions(scores, foreground, self.min_region_mm3, voxel_size, spacing, threshold)
            if self.limits is not None and not self.threshold:
                regions = outlined(scores, regions, self.extent)
                limit = self.limits.peak_limit(self.false_regions)
            mask = (regions.reaching(limit).labels > 0).astype(np.uint8)
            detected[key] = convert_to_dst_type(mask[None], detected[key], dtype=np.uint8)[0]
            detected["regions"], detected["peak_limit"] = regions, limit
        return detected
