"""Figures of other implementations, in a compact form; `tests.oracles.__main__` made the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def load_oracle(name: str) -> dict[str, np.ndarray]:
    """Load the arrays of a file of this folder by their names."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}
