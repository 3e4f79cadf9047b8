"""Slice by slice through images and volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from tqdm import tqdm

from .encoder import PATCH_SIZE
from .errors import InputError


class DPMMInferer(Inferer):
    """Applies a two-dimensional network to the slices of volumes, or to images as they are.

    Slices with a single grey value hold nothing to look at: the network does not see them and their map is 0, the
    value of a typical normal patch.

    Args:
        spatial_dim: axis of a volume across which slices are taken; 2, the last, gives axial slices of a volume
            oriented as the bundle's preprocessing does.
        slice_batch_size: how many slices the network sees at once.
        progress: whether to show a bar of the slices.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(self, spatial_dim: int = 2, slice_batch_size: int = 4, progress: bool = False) -> None:
        super().__init__()
        if spatial_dim not in (0, 1, 2):
            raise InputError(f"spatial_dim must be 0, 1 or 2; got {spatial_dim}.")
        if slice_batch_size < 1:
            raise InputError(f"slice_batch_size must be at least 1; got {slice_batch_size}.")
        self.spatial_dim = spatial_dim
        self.slice_batch_size = slice_batch_size
        self.progress = progress

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Anomaly maps of images or volumes.

        Args:
            inputs: ``[N,C,H,W]`` or ``[N,C,H,W,D]`` in [0,1].
            network: ``[B,C,h,w]`` -> ``[B,1,h,w]``; a module, a `ScriptModule` or any callable.
            args: handed on to ``network``.
            kwargs: handed on to ``network``.

        Returns:
            ``[N,1,...]`` of the same spatial shape; a `MetaTensor` where ``inputs`` is one.

        Raises:
            ValueError: inputs of another number of dimensions.
            InputError: slices smaller than a patch.
        """
        slices = self.slices(inputs)
        maps = slices.new_zeros((len(slices), 1, *slices.shape[2:]), dtype=torch.float32)
        batches = occupied_batches(slices, self.slice_batch_size)
        for chosen in tqdm(batches, desc="scoring", unit="batch", leave=False, disable=not self.progress):
            maps[chosen] = network(slices[chosen], *args, **kwargs).to(maps)
        if inputs.ndim == 5:
            maps = maps.unflatten(0, (len(inputs), -1)).movedim(1, self.spatial_dim + 2)
        return convert_to_dst_type(maps, inputs, dtype=torch.float32)[0]

    def slices(self, inputs: torch.Tensor) -> torch.Tensor:
        """All slices of a batch.

        Args:
            inputs: ``[N,C,H,W]`` or ``[N,C,H,W,D]``.

        Returns:
            A plain tensor ``[N,C,H,W]``, or ``[N*S,C,h,w]`` with the S slices of each volume in a row.

        Raises:
            ValueError: inputs of another number of dimensions.
            InputError: slices smaller than a patch.
        """
        if inputs.ndim not in (4, 5):
            raise ValueError(f"Inputs must be [N,C,H,W] or [N,C,H,W,D]; got {list(inputs.shape)}.")
        slices = inputs.as_subclass(torch.Tensor)
        if inputs.ndim == 5:
            slices = slices.movedim(self.spatial_dim + 2, 1).flatten(0, 1)
        height, width = slices.shape[2:]
        if min(height, width) < PATCH_SIZE:
            raise InputError(
                f"slices across spatial_dim {self.spatial_dim} have {height} x {width} pixels; expected at least "
                f"{PATCH_SIZE} x {PATCH_SIZE}, so take slices across another spatial_dim or give a larger image"
            )
        return slices


def occupied_batches(slices: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Indices of the slices ``[N,C,H,W]`` that have more than one grey value, in batches."""
    flat = slices.flatten(1)
    occupied = torch.nonzero(flat.amax(1) > flat.amin(1)).flatten()
    return list(occupied.split(batch_size)) if len(occupied) else []
