"""How equal runs of inference are: `python -m benchmarks.exports REFERENCE RUN [RUN ...]` compares output folders.

For each run, over all cases: the largest difference of a map from the reference's, and the share of voxels whose mask
differs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("reference", type=Path, help="output_dir of a run")
    parser.add_argument("runs", type=Path, nargs="+", help="output_dir of other runs on the same cases")
    options = parser.parse_args()
    print("| run | cases | voxels | largest difference of the map | voxels whose mask differs |\n|---|---|---|---|---|")
    for run in options.runs:
        n_cases, n_voxels, largest, n_differ = compare(options.reference, run)
        print(f"| {run.name} | {n_cases} | {n_voxels:,} | {largest:.1e} | {n_differ} ({n_differ / n_voxels:.4%}) |")


def compare(reference: Path, run: Path) -> tuple[int, int, float, int]:
    """Cases, voxels, the largest difference of a map, and the number of voxels whose mask differs."""
    maps = sorted(reference.glob("*/*_map.nii.gz"))
    n_voxels, largest, n_differ = 0, 0.0, 0
    for path in maps:
        other = run / path.relative_to(reference)
        expected, found = voxels(path), voxels(other)
        n_voxels += expected.size
        largest = max(largest, float(np.abs(found - expected).max()))
        masks = [file.with_name(file.name.replace("_map", "_mask")) for file in (path, other)]
        n_differ += int(np.not_equal(*(voxels(mask) for mask in masks)).sum())
    return len(maps), n_voxels, largest, n_differ


def voxels(path: Path) -> np.ndarray:
    """The values of a NIfTI file."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)


if __name__ == "__main__":
    main()
