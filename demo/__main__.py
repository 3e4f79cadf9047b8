"""Command ``python -m demo``: the sample model on two real heads, then a fit on a built-in population.

Of the population, normal cases are fitted on and unseen ones are segmented. Each part prints a table of what was found.
"""

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
from skimage.measure import label

from .heads import write_heads
from .population import write_population


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

    heads = folder / "heads"
    step("two heads", lambda: write_heads(heads))
    step(
        "segment the heads",
        lambda: run_bundle(
            "inference", dataset_dir=heads / "cases", output_dir=heads / "results", ckpt_path=heads / "model.pt"
        ),
    )
    print_table(heads / "results", heads / "masks")
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
            calibration_folds="off",  # the 20 validation subjects suffice here
        ),
    )
    step(
        "segment",
        lambda: run_bundle(
            "inference",
            dataset_dir=folder / "data" / "unseen",
            output_dir=folder / "results",
            ckpt_path=folder / "model.pt",
        ),
    )
    print("\n" + "\n".join(f"{name:20s}{taken:7.0f} s" for name, taken in seconds.items()))
    print_table(folder / "results", folder / "data" / "masks")


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
    """Print for each case of a results folder what was found of its lesion, and a line that sums up.

    Args:
        results: ``output_dir`` of an inference run.
        masks: folder of true masks ``<case>.nii.gz`` of one lesion each; a case without one is healthy.
    """
    summary = json.loads((results / "summary.json").read_text())
    print(f"\n{'case':12s}{'flagged':>9s}{'lesion':>9s}{'false alarms':>14s}{'Dice':>7s}")
    quiet, lesions, flags, alarms = [], [], [], []
    for entry in summary["cases"]:
        case = entry["case"]
        mask = read_mask(results / case / f"{case}_mask.nii.gz")
        lesion = dice = "-"
        alarms.append(entry["n_regions"])
        if (masks / f"{case}.nii.gz").is_file():
            truth = read_mask(masks / f"{case}.nii.gz")
            lesions.append(bool((mask & truth).any()))
            lesion = "found" if lesions[-1] else "missed"
            flags.append(bool(entry["flagged"]))
            alarms[-1] -= n_touching(mask, truth, entry["regions"])
            dice = f"{2 * (mask & truth).sum() / (mask.sum() + truth.sum()):.2f}"
        else:
            quiet.append(not entry["flagged"])
        flagged = {True: "yes", False: "no", None: "-"}[entry["flagged"]]
        print(f"{case:12s}{flagged:>9s}{lesion:>9s}{alarms[-1]:14d}{dice:>7s}")
    print(f"\nmasks, maps and overlays: {results}\nmeasurements of all cases: {results / 'summary.json'}")
    print(
        f"{sum(quiet)} of {len(quiet)} healthy cases not flagged, {sum(flags)} of {len(flags)} with a lesion flagged, "
        f"{sum(lesions)} of {len(lesions)} lesions found, {sum(alarms)} false alarms"
    )


def n_touching(mask: np.ndarray, truth: np.ndarray, regions: list[dict]) -> int:
    """Count the regions that touch a lesion.

    Args:
        mask: mask of the regions ``[X,Y,Z]``.
        truth: mask of the lesion ``[X,Y,Z]``.
        regions: entries of the regions in the summary.

    Returns:
        Their number: an outline in several parts is one region, that of its peak.
    """
    parts = label(mask)
    return sum(bool((truth & (parts == parts[tuple(region["peak_voxel"])])).any()) for region in regions)


def read_mask(path: Path) -> np.ndarray:
    """Read the voxels ``[X,Y,Z]`` of a mask."""
    return np.asarray(nib.nifti1.load(path).dataobj) > 0


if __name__ == "__main__":
    main()
