"""What the mixture makes of each patch, seen while the network scores it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..models.encoder import PATCH_SIZE
from ..models.mixture import SCORE_KINDS
from ..models.network import PatchAnomalyNetwork
from .visualization import SliceView

Seen = list[tuple[torch.Tensor, torch.Tensor]]


class SeenPatches(NamedTuple):
    """What was seen of the s slices of a case that were scored.

    Attributes:
        slices: their indices ``[s]``, rising.
        components: the component that each patch most probably belongs to, ``[s,h*w]``.
        log_likelihood: of each patch, in nats, ``[s,h*w]``.
    """

    slices: torch.Tensor
    components: torch.Tensor
    log_likelihood: torch.Tensor


@dataclass(frozen=True)
class CasePatches:
    """The patches of the s slices of a case that were scored.

    Attributes:
        slices: their indices ``[s]``, rising.
        components: the component that each patch most probably belongs to, ``[s,h,w]``.
        rarity: negative log-likelihood of each patch ``[s,h,w]`` in units of its limit: 0 as in a typical normal
            patch, above 1 as in few of them.
        rows: of each row of pixels its row of patches, ``[H]``.
        columns: of each column of pixels its column of patches, ``[W]``.
    """

    slices: np.ndarray
    components: np.ndarray
    rarity: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, seen: SeenPatches, view: SliceView, network: PatchAnomalyNetwork) -> CasePatches:
        """Bring what was seen into the places and the units of a case.

        Args:
            seen: of this case.
            view: the case as the network saw it.
            network: what scored it.

        Returns:
            The patches.
        """
        height, width = view.scores.shape[:2]
        resized = network.resized(height, width)
        shape = (len(seen.slices), *(-(-length // PATCH_SIZE) for length in resized))
        kind = SCORE_KINDS.index("negative_log_likelihood")
        likelihood = seen.log_likelihood.to(network.calibration.rates)
        rarity = network.calibration(-likelihood, kind, network.target_fpr).cpu()
        return cls(
            seen.slices.numpy(),
            seen.components.reshape(shape).numpy(),
            rarity.reshape(shape).numpy(),
            *map(_patch_of_pixel, (height, width), resized),
        )

    def on_foreground(self, foreground: np.ndarray) -> np.ndarray:
        """Which patches ``[s,h,w]`` see some of the foreground ``[H,W,S]``."""
        seen = np.zeros(self.components.shape, bool)
        for index, number in enumerate(self.slices):
            rows, columns = np.nonzero(foreground[..., number])
            seen[index, self.rows[rows], self.columns[columns]] = True
        return seen


class PatchObserver:
    """Keeps the component and the likelihood of every patch; the embeddings are not kept, nor made anew.

    Where the likelihood is the score, the network asks the mixture for both and its answer is kept; where another is,
    the mixture is asked once more.

    Args:
        network: fitted and calibrated by the time it is used.
    """

    def __init__(self, network: PatchAnomalyNetwork) -> None:
        self.network = network

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        """Look on.

        Yields:
            A list, to which components and log-likelihoods ``[N]`` of the patches of each batch are added.
        """
        seen: Seen = []
        before: list[int] = []  # how many were seen when the encoder began with each batch
        mixture, encoder = self.network.mixture, self.network.encoder
        hooks = [
            mixture.register_forward_hook(lambda _, given, output: seen.append(output)),
            # An encoder that tries several runtimes asks the mixture what they are worth: that is not of the batch.
            encoder.register_forward_pre_hook(lambda *_: before.append(len(seen))),
            encoder.register_forward_hook(lambda *_: seen.__delitem__(slice(before[-1], None))),
        ]
        if self.network.score != "negative_log_likelihood":
            hooks.append(encoder.register_forward_hook(self._ask))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _ask(self, encoder: torch.nn.Module, images: Any, embeddings: torch.Tensor) -> None:
        self.network.mixture(embeddings.movedim(1, 3).flatten(0, 2))


def split_patches(seen: Seen, slices: Sequence[torch.Tensor]) -> list[SeenPatches | None]:
    """What was seen of each case of a batch of cases.

    Args:
        seen: see `PatchObserver.watch`.
        slices: indices of those of each case that were scored, in the order in which they were.

    Returns:
        For each case what was seen of it; None where nothing was seen of any.
    """
    if not seen:
        return [None] * len(slices)
    counts = [len(of_case) for of_case in slices]
    parts = [torch.cat(values).reshape(sum(counts), -1).cpu().split(counts) for values in zip(*seen, strict=True)]
    return [SeenPatches(*of_case) for of_case in zip(slices, *parts, strict=True)]


def _patch_of_pixel(n_pixels: int, n_resized: int) -> np.ndarray:
    """The patch ``[n_pixels]`` that holds the middle of each pixel, along one axis."""
    return ((np.arange(n_pixels) + 0.5) * n_resized / n_pixels / PATCH_SIZE).astype(int)
