"""The agreement of inference runs: `python -m benchmarks.exports REFERENCE RUN [RUN ...]` compares output folders.

The table has the largest difference of a map from the reference's and the number of voxels whose mask differs, in all
cases of a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np


class Comparison(NamedTuple):
    """Differences between two runs, over all cases."""

    n_cases: int
    n_voxels: int
    largest_difference: float  # of the maps
    n_differing: int  # voxels whose mask differs


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("reference", type=Path, help="output_dir of a run")
    parser.add_argument("runs", type=Path, nargs="+", help="output_dir of other runs on the same cases")
    options = parser.parse_args()
    print("| run | cases | voxels | largest difference of the map | voxels whose mask differs |\n|---|---|---|---|---|")
    for run in options.runs:
        n_cases, n_voxels, largest, n_differing = compare(options.reference, run)
        share = n_differing / n_voxels
        print(f"| {run.name} | {n_cases} | {n_voxels:,} | {largest:.1e} | {n_differing} ({share:.4%}) |")


def compare(reference: Path, run: Path) -> Comparison:
    """Compare the maps and masks of a run with those of a reference."""
    maps = sorted(reference.glob("*/*_map.nii.gz"))
    n_voxels, largest, n_differing = 0, 0.0, 0
    for path in maps:
        other = run / path.relative_to(reference)
        expected, scores = voxels(path), voxels(other)
        n_voxels += expected.size
        largest = max(largest, float(np.abs(scores - expected).max()))
        masks = (voxels(file.with_name(file.name.replace("_map", "_mask"))) for file in (path, other))
        n_differing += int(np.not_equal(*masks).sum())
    return Comparison(len(maps), n_voxels, largest, n_differing)


def voxels(path: Path) -> np.ndarray:
    """Read the values of a NIfTI file."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)


if __name__ == "__main__":
    main()
