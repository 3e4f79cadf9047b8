"""Slice-wise inference on images and volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from tqdm import tqdm

from ..errors import InputError
from ..models.network import MIN_SIDE


class DPMMInferer(Inferer):
    """Apply a two-dimensional network to the slices of volumes, or to images as they are.

    Slices with a single grey value are empty: the network does not see them and their map is 0, the value of a typical
    normal patch.

    Args:
        spatial_dim: axis of a volume across which slices are taken; 2, the last, gives axial slices of a volume
            oriented as the bundle's preprocessing does.
        slice_batch_size: number of slices in a batch.
        slice_step: score every n-th slice of a volume, and the last one; interpolate the rest linearly.
        progress: whether to show a progress bar of the batches.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self, spatial_dim: int = 2, slice_batch_size: int = 4, slice_step: int = 1, progress: bool = False
    ) -> None:
        super().__init__()
        if spatial_dim not in (0, 1, 2):
            raise InputError(f"spatial_dim must be 0, 1 or 2; got {spatial_dim}.")
        for name, value in (("slice_batch_size", slice_batch_size), ("slice_step", slice_step)):
            if value < 1:
                raise InputError(f"{name} must be at least 1; got {value}.")
        self.spatial_dim = spatial_dim
        self.slice_batch_size = slice_batch_size
        self.slice_step = slice_step
        self.progress = progress

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Compute the anomaly maps of images or volumes.

        Args:
            inputs: ``[N,C,H,W]`` or ``[N,C,H,W,D]`` in [0,1].
            network: ``[B,C,h,w]`` -> ``[B,1,h,w]``; a module, a `ScriptModule` or any callable.
            args: further arguments of ``network``.
            kwargs: further keyword arguments of ``network``.

        Returns:
            ``[N,1,...]`` of the same spatial shape; a `MetaTensor` if ``inputs`` is one.

        Raises:
            ValueError: the inputs have another number of dimensions.
            InputError: the slices are too small.
        """
        stacks = self.slices(inputs)
        nonempty = [nonempty_slices(stack) for stack in stacks]
        return self.stack_slices(self.maps(stacks, nonempty, partial(network, *args, **kwargs)), inputs)

    def slices(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Split a batch of images or volumes into slices.

        Args:
            inputs: ``[N,C,H,W]`` or ``[N,C,H,W,D]``.

        Returns:
            N plain tensors: ``[1,C,H,W]`` for images, ``[S,C,h,w]`` for volumes of S slices; views of the inputs.

        Raises:
            ValueError: the inputs have another number of dimensions.
            InputError: the slices are too small.
        """
        if inputs.ndim not in (4, 5):
            raise ValueError(f"Inputs must be [N,C,H,W] or [N,C,H,W,D]; got {list(inputs.shape)}.")
        plain = inputs.as_subclass(torch.Tensor)
        stacks = plain.movedim(self.spatial_dim + 2, 1) if inputs.ndim == 5 else plain.unsqueeze(1)
        height, width = stacks.shape[3:]
        if min(height, width) < MIN_SIDE:
            raise InputError(
                f"slices across spatial_dim {self.spatial_dim} have {height} x {width} pixels; expected at least "
                f"{MIN_SIDE} x {MIN_SIDE}, so take slices across another spatial_dim or give a larger image"
            )
        return list(stacks)

    def scored(self, nonempty: torch.Tensor) -> torch.Tensor:
        """Select the slices that the network sees from the nonempty slices ``[s]`` of a volume."""
        return torch.unique(torch.cat([nonempty[:: self.slice_step], nonempty[-1:]]))

    def maps(
        self,
        stacks: Sequence[torch.Tensor],
        nonempty: Sequence[torch.Tensor],
        network: Callable[[torch.Tensor], torch.Tensor],
    ) -> list[torch.Tensor]:
        """Compute the anomaly maps of the slices of several cases, which share batches.

        Args:
            stacks: slices ``[S,C,h,w]`` of each case, all of one size.
            nonempty: indices of the nonempty slices of each case, see `nonempty_slices`.
            network: ``[B,C,h,w]`` -> ``[B,1,h,w]``; it sees the slices in order.

        Returns:
            For each case its maps ``[S,1,h,w]``.
        """
        maps = [stack.new_zeros((len(stack), 1, *stack.shape[2:]), dtype=torch.float32) for stack in stacks]
        positions = [(case, index) for case, slices in enumerate(nonempty) for index in self.scored(slices).tolist()]
        batches = [
            positions[start : start + self.slice_batch_size]
            for start in range(0, len(positions), self.slice_batch_size)
        ]
        for batch in tqdm(batches, desc="scoring", unit="batch", leave=False, disable=not self.progress):
            slice_maps = network(torch.stack([stacks[case][index] for case, index in batch]))
            for (case, index), slice_map in zip(batch, slice_maps, strict=True):
                maps[case][index] = slice_map
        for case_maps, slices in zip(maps, nonempty, strict=True):
            _interpolate(case_maps, slices.tolist(), self.scored(slices).tolist())
        return maps

    def stack_slices(self, maps: Sequence[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Stack the maps ``[S,1,h,w]`` of each case of a batch ``[N,C,...]`` to ``[N,1,...]``."""
        joined = torch.stack(list(maps)) if len(maps) > 1 else maps[0].unsqueeze(0)
        joined = joined.movedim(1, self.spatial_dim + 2) if inputs.ndim == 5 else joined.squeeze(1)
        return convert_to_dst_type(joined, inputs, dtype=torch.float32)[0]


def nonempty_slices(slices: torch.Tensor) -> torch.Tensor:
    """Return the indices of the slices ``[S,C,h,w]`` with more than one grey value."""
    return torch.nonzero(slices.amax((1, 2, 3)) > slices.amin((1, 2, 3))).flatten()


def _interpolate(maps: torch.Tensor, nonempty: list[int], scored: list[int]) -> None:
    """Fill the maps ``[S,1,h,w]`` of the nonempty slices between scored ones."""
    for before, after in pairwise(scored):
        for index in nonempty[nonempty.index(before) + 1 : nonempty.index(after)]:
            torch.lerp(maps[before], maps[after], (index - before) / (after - before), out=maps[index])
