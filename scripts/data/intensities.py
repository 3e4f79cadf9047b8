"""Scaling of intensities by the bulk of the tissue, which a lesion does not shift."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import InputError

N_SAMPLES = 1 << 20  # more voxels are thinned out evenly


class ScaleTissued(MapTransform):
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
        super().__init__(keys, allow_missing_keys)
        if not 0 <= lower_percent < upper_percent <= 100:
            raise InputError(
                f"Percentages must satisfy 0 <= lower < upper <= 100; got {lower_percent} and {upper_percent}."
            )
        if not (below >= 0 and above >= 0):
            raise InputError(f"below and above must not be negative; got {below} and {above}.")
        if not 0 <= headroom < 1:
            raise InputError(f"headroom must be at least 0 and below 1; got {headroom}.")
        if not 0 <= clipped < 50:
            raise InputError(f"clipped must be at least 0 and below 50; got {clipped}.")
        self.lower_percent = lower_percent
        self.upper_percent = upper_percent
        self.below = below
        self.above = above
        self.headroom = headroom
        self.clipped = clipped

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the images of a case."""
        scaled = dict(data)
        for key in self.key_iterator(scaled):
            image = scaled[key].float()
            low, top = self.range_of(image.cpu().numpy())
            scaled[key] = (image - low).mul_(1 / (top - low)).clamp_(0, 1)
        return scaled

    def range_of(self, image: np.ndarray) -> tuple[float, float]:
        """Compute the values of an image that become 0 and 1."""
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
        return float(low), float(top)


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
