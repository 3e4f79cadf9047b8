"""Every patch of the normals, searched exactly for the nearest: AnomalyDINO without its augmentations."""

from __future__ import annotations

from collections.abc import Iterable

import faiss
import numpy as np


class MemoryBank:
    """Patches that are kept.

    Args:
        parts: l2-normalised patches, ``[N,D]`` each.
        n_features: D.
    """

    def __init__(self, parts: Iterable[np.ndarray], n_features: int) -> None:
        self.index = faiss.IndexFlatIP(n_features)
        for part in parts:
            self.index.add(part)

    @property
    def n_numbers(self) -> int:
        """How many numbers are kept."""
        return self.index.ntotal * self.index.d

    def distances(self, patches: np.ndarray) -> np.ndarray:
        """Cosine distances ``[N]`` of l2-normalised patches ``[N,D]`` to the nearest that is kept."""
        return 1 - self.index.search(patches, 1)[0][:, 0]
