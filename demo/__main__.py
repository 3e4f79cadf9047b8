"""Command ``python -m demo``: make a population, fit on its normals, segment unseen cases and print the results."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from .population import write_population

SETTINGS = {"target_fpr": 0.002}  # one normal patch in 500 may exceed the decision threshold


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--max_epochs", type=int, default=10)
    options = parser.parse_args()
    folder: Path = options.output_dir
    seconds: dict[str, float] = {}

    def step(name: str, action: Callable[[], object]) -> None:
        start = time.perf_counter()
        action()
        seconds[name] = time.perf_counter() - start

    step("population", lambda: write_population(folder / "data"))
    step(
        "fit and calibrate",
        lambda: run_bundle(
            "training",
            dataset_dir=folder / "data" / "normal",
            validation_dir=folder / "data" / "validation",
            output_dir=folder / "fit",
            ckpt_path=folder / "model.pt",
            max_epochs=options.max_epochs,
            **SETTINGS,
        ),
    )
    step(
        "segment",
        lambda: run_bundle(
            "inference",
            dataset_dir=folder / "data" / "unseen",
            output_dir=folder / "results",
            ckpt_path=folder / "model.pt",
            **SETTINGS,
        ),
    )
    print_table(folder / "results", folder / "data" / "masks")
    print("\n" + "\n".join(f"{name:20s}{taken:7.0f} s" for name, taken in seconds.items()))


def run_bundle(run_id: str, **overrides: object) -> None:
    """Run the bundle by its command line, and print the command.

    Args:
        run_id: ``training`` or ``inference``.
        overrides: values by config id.
    """
    config = {"training": "configs/train.json", "inference": "configs/inference.json"}[run_id]
    command = ["-m", "monai.bundle", "run", run_id, "--config_file", config]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True)


def print_table(results: Path, masks: Path) -> None:
    """Print scores and Dice of the cases in a results folder.

    Args:
        results: ``output_dir`` of an inference run.
        masks: folder of true masks ``<case>.nii.gz``; a case without one is healthy.
    """
    summary = json.loads((results / "summary.json").read_text())
    print(f"\n{'case':14s}{'image score':>13s}{'found mL':>10s}{'true mL':>9s}{'Dice':>7s}  overlay")
    for entry in summary["cases"]:
        case = entry["case"]
        predicted_voxels, voxel_ml = read_mask(results / case / f"{case}_mask.nii.gz")
        true_ml = dice = "-"
        if (masks / f"{case}.nii.gz").is_file():
            true_voxels, _ = read_mask(masks / f"{case}.nii.gz")
            true_ml = f"{true_voxels.sum() * voxel_ml:.1f}"
            dice = f"{2 * (predicted_voxels & true_voxels).sum() / (predicted_voxels.sum() + true_voxels.sum()):.2f}"
        overlay = results / case / f"{case}_overlay.png"
        volume = f"{entry['anomalous_volume_ml']:.1f}"
        print(f"{case:14s}{entry['image_score']:13.2f}{volume:>10s}{true_ml:>9s}{dice:>7s}  {overlay}")
    print(f"\nmasks, maps and overlays: {results}\nmeasurements of all cases: {results / 'summary.json'}")


def read_mask(path: Path) -> tuple[np.ndarray, float]:
    """Read the voxels ``[X,Y,Z]`` of a mask and the volume of a voxel in mL."""
    image = nib.nifti1.load(path)
    return np.asarray(image.dataobj) > 0, float(np.prod(image.header.get_zooms())) / 1000


if __name__ == "__main__":
    main()
