"""The foreground of an image, which statistics and masks are restricted to."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

MIN_SIDE = 14  # pixels; smaller images hold nothing to judge
N_DRAWN = 1 << 18  # voxels that statistics of a volume are computed from


def foreground_mask(image: np.ndarray) -> np.ndarray:
    """Compute the foreground: all voxels but those of the most frequent grey value that reach the border of a slice.

    If that value is above the median or the only one, there is no background. A background need not be 0: scaling makes
    it grey if other voxels are negative. Dark tissue, such as a lesion, may have the value of the background, to which
    scaling clips it; it counts if other tissue surrounds it in its slice. In a large image the value is estimated from
    a subsample.

    Args:
        image: ``[C,...]``.

    Returns:
        ``[...]``, true in the foreground.
    """
    grey = image[0] if len(image) == 1 else image.max(0)
    background = background_value(grey)
    return np.ones(grey.shape, bool) if background is None else fill_holes(grey != background)


def background_value(grey: np.ndarray) -> float | None:
    """Find the most frequent grey value; None if it is above the median or the only one, and so no background."""
    sample = subsample(grey)
    values, counts = np.unique(sample, return_counts=True)
    most_frequent = values[counts.argmax()]
    return None if most_frequent > np.median(sample) or len(values) == 1 else most_frequent


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of each slice of a mask; slices of a volume are taken across its shortest axis.

    Args:
        mask: of an image or a volume.

    Returns:
        The same shape; false only where a path of false pixels, through their edges, leads to the border of the slice.
    """
    structure = ndimage.generate_binary_structure(mask.ndim, 1)
    in_plane = list(range(mask.ndim))
    if mask.ndim == 3:
        across = in_plane.pop(int(np.argmin(mask.shape)))
        structure[tuple(slice(None) if axis == across else 1 for axis in range(3))] = False
        structure[1, 1, 1] = True
    labels, n_labels = ndimage.label(~mask, structure)
    outside = np.zeros(n_labels + 1, bool)
    for axis in in_plane:
        for face in (0, -1):
            outside[np.unique(labels.take(face, axis))] = True
    outside[0] = False
    return ~outside[labels]


def subsample(array: np.ndarray) -> np.ndarray:
    """Draw a fixed sample of values ``[n]`` of a large array; return all values of a small one."""
    if array.size <= N_DRAWN:
        return array.ravel()
    drawn = np.random.default_rng(0).integers(array.size, size=N_DRAWN)
    return array[np.unravel_index(drawn, array.shape)]
