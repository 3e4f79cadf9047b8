"""What the mixture makes of each patch, seen while the encoder runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from ..case_view import CaseView
from ..encoder import PATCH_SIZE
from ..inferer import occupied_batches
from ..mixture import SCORE_KINDS
from ..network import PatchAnomalyNetwork


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

    def on_foreground(self, foreground: np.ndarray) -> np.ndarray:
        """Which patches ``[s,h,w]`` see some of the foreground ``[H,W,S]``."""
        seen = np.zeros(self.components.shape, bool)
        for index, number in enumerate(self.slices):
            rows, columns = np.nonzero(foreground[..., number])
            seen[index, self.rows[rows], self.columns[columns]] = True
        return seen


class PatchObserver:
    """Keeps the component and the likelihood of every patch of a case; the embeddings are not kept, nor made anew.

    Args:
        network: fitted and calibrated by the time it is used.
    """

    def __init__(self, network: PatchAnomalyNetwork) -> None:
        self.network = network
        self._hook: RemovableHandle | None = None
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []

    def start(self) -> None:
        """Look on from now."""
        self.stop()
        self._hook = self.network.encoder.register_forward_hook(self)

    def stop(self) -> None:
        """Look on no more."""
        if self._hook is not None:
            self._hook.remove()

    def forget(self) -> None:
        """Begin another case."""
        self._seen.clear()

    @torch.no_grad()
    def __call__(self, encoder: torch.nn.Module, images: Any, embeddings: torch.Tensor) -> None:
        """Look at embeddings ``[B,D,h,w]``."""
        b, d, h, w = embeddings.shape
        samples = embeddings.permute(0, 2, 3, 1).reshape(-1, d).float()
        components, log_likelihood = self.network.mixture(samples)
        kind = SCORE_KINDS.index("negative_log_likelihood")
        rarity = self.network.calibration(-log_likelihood, kind, self.network.target_fpr)
        self._seen.append((components.reshape(b, h, w).cpu().numpy(), rarity.reshape(b, h, w).cpu().numpy()))

    def patches(self, view: CaseView) -> CasePatches:
        """The patches of the present case.

        Args:
            view: the case as the network saw it.

        Raises:
            RuntimeError: the encoder has not seen each slice that holds something once.
        """
        occupied = occupied_batches(torch.from_numpy(view.image).movedim(3, 0), batch_size=1)
        slices = torch.cat(occupied).numpy()
        components, rarity = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
        if len(components) != len(slices):
            raise RuntimeError(f"The encoder saw {len(components)} slices; expected {len(slices)}, each of them once.")
        height, width = view.scores.shape[:2]
        resized = self.network.resized(height, width)
        return CasePatches(slices, components, rarity, *map(_patch_of_pixel, (height, width), resized))


def _patch_of_pixel(n_pixels: int, n_resized: int) -> np.ndarray:
    """The patch ``[n_pixels]`` that holds the middle of each pixel, along one axis."""
    return ((np.arange(n_pixels) + 0.5) * n_resized / n_pixels / PATCH_SIZE).astype(int)
