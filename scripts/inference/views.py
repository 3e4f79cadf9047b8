"""Views of a volume: the axes across which its slices are taken, and the mean of their maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from ..errors import InputError

MAX_ANISOTROPY = 2.0  # longest over shortest side of a voxel, beyond which one view's pixels are too coarse


def check_views(views: Sequence[int] | None, spatial_dim: int) -> list[int]:
    """Check the axes across which slices are taken.

    Args:
        views: the axes; None for ``spatial_dim`` alone.
        spatial_dim: axis of the slices that pictures show.

    Returns:
        The axes in increasing order.

    Raises:
        InputError: an axis is unknown or named twice, or ``spatial_dim`` is missing.
    """
    axes = [spatial_dim] if views is None else sorted(views)
    if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
        raise InputError(f"views must be different axes of 0, 1 and 2; got {list(views or [])}.")
    if spatial_dim not in axes:
        raise InputError(f"views must include spatial_dim {spatial_dim}, whose slices pictures show; got {axes}.")
    return axes


def is_near_isotropic(spacing: Sequence[float] | np.ndarray) -> bool:
    """Return whether all views of a volume are of use; ``spacing`` has the sides of a voxel in mm."""
    return bool(max(spacing) <= MAX_ANISOTROPY * min(spacing))


def check_near_isotropic(spacing: Sequence[float] | np.ndarray) -> None:
    """Check that all views of a volume are of use.

    Args:
        spacing: sides of a voxel in mm.

    Raises:
        InputError: one side is more than ``MAX_ANISOTROPY`` times another.
    """
    if not is_near_isotropic(spacing):
        sides = " x ".join(f"{length:.3g}" for length in spacing)
        raise InputError(
            f"its voxels are {sides} mm; several views need sides that differ by a factor of at most "
            f"{MAX_ANISOTROPY:g}, so fit and score such volumes with views off, or resample them"
        )


def spacing_of(volume: torch.Tensor) -> np.ndarray | None:
    """Return the sides of a voxel in mm along each axis; None for a plain tensor, which has no affine."""
    if not isinstance(volume, MetaTensor):
        return None
    affine = np.asarray(volume.affine, dtype=float)
    return np.asarray(nib.affines.voxel_sizes(affine.reshape(-1, *affine.shape[-2:])[0]))


def fuse(views: Iterable[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Average the maps of each case over views; only the sums and the maps of one view are held.

    Args:
        views: for each view the maps of the cases, all of a case in one shape; the first ones become the means.

    Returns:
        The mean map of each case; the very map if there is one view.
    """
    fused: list[torch.Tensor] = []
    n_views = 0
    for maps in views:
        n_views += 1
        fused = [total.add_(view) for total, view in zip(fused, maps, strict=True)] if fused else list(maps)
        del maps  # before the next view is computed
    return [total.div_(n_views) for total in fused] if n_views > 1 else fused
