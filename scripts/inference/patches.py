"""Components and likelihoods of the patches of a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..models.mixture import SCORE_KINDS
from ..models.network import PatchAnomalyNetwork, PatchOutput
from .inferer import Slices
from .visualization import SliceView


class Window(NamedTuple):
    """The part of a case that the network saw, which the field of view sets.

    Attributes:
        first: first slice, row and column; below 0 where background was added.
        size: rows and columns.
    """

    first: tuple[int, int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, slices: Slices, start: Sequence[int] | np.ndarray) -> Window:
        """Take the window of a case from its slices and the first voxel of its field of view ``[3]``."""
        across = slices.axis
        axes = [0, 1] if across is None else [across, *(axis for axis in range(3) if axis != across)]
        first = [int(start[axis]) for axis in axes]
        row, column = first[-2:]
        height, width = slices.stack.shape[2:]
        return cls((0 if across is None else first[0], row, column), (height, width))


class PatchAssignments(NamedTuple):
    """The patches of the s scored slices of a case.

    Attributes:
        slices: indices of the slices ``[s]`` within the window, in increasing order.
        components: most probable component of each patch ``[s,h*w]``.
        log_likelihood: log-likelihood of each patch ``[s,h*w]``, in nats.
        window: what the patches cover.
    """

    slices: torch.Tensor
    components: torch.Tensor
    log_likelihood: torch.Tensor
    window: Window


@dataclass(frozen=True)
class CasePatches:
    """The patches of the s scored slices of a case, placed on its pixels.

    Attributes:
        slices: indices of the slices ``[s]``, in increasing order.
        components: most probable component of each patch ``[s,h,w]``.
        rarity: calibrated negative log-likelihood of each patch ``[s,h,w]``: 0 for a typical normal patch, 1 at the
            decision threshold of this score.
        rows: row of patches that each row of pixels belongs to, ``[H]``.
        columns: column of patches that each column of pixels belongs to, ``[W]``.
    """

    slices: np.ndarray
    components: np.ndarray
    rarity: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, assignments: PatchAssignments, view: SliceView, network: PatchAnomalyNetwork) -> CasePatches:
        """Place patches on the pixels of a case and calibrate their likelihoods.

        Args:
            assignments: patches of the case.
            view: the whole case, upright.
            network: the network that scored it.

        Returns:
            The patches.
        """
        (first_slice, *first), size = assignments.window
        resized = network.resized(*size)
        shape = (len(assignments.slices), *network.patch_grid(*size))
        kind = SCORE_KINDS.index("negative_log_likelihood")
        log_likelihood = assignments.log_likelihood.to(network.calibration.rates)
        rarity = network.calibration(-log_likelihood, kind, network.target_fpr).cpu()
        return cls(
            assignments.slices.numpy() + first_slice,
            assignments.components.reshape(shape).numpy(),
            rarity.reshape(shape).numpy(),
            *(
                _patch_of_pixel(*sizes, network.patch_size)
                for sizes in zip(view.scores.shape[:2], first, size, resized, strict=True)
            ),
        )

    def on_foreground(self, foreground: np.ndarray) -> np.ndarray:
        """Select the patches ``[s,h,w]`` that touch the foreground ``[H,W,S]``."""
        selected = np.zeros(self.components.shape, bool)
        for index, number in enumerate(self.slices):
            rows, columns = np.nonzero(foreground[..., number])
            selected[index, self.rows[rows], self.columns[columns]] = True
        return selected


def split_by_case(
    outputs: Sequence[PatchOutput], slices: Sequence[torch.Tensor], windows: Sequence[Window]
) -> list[PatchAssignments] | list[None]:
    """Split the patches of batches that several cases share.

    Args:
        outputs: network output for each batch.
        slices: for each case the indices of its scored slices, in the order in which they were scored.
        windows: for each case what its patches cover.

    Returns:
        The patches of each case; None for each case if there are no outputs.
    """
    if not outputs:
        return [None] * len(slices)
    counts = [len(indices) for indices in slices]
    components, log_likelihood = (
        torch.cat(values).cpu().split(counts)
        for values in ([output.components for output in outputs], [output.log_likelihood for output in outputs])
    )
    return [PatchAssignments(*parts) for parts in zip(slices, components, log_likelihood, windows, strict=True)]


def _patch_of_pixel(n_pixels: int, first: int, n_seen: int, n_resized: int, patch_size: int) -> np.ndarray:
    """Find the patch ``[n_pixels]`` that holds the centre of each pixel, or the nearest one, along one axis.

    Args:
        n_pixels: pixels of the case.
        first: first pixel that the network saw.
        n_seen: pixels that it saw.
        n_resized: pixels after resizing.
        patch_size: length of a patch in these.
    """
    seen = np.clip(np.arange(n_pixels) - first, 0, n_seen - 1)
    return ((seen + 0.5) * n_resized / n_seen / patch_size).astype(int)
