"""Scalings of intensities to [0,1]."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import InputError

N_SAMPLES = 1 << 20  # more voxels are thinned out evenly


class ScaleIntensitiesd(MapTransform):
    """Scale intensities to [0,1] by one offset and one factor for all channels, which keeps colours.

    A subclass computes both from the image.

    Args:
        keys: images of any shape.
        headroom: fraction of the range above the tissue.
        allow_missing_keys: whether a key may be missing.

    Raises:
        InputError: a headroom out of range.
    """

    def __init__(self, keys: KeysCollection, headroom: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= headroom < 1:
            raise InputError(f"headroom must be at least 0 and below 1; got {headroom}.")
        self.headroom = headroom

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the images of a case."""
        scaled = dict(data)
        for key in self.key_iterator(scaled):
            image = scaled[key].float()
            offset, factor = self.offset_and_factor(image.cpu().numpy())
            scaled[key] = (image - offset).mul_(factor).clamp_(0, 1)
        return scaled

    @abstractmethod
    def offset_and_factor(self, image: np.ndarray) -> tuple[float, float]:
        """Compute the value that becomes 0, and the factor of differences from it."""


class ScaleForegroundPercentilesd(ScaleIntensitiesd):
    """Scale intensities to [0,1] between two percentiles of the foreground, all voxels that are not zero.

    A background of zeros therefore has no effect, and a skull-stripped scan keeps its contrast. The headroom keeps a
    bright lesion from being clipped to the brightness of normal tissue. All channels have one scale, which keeps
    colours.

    Args:
        keys: images of any shape.
        lower: percentile that becomes 0; lower values are clipped.
        upper: percentile that becomes ``1 - headroom``.
        headroom: fraction of the range above the upper percentile; higher values are clipped.
        allow_missing_keys: whether a key may be missing.

    Raises:
        InputError: percentiles or a headroom out of range.
    """

    cache_identity = "scripts.transforms.ScaleForegroundPercentilesd"

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        headroom: float = 0.3,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, headroom, allow_missing_keys)
        if not 0 <= lower < upper <= 100:
            raise InputError(f"Percentiles must satisfy 0 <= lower < upper <= 100; got {lower} and {upper}.")
        self.lower = lower
        self.upper = upper

    def offset_and_factor(self, image: np.ndarray) -> tuple[float, float]:
        """Scale between the two percentiles, or between the extreme values if they are equal."""
        low, high = np.percentile(image[image != 0], [self.lower, self.upper], overwrite_input=True)
        if not high > low:  # hardly any foreground, or a drawing in one grey value
            low, high = image.min(), image.max()
        return float(low), float((1 - self.headroom) / (high - low))


class ScaleTissued(ScaleIntensitiesd):
    """Scale intensities to [0,1] by two quantiles of the tissue, extrapolated to its ends.

    The ends of the histogram themselves, as in `ScaleForegroundPercentilesd`, are a lesion's as soon as it has more
    voxels than the percentile leaves. All channels have one scale, which keeps colours.

    Args:
        keys: images of any shape.
        lower_percent: percentage of the tissue below the lower quantile; see `tissue_quantiles`.
        upper_percent: percentage of the tissue below the upper quantile.
        below: distance of the value that becomes 0 from the lower quantile, in distances between the quantiles.
        above: distance of the value that becomes ``1 - headroom`` from the upper quantile, likewise.
        headroom: fraction of the range above that value; higher values are clipped.
        clipped: largest percentage of the foreground that is clipped at either end; the range is extended if needed.
        allow_missing_keys: whether a key may be missing.

    Raises:
        InputError: an argument out of range.
    """

    cache_identity = "scripts.data.ScaleTissued"

    def __init__(
        self,
        keys: KeysCollection,
        lower_percent: float = 10,
        upper_percent: float = 60,
        below: float = 1.1,
        above: float = 0.85,
        headroom: float = 0.3,
        clipped: float = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, headroom, allow_missing_keys)
        if not 0 <= lower_percent < upper_percent <= 100:
            raise InputError(
                f"Percentages must satisfy 0 <= lower < upper <= 100; got {lower_percent} and {upper_percent}."
            )
        if not (below >= 0 and above >= 0):
            raise InputError(f"below and above must not be negative; got {below} and {above}.")
        if not 0 <= clipped < 50:
            raise InputError(f"clipped must be at least 0 and below 50; got {clipped}.")
        self.lower_percent = lower_percent
        self.upper_percent = upper_percent
        self.below = below
        self.above = above
        self.clipped = clipped

    def offset_and_factor(self, image: np.ndarray) -> tuple[float, float]:
        """Scale between the ends of the tissue, or between the extreme values if they are equal."""
        values = image[image != 0]
        values = np.sort(values[:: 1 + values.size // N_SAMPLES])
        first, second = tissue_quantiles(values, (self.lower_percent, self.upper_percent))
        low = first - self.below * (second - first)
        high = second + self.above * (second - first)
        darkest, brightest = np.percentile(values, [self.clipped, 100 - self.clipped])
        low = min(low, darkest)
        top = max(low + (high - low) / (1 - self.headroom), brightest)
        if not top > low:  # hardly any foreground, or a drawing in one grey value
            low, top = float(image.min()), float(image.max())
        return float(low), 1 / (float(top) - float(low))


def tissue_quantiles(values: np.ndarray, percentages: tuple[float, float]) -> tuple[float, float]:
    """Compute quantiles of voxels that are weighted by their height above the darkest ones.

    So a background of noise or air, which may be most of an image, hardly counts. The weight is bounded by the height
    above which half of the sum of all heights lies, so bright voxels do not count more than other tissue.

    Args:
        values: foreground, ascending ``[N]``.
        percentages: of the sum of weights.

    Returns:
        The values at which the sum of weights of all lower ones reaches the percentages.
    """
    heights = np.maximum(values - values[int(0.005 * (len(values) - 1))], 0).astype(np.float64)
    sums = np.cumsum(heights)
    sums = np.cumsum(np.minimum(heights, heights[np.searchsorted(sums, sums[-1] / 2)]))
    first, second = np.searchsorted(sums, np.asarray(percentages) / 100 * sums[-1]).clip(max=len(values) - 1)
    return float(values[first]), float(values[second])
