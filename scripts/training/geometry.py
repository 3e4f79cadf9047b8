"""Geometry of a case, kept next to its embeddings: what their scores need to become regions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from ..data.foreground import foreground_mask
from ..inference.inferer import DPMMInferer, nonempty_slices
from ..inference.measurements import voxel_mm3
from ..inference.regions import Regions, candidate_regions
from ..models.network import PatchAnomalyNetwork


class CaseGeometry(NamedTuple):
    """Foreground and size of the slices of a case.

    Attributes:
        foreground: ``[S,H,W]``, true where the image is not background.
        nonempty: indices of the s slices that have embeddings.
        voxel_mm3: volume of a voxel in mm³; 1 for an image, whose regions are measured in pixels.
        spacing: distances of slices, rows and columns in mm; None for an image.
    """

    foreground: np.ndarray
    nonempty: np.ndarray
    voxel_mm3: float
    spacing: np.ndarray | None

    @classmethod
    def of(cls, image: torch.Tensor, inferer: DPMMInferer, axis: int | None = None) -> CaseGeometry:
        """Take the geometry of a case.

        Args:
            image: an image ``[C,H,W]`` or a volume ``[C,H,W,D]`` with an affine.
            inferer: cuts a volume into slices.
            axis: axis of a volume across which slices are taken; None for the inferer's ``spatial_dim``.

        Returns:
            The geometry.
        """
        axis = inferer.spatial_dim if axis is None else axis
        (slices,) = inferer.slices(image.unsqueeze(0), axis)
        foreground = torch.from_numpy(foreground_mask(image.cpu().numpy()))[None, None]
        (masks,) = inferer.slices(foreground, axis)
        voxel_size, spacing = 1.0, None
        if image.ndim == 4:
            affine = np.asarray(image.affine, dtype=float) if isinstance(image, MetaTensor) else np.eye(4)
            others = [other for other in range(3) if other != axis]
            voxel_size, spacing = voxel_mm3(affine), nib.affines.voxel_sizes(affine)[[axis, *others]]
        return cls(masks[:, 0].numpy(), nonempty_slices(slices).cpu().numpy(), voxel_size, spacing)

    def save(self, file: BinaryIO) -> None:
        """Write a compressed file."""
        np.savez_compressed(
            file,
            foreground=np.packbits(self.foreground),
            shape=self.foreground.shape,
            nonempty=self.nonempty,
            voxel_mm3=self.voxel_mm3,
            spacing=[] if self.spacing is None else self.spacing,
        )

    @classmethod
    def load(cls, path: Path) -> CaseGeometry:
        """Read a file of `save`."""
        with np.load(path) as saved:
            shape = tuple(saved["shape"].tolist())
            foreground = np.unpackbits(saved["foreground"], count=math.prod(shape)).reshape(shape).astype(bool)
            spacing = saved["spacing"] if len(saved["spacing"]) else None
            return cls(foreground, saved["nonempty"], float(saved["voxel_mm3"]), spacing)

    def patch_foreground(self, network: PatchAnomalyNetwork) -> np.ndarray:
        """Select the patches whose centre is in the foreground.

        Args:
            network: its encoder's patch grid.

        Returns:
            ``[s, h*w]``, true for these patches; true everywhere if no patch is in the foreground.
        """
        height, width = self.foreground.shape[1:]
        rows, columns = (
            _pixels_of_patches(*sizes, network.patch_size)
            for sizes in zip((height, width), network.resized(height, width), strict=True)
        )
        padded = np.pad(self.foreground[self.nonempty], ((0, 0), (0, 1), (0, 1)))  # patches of the padding
        selected = padded[:, rows[:, None], columns].reshape(len(self.nonempty), -1)
        return selected if selected.any() else np.ones_like(selected)

    def regions(self, anomaly_map: np.ndarray, min_region_mm3: float) -> Regions:
        """Find the regions of the calibrated map ``[S,H,W]`` of the case, as `DetectRegionsd` does."""
        return candidate_regions(anomaly_map, self.foreground, min_region_mm3, self.voxel_mm3, self.spacing)


def _pixels_of_patches(n_pixels: int, n_resized: int, patch_size: int) -> np.ndarray:
    """Find the pixel at the centre of each patch along one axis; ``n_pixels`` if the centre is padding."""
    centres = (np.arange(-(-n_resized // patch_size)) + 0.5) * patch_size
    return np.where(centres < n_resized, np.minimum(centres * n_pixels / n_resized, n_pixels - 1), n_pixels).astype(int)
