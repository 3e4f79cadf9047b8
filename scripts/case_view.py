"""A case as it is looked at: upright slices, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from .transforms import UPRIGHT


@dataclass(frozen=True)
class CaseView:
    """The S upright slices of a volume, or the one of an image.

    Attributes:
        image: ``[C,H,W,S]`` in [0,1].
        scores: calibrated map ``[H,W,S]``.
        mask: what was found, ``[H,W,S]``.
        spacing: height and width of a pixel, in mm.
        numbers: index of each slice in the array of the input; None for an image.
    """

    image: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float]
    numbers: list[int] | None

    @classmethod
    def of(cls, image: MetaTensor, anomaly_map: MetaTensor, mask: MetaTensor, spatial_dim: int) -> CaseView:
        """Turn a case upright, as the network saw it.

        Args:
            image: ``[C,...]`` in [0,1], in the orientation of the input.
            anomaly_map: ``[1,...]`` likewise.
            mask: ``[1,...]`` likewise.
            spatial_dim: axis of the upright volume across which slices are taken.

        Returns:
            The view.
        """
        oriented = Orientation(axcodes=UPRIGHT[: image.ndim - 1], labels=None)
        shown: Any = oriented(image.cpu())
        spacing = [float(length) for length in shown.pixdim]
        volumes: list[torch.Tensor] = [shown, oriented(anomaly_map.cpu()), oriented(mask.cpu())]
        if shown.ndim == 4:
            volumes = [volume.movedim(spatial_dim + 1, 3) for volume in volumes]
            del spacing[spatial_dim]
            _, direction = slice_axis(np.asarray(image.affine), spatial_dim)
            numbers = list(range(volumes[0].shape[3]))[::direction]
        else:
            volumes = [picture.unsqueeze(3) for picture in volumes]
            numbers = None
        image_, scores, found = (np.asarray(volume) for volume in volumes)
        return cls(image_, scores[0], found[0] > 0, (spacing[0], spacing[1]), numbers)

    @property
    def foreground(self) -> np.ndarray:
        """Where the image is not background, ``[H,W,S]``."""
        return foreground_of(self.image)

    def box(self, margin: int = 4) -> tuple[slice, slice]:
        """Rows and columns without a border of background, but for a margin in pixels."""
        rows, columns = (np.flatnonzero(self.foreground.any(axes)) for axes in ((1, 2), (0, 2)))
        return (
            slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
            slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
        )


def foreground_of(image: np.ndarray) -> np.ndarray:
    """All but the most frequent grey value, unless that is of the brighter half or the only one.

    A background need not be 0: it is scaled as well, which makes it grey where other voxels are negative.

    Args:
        image: ``[C,...]``.

    Returns:
        ``[...]``, true in the foreground.
    """
    grey = image.max(0)
    values, counts = np.unique(grey, return_counts=True)
    most_frequent = values[counts.argmax()]
    return (grey != most_frequent) | (most_frequent > np.median(grey)) | (len(values) == 1)


def slice_axis(affine: np.ndarray, spatial_dim: int) -> tuple[int, int]:
    """Axis of an array that an axis of the upright volume comes from, and 1 or -1 as it runs the same way or back."""
    world_axis, sign = nib.orientations.axcodes2ornt(UPRIGHT)[spatial_dim]
    orientation = nib.orientations.io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == world_axis)[0])
    return axis, 1 if orientation[axis, 1] == sign else -1
