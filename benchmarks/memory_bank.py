"""A memory bank of all patches of the normals: AnomalyDINO without its augmentations.

`python -m benchmarks.memory_bank JSON` measures a search in a process of its own; JSON has the arguments of `measure`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import partial

import faiss
import numpy as np
import torch

from .cost import median_seconds, peak_mb

CHUNK = 20000  # random patches made at once


class MemoryBank:
    """Exact nearest-neighbour search among stored patches; stands in for a mixture of a single score kind.

    Args:
        chunks: l2-normalised patches, ``[N,D]`` each.
        n_features: D.
    """

    score_kinds = ("cosine",)
    means = torch.empty(0)  # on the CPU

    def __init__(self, chunks: Iterable[np.ndarray], n_features: int) -> None:
        self.index = faiss.IndexFlatIP(n_features)
        for chunk in chunks:
            self.index.add(chunk)

    @property
    def n_numbers(self) -> int:
        """Number of stored values."""
        return self.index.ntotal * self.index.d

    def distances(self, patches: np.ndarray) -> np.ndarray:
        """Compute cosine distances ``[N]`` of l2-normalised patches ``[N,D]`` to their nearest neighbours."""
        return 1 - self.index.search(patches, 1)[0][:, 0]

    def anomaly_score(self, patches: torch.Tensor, kind: str) -> torch.Tensor:
        """Return the distances ``[N]`` of patches ``[N,D]``."""
        return torch.from_numpy(self.distances(patches.numpy()))


def measure(n_stored: int, n_patches: int, n_features: int, min_run_time: float = 30) -> dict[str, float]:
    """Search for random patches: the cost of an exact search does not depend on the values.

    Args:
        n_stored: number of patches in the bank.
        n_patches: number of patches of a slice.
        n_features: length of an embedding.
        min_run_time: see `median_seconds`.

    Returns:
        Seconds of the ``search`` for a slice, ``bank_mb`` and the ``peak_mb`` of the process.
    """
    generator = np.random.default_rng(0)

    def directions(n: int) -> np.ndarray:
        x = generator.standard_normal((n, n_features), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    chunks = (directions(min(CHUNK, n_stored - start)) for start in range(0, n_stored, CHUNK))
    bank = MemoryBank(chunks, n_features)
    search = median_seconds(partial(bank.distances, directions(n_patches)), min_run_time)
    return {"search": search, "bank_mb": 4 * bank.n_numbers / 1e6, "peak_mb": peak_mb()}


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
