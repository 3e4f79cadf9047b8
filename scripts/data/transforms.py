"""Dictionary transforms that MONAI lacks."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import GaussianSmooth, MapTransform, Orientationd

from ..errors import InputError

# Rows run from front to back, columns from right to left, slices upwards: axial slices in the radiological view, and
# pictures unchanged. Sagittal and coronal slices of such a volume lie on their side.
UPRIGHT = "PLS"


class CheckImaged(MapTransform):
    """Refuse images that cannot be scored, and drop the alpha channel of a two-dimensional image.

    Args:
        keys: channel-first images ``[C,H,W]`` or ``[C,H,W,D]``.
        allow_missing_keys: whether a key may be missing.
    """

    cache_identity = "scripts.transforms.CheckImaged"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the images of a case; ``n_files``, if present, is the expected number of slices.

        Raises:
            InputError: slices missing from a DICOM series, a series of volumes, a number of channels other than 1 or 3,
                values that are not finite, or a single grey value throughout.
        """
        checked = dict(data)
        for key in self.key_iterator(checked):
            checked[key] = _check(checked[key], checked.get("n_files"))
        return checked


class OrientUprightd(Orientationd):
    """Reorient images so that axial slices and pictures stand upright, whatever the order of their voxels.

    Args:
        keys: channel-first images ``[C,H,W]`` or ``[C,H,W,D]`` with an affine.
        allow_missing_keys: whether a key may be missing.
    """

    cache_identity = "scripts.transforms.OrientUprightd"

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, axcodes=UPRIGHT, labels=None, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Reorient the images of a case."""
        with warnings.catch_warnings():  # about the third axis, which a picture does not have
            warnings.filterwarnings("ignore", message="axcodes")
            return super().__call__(data, lazy)


class SmoothMapd(MapTransform):
    """Smooth maps by a Gaussian with a width in mm (in pixels, for pictures without a pixel size).

    Args:
        keys: channel-first maps with an affine.
        sigma_mm: standard deviation in mm; None or 0 for no smoothing.
        allow_missing_keys: whether a key may be missing.

    Raises:
        InputError: a negative ``sigma_mm``.
    """

    def __init__(self, keys: KeysCollection, sigma_mm: float | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if sigma_mm is not None and sigma_mm < 0:
            raise InputError(f"smoothing_mm must not be negative; got {sigma_mm}.")
        self.sigma_mm = sigma_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Smooth the maps of a case."""
        smoothed = dict(data)
        if self.sigma_mm:
            for key in self.key_iterator(smoothed):
                spacing = smoothed[key].pixdim[: smoothed[key].ndim - 1]
                smoothed[key] = GaussianSmooth([self.sigma_mm / float(length) for length in spacing])(smoothed[key])
        return smoothed


def _check(image: torch.Tensor, n_files: int | None) -> torch.Tensor:
    if n_files not in (None, 1, image.shape[-1]):
        raise InputError(
            f"{image.shape[-1]} slices could be read of a DICOM series of {n_files} files; expected one of each, so "
            "look for damaged files"
        )
    if image.ndim == 3 and len(image) in (2, 4):
        image = image[: len(image) - 1]
    if len(image) not in (1, 3):
        raise InputError(
            f"the image has {len(image)} volumes or channels per voxel; expected one 2-D or 3-D image with 1 or 3 "
            "channels, so split a 4-D series into its volumes"
        )
    if image.ndim not in (3, 4):
        raise InputError(f"the image has {image.ndim - 1} dimensions, one of them perhaps its colours; expected 2 or 3")
    n_bad = int((~torch.isfinite(image)).sum())
    if n_bad:
        raise InputError(f"{n_bad} voxels are NaN or infinite; expected finite intensities, so repair them first")
    if image.amax() == image.amin():
        raise InputError(f"every voxel is {float(image.amin()):g}; expected an image with some contrast")
    return image
