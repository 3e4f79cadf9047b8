"""Slice by slice through images and volumes."""

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
from ..models.encoder import PATCH_SIZE


class DPMMInferer(Inferer):
    """Applies a two-dimensional network to the slices of volumes, or to images as they are.

    Slices with a single grey value hold nothing to look at: the network does not see them and their map is 0, the
    value of a typical normal patch.

    Args:
        spatial_dim: axis of a volume across which slices are taken; 2, the last, gives axial slices of a volume
            oriented as the bundle's preprocessing does.
        slice_batch_size: how many slices the network sees at once.
        slice_step: of a volume one slice of so many is scored, and the last; the maps of those between are interpolated
            linearly.
        progress: whether to show a bar of the slices.

    Raises:
        InputError: an argument out of its range.
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
        stacks = self.slices(inputs)
        occupied = [nonempty_slices(stack) for stack in stacks]
        return self.stack_slices(self.maps(stacks, occupied, partial(network, *args, **kwargs)), inputs)

    def slices(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """The slices of each image or volume of a batch.

        Args:
            inputs: ``[N,C,H,W]`` or ``[N,C,H,W,D]``.

        Returns:
            N plain tensors ``[1,C,H,W]``, or ``[S,C,h,w]`` with the S slices of a volume; they share its memory.

        Raises:
            ValueError: inputs of another number of dimensions.
            InputError: slices smaller than a patch.
        """
        if inputs.ndim not in (4, 5):
            raise ValueError(f"Inputs must be [N,C,H,W] or [N,C,H,W,D]; got {list(inputs.shape)}.")
        plain = inputs.as_subclass(torch.Tensor)
        stacks = plain.movedim(self.spatial_dim + 2, 1) if inputs.ndim == 5 else plain.unsqueeze(1)
        height, width = stacks.shape[3:]
        if min(height, width) < PATCH_SIZE:
            raise InputError(
                f"slices across spatial_dim {self.spatial_dim} have {height} x {width} pixels; expected at least "
                f"{PATCH_SIZE} x {PATCH_SIZE}, so take slices across another spatial_dim or give a larger image"
            )
        return list(stacks)

    def scored(self, occupied: torch.Tensor) -> torch.Tensor:
        """Those of the occupied slices ``[s]`` of a volume that the network sees."""
        return torch.unique(torch.cat([occupied[:: self.slice_step], occupied[-1:]]))

    def maps(
        self,
        stacks: Sequence[torch.Tensor],
        occupied: Sequence[torch.Tensor],
        network: Callable[[torch.Tensor], torch.Tensor],
    ) -> list[torch.Tensor]:
        """Anomaly maps of the slices of several cases, which share batches.

        Args:
            stacks: slices ``[S,C,h,w]`` of each case, all of one size.
            occupied: see `nonempty_slices`, of each case.
            network: ``[B,C,h,w]`` -> ``[B,1,h,w]``; it sees the slices in their order.

        Returns:
            ``[S,1,h,w]`` of each case.
        """
        maps = [stack.new_zeros((len(stack), 1, *stack.shape[2:]), dtype=torch.float32) for stack in stacks]
        places = [(case, index) for case, of_case in enumerate(occupied) for index in self.scored(of_case).tolist()]
        batches = [
            places[start : start + self.slice_batch_size] for start in range(0, len(places), self.slice_batch_size)
        ]
        for batch in tqdm(batches, desc="scoring", unit="batch", leave=False, disable=not self.progress):
            found = network(torch.stack([stacks[case][index] for case, index in batch]))
            for (case, index), of_slice in zip(batch, found, strict=True):
                maps[case][index] = of_slice
        for of_case, chosen in zip(maps, occupied, strict=True):
            _interpolate(of_case, chosen.tolist(), self.scored(chosen).tolist())
        return maps

    def stack_slices(self, maps: Sequence[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Maps ``[S,1,h,w]`` of each case of a batch ``[N,C,...]``, as ``[N,1,...]``."""
        joined = torch.stack(list(maps)) if len(maps) > 1 else maps[0].unsqueeze(0)
        joined = joined.movedim(1, self.spatial_dim + 2) if inputs.ndim == 5 else joined.squeeze(1)
        return convert_to_dst_type(joined, inputs, dtype=torch.float32)[0]


def nonempty_slices(slices: torch.Tensor) -> torch.Tensor:
    """Indices of the slices ``[S,C,h,w]`` that have more than one grey value."""
    return torch.nonzero(slices.amax((1, 2, 3)) > slices.amin((1, 2, 3))).flatten()


def _interpolate(maps: torch.Tensor, occupied: list[int], scored: list[int]) -> None:
    """Fill the maps ``[S,1,h,w]`` of occupied slices between scored ones."""
    for before, after in pairwise(scored):
        for index in occupied[occupied.index(before) + 1 : occupied.index(after)]:
            torch.lerp(maps[before], maps[after], (index - before) / (after - before), out=maps[index])
