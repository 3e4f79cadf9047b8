"""Field of view: how many millimetres the slices of a volume show to the network.

The network resizes the smaller edge of a slice to ``image_size`` pixels. Without a common field of view, the size of
the anatomy in pixels depends on how much background is around it, and so on the scanner.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, CropForeground, CropForegroundd, EnsureChannelFirstd, MapTransform
from monai.utils import ensure_tuple

from ..errors import InputError
from .foreground import MIN_SIDE, background_value
from .images import LoadImageFiled
from .transforms import OrientUprightd

FIELD_OF_VIEW, FIRST_VOXEL = "field_of_view_mm", "field_of_view_start"  # keys of a case
CROPPED = "cropped"  # in the meta data of an image: its box, and the value of the background around it
N_SAMPLED = 16  # normal cases that the field of view is chosen from
SHARE_WITHIN = 0.9  # share of them whose foreground fits into it
MARGIN = 1.15
MAX_ENLARGEMENT = 2  # a volume that shows less than half of the field of view has a wrong voxel size or is a part
MAX_FOREGROUND = 1.5  # fields of view; a larger foreground has a wrong voxel size, or is another part
LARGE_FOREGROUND = 1.1  # fields of view; it is warned of
MAX_SIDE = 4096  # voxels
WITHOUT_BACKGROUND = 0.98  # share of the edges of an image that the foreground has

logger = logging.getLogger(__name__)


class SetFieldOfViewd(CropForegroundd):
    """Crop the background of volumes, or extend it, so that every slice has the same field of view.

    Each edge of a slice becomes as long as the field of view, or as the foreground if that is longer. Nothing but
    background is cropped. Pictures, which have no voxel size, stay as they are. Invertible; the inverse fills with 0
    what was cropped, also of images with another background, see `RestoreBackgroundd`.

    Args:
        keys: channel-first images ``[C,H,W]`` or ``[C,H,W,D]`` with an affine; the first is the one that is measured.
        mm: the field of view in mm; None leaves volumes as they are.
        spatial_dim: axis of a volume across which slices are taken.
        views: several such axes; None for ``spatial_dim`` alone.
        allow_missing_keys: whether a key may be missing.
    """

    cropper: _FieldOfView

    def __init__(
        self,
        keys: KeysCollection,
        mm: float | None = None,
        spatial_dim: int = 2,
        views: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        measured = ensure_tuple(keys)[0]
        super().__init__(
            keys, measured, start_coord_key=FIRST_VOXEL, end_coord_key=None, allow_missing_keys=allow_missing_keys
        )
        self.cropper = _FieldOfView(mm, in_plane_axes(spatial_dim, views))

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Set the field of view of the images of a case.

        Returns:
            The case, with ``field_of_view_mm``, and under ``field_of_view_start`` the first voxel along each axis of
            the image, below 0 where it was extended.
        """
        return {**super().__call__(data, lazy), FIELD_OF_VIEW: self.cropper.mm}


class _FieldOfView(CropForeground):
    """Crop a volume ``[C,H,W,D]`` to a field of view in mm along some axes."""

    def __init__(self, mm: float | None, axes: Sequence[int]) -> None:
        super().__init__()
        self.mm = mm
        self.axes = [] if mm is None else list(axes)

    def compute_bounding_box(self, img: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return first and last voxel, exclusive, along each axis; beyond the image where it is to be extended.

        Raises:
            InputError: the image shows much less than the field of view, or its foreground much more.
        """
        start, end = np.zeros(img.ndim - 1, int), np.array(img.shape[1:])
        if self.mm is None or img.ndim != 4 or min(end[self.axes]) < MIN_SIDE:  # the inferer refuses small images
            return start, end
        sides = voxel_sides(img)
        longest = max(img.shape[1 + axis] * sides[axis] for axis in self.axes)
        if not self.mm <= MAX_ENLARGEMENT * longest:
            raise InputError(
                f"its slices show {longest:.3g} mm at most, where the model was fitted on slices of {self.mm:.3g} mm; "
                "check the voxel size in its header, or give a larger part of the anatomy"
            )
        box = foreground_box(img, self.axes)
        self._check_size(min((last - first) * sides[axis] for axis, (first, last) in box.items()))
        for axis, (first, last) in box.items():
            size = img.shape[1 + axis]
            n_voxels = max(round(self.mm / sides[axis]), last - first, MIN_SIDE)
            if n_voxels > max(size, MAX_SIDE):
                raise InputError(
                    f"its slices would have an edge of {n_voxels} voxels of {sides[axis]:.3g} mm; check the voxel size "
                    "in its header"
                )
            centred = math.floor((first + last - n_voxels) / 2)
            start[axis] = min(max(centred, 0), size - n_voxels) if n_voxels <= size else (size - n_voxels) // 2
            end[axis] = start[axis] + n_voxels
        return start, end

    def _check_size(self, foreground_mm: float) -> None:
        """Check the smaller edge of the foreground, and log a warning if it is large."""
        assert self.mm is not None
        if foreground_mm > MAX_FOREGROUND * self.mm:
            raise InputError(
                f"its foreground is {foreground_mm:.3g} mm wide, where the model was fitted on slices of {self.mm:.3g} "
                "mm; check the voxel size in its header, or set the air around the anatomy to one value"
            )
        if foreground_mm > LARGE_FOREGROUND * self.mm:
            logger.warning(
                f"A volume has a foreground {foreground_mm:.3g} mm wide, where the model was fitted on slices of "
                f"{self.mm:.3g} mm: it is seen at a smaller scale. Is the air around the anatomy not of one value?"
            )

    def crop_pad(
        self, img: torch.Tensor, box_start: np.ndarray, box_end: np.ndarray, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Crop, and extend by the value of the background, or by 0 if there is none."""
        is_whole = bool((box_start == 0).all() and (box_end == img.shape[1:]).all())
        background = 0.0 if is_whole else float(background_value(_grey(img)) or 0)
        cropped = super().crop_pad(img, box_start, box_end, *args, **kwargs, value=background)
        if background and isinstance(cropped, MetaTensor):
            cropped.meta[CROPPED] = {"start": box_start.tolist(), "end": box_end.tolist(), "background": background}
        return cropped


class RestoreBackgroundd(MapTransform):
    """Give an image the value of its background where `SetFieldOfViewd` cropped it, after the inverse filled it with 0.

    The inverse serves maps as well, which are 0 there.

    Args:
        keys: channel-first images ``[C,H,W,D]``; others stay as they are.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the images of a case."""
        restored = dict(data)
        for key in self.key_iterator(restored):
            image = restored[key]
            if cropped := getattr(image, "meta", {}).get(CROPPED):
                ends = zip(cropped["start"], cropped["end"], strict=True)
                inside = tuple(slice(max(start, 0), end) for start, end in ends)
                whole = torch.full_like(image, cropped["background"])
                whole[(slice(None), *inside)] = image[(slice(None), *inside)]
                restored[key] = whole
        return restored


def check_field_of_view(case: Mapping[str, Any], network: Any) -> None:
    """Check that a preprocessed case has the field of view of a network's fit; an ONNX file does not know it.

    Raises:
        InputError: it has another.
    """
    fitted = getattr(network, FIELD_OF_VIEW, None)
    if fitted is not None and case.get(FIELD_OF_VIEW) != fitted:
        raise InputError(
            f"the model was fitted on slices of {fitted:g} mm, which the preprocessing does not make; give it "
            "scripts.data.SetFieldOfViewd with the field of view of model.pt, as configs/inference.json does, or "
            "field_of_view#path, that model.pt, for an exported file"
        )


def in_plane_axes(spatial_dim: int, views: Sequence[int] | None = None) -> list[int]:
    """Return the axes of a volume along the edges of its slices."""
    return sorted({axis for across in views or [spatial_dim] for axis in range(3) if axis != across})


def voxel_sides(volume: Any) -> np.ndarray:
    """Return the sides of a voxel in mm.

    Raises:
        InputError: they are not positive numbers.
    """
    sides = np.asarray(nib.affines.voxel_sizes(np.asarray(volume.affine, dtype=float)))
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise InputError(f"its voxels are {' x '.join(f'{side:g}' for side in sides)} mm; repair its header")
    return sides


def foreground_box(volume: torch.Tensor, axes: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Find the first and last voxel, exclusive, of the foreground of a volume ``[C,H,W,D]`` along some axes."""
    grey = _grey(volume)
    background = background_value(grey)
    is_foreground = np.ones(grey.shape, bool) if background is None else grey != background
    box = {}
    for axis in axes:
        inside = np.flatnonzero(is_foreground.any(tuple(other for other in range(3) if other != axis)))
        box[axis] = (int(inside[0]), int(inside[-1]) + 1)
    return box


def choose_field_of_view(
    setting: float | Literal["auto"] | None,
    cases: Sequence[Mapping[str, Any]],
    spatial_dim: int = 2,
    views: Sequence[int] | None = None,
) -> float | None:
    """Choose the field of view of a fit.

    Args:
        setting: the field of view in mm; None for none; ``"auto"`` for a little more than the smaller edge
            of the foreground of most normals.
        cases: normal cases, some of which are read; one that cannot be read is left out, since the fit reports it.
        spatial_dim: axis of a volume across which slices are taken.
        views: several such axes; None for ``spatial_dim`` alone.

    Returns:
        The field of view in mm, to two digits, so that a few more normals seldom change it and embeddings are found
        again; None for pictures.
    """
    if setting != "auto":
        return setting
    axes = in_plane_axes(spatial_dim, views)
    reading = Compose([transform("image") for transform in (LoadImageFiled, EnsureChannelFirstd, OrientUprightd)])
    edges, shares = [], []
    for case in cases[:: math.ceil(len(cases) / N_SAMPLED) or 1]:
        with contextlib.suppress(Exception):  # the fit says what is wrong with it
            image = reading(dict(case))["image"]
            sides, box = voxel_sides(image), foreground_box(image, axes) if image.ndim == 4 else {}
            edges += [min((last - first) * sides[axis] for axis, (first, last) in box.items())] if box else []
            shares += (
                [min((last - first) / image.shape[1 + axis] for axis, (first, last) in box.items())] if box else []
            )
    if edges and statistics.median(shares) > WITHOUT_BACKGROUND:
        logger.warning(
            "Most normal images have no background of one value, as scans with noise in the air: the field of view is "
            "that of the images, and other scanners may have another scale. Set the air to one value to avoid it."
        )
    return _rounded_up(MARGIN * float(np.quantile(edges, SHARE_WITHIN))) if edges else None


def _rounded_up(length: float) -> float:
    """Round up to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(length)) - 1)
    return round(math.ceil(length / unit) * unit, 6)


def _grey(image: torch.Tensor) -> np.ndarray:
    array = image.cpu().numpy()
    return array[0] if len(array) == 1 else array.max(0)
