"""Measures the search of a memory bank in a process of its own: `python -m benchmarks.inference.bank JSON`."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.memory_bank import MemoryBank

from .memory import peak_mb

PART = 20000  # patches made at once


def measure(n_kept: int, n_patches: int, n_features: int, repeats: int = 3) -> dict[str, float]:
    """Search the nearest of random patches: what an exact search costs does not depend on the values.

    Args:
        n_kept: patches in the bank.
        n_patches: patches of a slice.
        n_features: length of an embedding.
        repeats: how many slices.

    Returns:
        Seconds of the ``search`` for a slice (median), ``bank_mb`` and the process's ``peak_mb`` of memory.
    """
    generator = np.random.default_rng(0)

    def directions(n: int) -> np.ndarray:
        x = generator.standard_normal((n, n_features), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, n_kept, PART):
            yield directions(min(PART, n_kept - start))

    bank = MemoryBank(parts(), n_features)
    bank.distances(directions(8))
    seconds = []
    for _ in range(repeats):
        patches = directions(n_patches)
        begin = time.perf_counter()
        bank.distances(patches)
        seconds.append(time.perf_counter() - begin)
    return {
        "search": statistics.median(seconds),
        "bank_mb": 4 * bank.n_numbers / 1e6,
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
