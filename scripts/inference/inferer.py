"""Slice-wise inference on images and volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from tqdm import tqdm

from ..data.foreground import MIN_SIDE
from ..errors import InputError
from .views import check_near_isotropic, check_views, fuse, spacing_of


class Slices(NamedTuple):
    """The S slices of a case across one axis.

    Attributes:
        axis: axis of the volume; None for an image, which is its own slice.
        stack: ``[S,C,h,w]``, a view of the case.
        nonempty: indices of the slices with contrast, see `nonempty_slices`.
    """

    axis: int | None
    stack: torch.Tensor
    nonempty: torch.Tensor

    def unstack(self, maps: torch.Tensor) -> torch.Tensor:
        """Put the maps ``[S,1,h,w]`` of the slices together in the shape of the case ``[1,...]``."""
        return maps.squeeze(0) if self.axis is None else maps.movedim(0, self.axis + 1)


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
        views: axes of a volume across each of which slices are taken; the map is the mean of theirs. They include
            ``spatial_dim``. None for ``spatial_dim`` alone.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        spatial_dim: int = 2,
        slice_batch_size: int = 4,
        slice_step: int = 1,
        progress: bool = False,
        views: Sequence[int] | None = None,
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
        self.views = check_views(views, spatial_dim)

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
            InputError: the slices are too small, or several views are wanted of voxels far from cubes.
        """
        maps = self.maps([self.cut(each) for each in inputs], lambda slices, _: network(slices, *args, **kwargs))
        joined = torch.stack(maps) if len(maps) > 1 else maps[0].unsqueeze(0)
        return convert_to_dst_type(joined, inputs, dtype=torch.float32)[0]

    def axes(self, image: torch.Tensor) -> list[int]:
        """Return the axes across which slices are taken.

        Args:
            image: a case ``[C,H,W]``, which has ``spatial_dim`` alone, or ``[C,H,W,D]``.

        Raises:
            InputError: several views are wanted of voxels far from cubes.
        """
        if image.ndim == 3 or len(self.views) == 1:
            return [self.spatial_dim]
        if (spacing := spacing_of(image)) is not None:
            check_near_isotropic(spacing)
        return self.views

    def cut(self, image: torch.Tensor) -> list[Slices]:
        """Cut a case ``[C,H,W]`` or ``[C,H,W,D]`` into slices, for each view.

        Raises:
            ValueError: the case has another number of dimensions.
            InputError: see `axes` and `slices`.
        """
        cut = []
        for axis in self.axes(image):
            (stack,) = self.slices(image.unsqueeze(0), axis)
            cut.append(Slices(axis if image.ndim == 4 else None, stack, nonempty_slices(stack)))
        return cut

    def slices(self, inputs: torch.Tensor, axis: int | None = None) -> list[torch.Tensor]:
        """Split a batch of images or volumes into slices.

        Args:
            inputs: ``[N,C,H,W]`` or ``[N,C,H,W,D]``.
            axis: axis of a volume across which slices are taken; None for ``spatial_dim``.

        Returns:
            N plain tensors: ``[1,C,H,W]`` for images, ``[S,C,h,w]`` for volumes of S slices; views of the inputs.

        Raises:
            ValueError: the inputs have another number of dimensions.
            InputError: the slices are too small.
        """
        if inputs.ndim not in (4, 5):
            raise ValueError(f"Inputs must be [N,C,H,W] or [N,C,H,W,D]; got {list(inputs.shape)}.")
        axis = self.spatial_dim if axis is None else axis
        plain = inputs.as_subclass(torch.Tensor)
        stacks = plain.movedim(axis + 2, 1) if inputs.ndim == 5 else plain.unsqueeze(1)
        height, width = stacks.shape[3:]
        if min(height, width) < MIN_SIDE:
            is_single = len(self.views) == 1
            remedy = "take slices across another spatial_dim" if is_single else f"leave {axis} out of views"
            raise InputError(
                f"slices across spatial_dim {axis} have {height} x {width} pixels; expected at least "
                f"{MIN_SIDE} x {MIN_SIDE}, so {remedy} or give a larger image"
            )
        return list(stacks)

    def scored(self, nonempty: torch.Tensor) -> torch.Tensor:
        """Select the slices that the network sees from the nonempty slices ``[s]`` of a volume."""
        return torch.unique(torch.cat([nonempty[:: self.slice_step], nonempty[-1:]]))

    def maps(
        self, cases: Sequence[Sequence[Slices]], network: Callable[[torch.Tensor, int | None], torch.Tensor]
    ) -> list[torch.Tensor]:
        """Compute the anomaly maps of several cases, whose slices share batches: means over their views.

        Args:
            cases: slices of each view of each case, see `cut`; all cases of one size.
            network: slices ``[B,C,h,w]`` and their axis -> ``[B,1,h,w]``; it sees the slices of a view in order.

        Returns:
            The map ``[1,...]`` of each case.
        """
        return fuse(self._view_maps(view, network) for view in zip(*cases, strict=True))

    def _view_maps(
        self, cases: Sequence[Slices], network: Callable[[torch.Tensor, int | None], torch.Tensor]
    ) -> list[torch.Tensor]:
        """Compute the maps ``[1,...]`` of several cases from their slices across one axis."""
        maps = [
            case.stack.new_zeros((len(case.stack), 1, *case.stack.shape[2:]), dtype=torch.float32) for case in cases
        ]
        positions = [
            (case, index) for case, slices in enumerate(cases) for index in self.scored(slices.nonempty).tolist()
        ]
        batches = [
            positions[start : start + self.slice_batch_size]
            for start in range(0, len(positions), self.slice_batch_size)
        ]
        is_silent = None if self.progress and len(batches) > 1 else True  # None: where nothing can be redrawn
        for batch in tqdm(batches, desc="scoring", unit="batch", leave=False, disable=is_silent):
            slice_maps = network(torch.stack([cases[case].stack[index] for case, index in batch]), cases[0].axis)
            for (case, index), slice_map in zip(batch, slice_maps, strict=True):
                maps[case][index] = slice_map
        for case_maps, slices in zip(maps, cases, strict=True):
            _interpolate(case_maps, slices.nonempty.tolist(), self.scored(slices.nonempty).tolist())
        return [slices.unstack(case_maps) for case_maps, slices in zip(maps, cases, strict=True)]


def nonempty_slices(slices: torch.Tensor) -> torch.Tensor:
    """Return the indices of the slices ``[S,C,h,w]`` with more than one grey value."""
    return torch.nonzero(slices.amax((1, 2, 3)) > slices.amin((1, 2, 3))).flatten()


def _interpolate(maps: torch.Tensor, nonempty: list[int], scored: list[int]) -> None:
    """Fill the maps ``[S,1,h,w]`` of the nonempty slices between scored ones."""
    for before, after in pairwise(scored):
        for index in nonempty[nonempty.index(before) + 1 : nonempty.index(after)]:
            torch.lerp(maps[before], maps[after], (index - before) / (after - before), out=maps[index])
