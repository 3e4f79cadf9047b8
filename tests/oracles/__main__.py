"""`python -m tests.oracles FULL`: make the files of this folder from the full oracles.

The full ones hold the figures of the authors' implementation of the mixture (nine fits), of the official implementation
of DINOv2 and of maintained libraries for metrics. Here the inputs that the nine fits have in common are kept once, and
one image of each size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from . import FOLDER

INPUTS = ("data", "mean0", "cov0", "v0", "alpha0", "reg_covar", "query")


def main(full: Path) -> None:
    """Write the compact files into this folder.

    Args:
        full: folder of the full oracles.
    """
    for path in sorted(full.glob("dpmm_*.npz")):
        with np.load(path) as stored:
            np.savez_compressed(FOLDER / "dpmm_inputs.npz", **{name: stored[name] for name in INPUTS})
            figures = {name: stored[name] for name in stored.files if name not in INPUTS}
            np.savez_compressed(FOLDER / path.name, **figures)
    with np.load(full / "encoder_vits14.npz") as stored:
        np.savez_compressed(FOLDER / "encoder_vits14.npz", **{name: stored[name][:1] for name in stored.files})
    with np.load(full / "metrics.npz") as stored:
        np.savez_compressed(FOLDER / "metrics.npz", **stored)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
