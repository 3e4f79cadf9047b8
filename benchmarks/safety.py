"""The cost of the safety checks: `python -m benchmarks.safety OTHER`, with a checkout of the bundle before them.

Both checkouts run inference over 20 small volumes in turn, with one model; the result is the median ratio.
``git worktree add OTHER COMMIT`` makes OTHER. Whole processes are measured, with their start.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHAPE, N_NORMALS = (96, 112, 6), 4
SETTINGS = {"image_size": 224, "n_components": 32}


class Cost(NamedTuple):
    """Cost of a process.

    Attributes:
        wall: seconds from start to end.
        cpu: seconds of all its threads.
    """

    wall: float
    cpu: float


def main() -> None:
    """Print the cost of each round and the median ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.safety", description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of the bundle to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=20)
    options = parser.parse_args()
    other = options.other.resolve()
    if not (other / "configs" / "inference.json").is_file():
        sys.exit(f"{other} is no checkout of the bundle: it has no configs/inference.json.")
    with tempfile.TemporaryDirectory(prefix="safety-") as name:
        folder = Path(name)
        save_volumes(folder / "normals", N_NORMALS, first=100)
        save_volumes(folder / "cases", options.volumes, first=0)
        fit(other, folder)
        ratios = []
        for number in range(options.rounds):
            before, now = (infer(checkout, folder, number) for checkout in (other, ROOT))
            ratios.append(Cost(now.wall / before.wall, now.cpu / before.cpu))
            print(
                f"round {number + 1}: wall {before.wall:.2f} s before, {now.wall:.2f} s now ({ratios[-1].wall:.3f}); "
                f"CPU {before.cpu:.2f} s before, {now.cpu:.2f} s now ({ratios[-1].cpu:.3f})",
                flush=True,
            )
    wall, cpu = map(statistics.median, zip(*ratios, strict=True))
    print(f"median ratio: wall {wall:.3f}, CPU {cpu:.3f}")


def save_volumes(folder: Path, number: int, first: int) -> None:
    """Write small volumes that resemble heads into a new folder.

    Args:
        folder: the folder.
        number: number of volumes.
        first: seed of the first volume.
    """
    folder.mkdir()
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE[:2]), indexing="ij")
    inside = (np.square(axes).sum(0) < 0.8)[..., None]
    for seed in range(first, first + number):
        texture = 600 + 80 * np.sin(9 * axes[0])[..., None] + np.random.default_rng(seed).normal(0, 20, SHAPE)
        image = nib.nifti1.Nifti1Image((texture * inside).astype(np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))
        nib.save(image, folder / f"case-{seed:03d}.nii.gz")


def fit(checkout: Path, folder: Path) -> None:
    """Fit a model on the normals with the older code; the newer code reads it."""
    paths = {"dataset_dir": folder / "normals", "output_dir": folder / "fit", "ckpt_path": folder / "model.pt"}
    run(checkout, "training", "train", max_epochs=2, weights_path=weights_path(), **SETTINGS, **paths)


def infer(checkout: Path, folder: Path, number: int) -> Cost:
    """Measure an inference over the cases, into a folder of its own."""
    output = folder / f"results-{number}"
    paths = {"dataset_dir": folder / "cases", "output_dir": output, "ckpt_path": folder / "model.pt"}
    cost = run(checkout, "inference", "inference", runtime="torch", precision="fp32", **SETTINGS, **paths)
    shutil.rmtree(output)
    return cost


def run(checkout: Path, run_id: str, config: str, **settings: Any) -> Cost:
    """Run the bundle of a checkout in a process of its own.

    Raises:
        SystemExit: the run failed.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", f"configs/{config}.json"]
    for name, value in {"show_progress": False, **settings}.items():
        command += [f"--{name}", str(value)]
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=checkout, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{run_id} of {checkout} failed:\n{log.read().decode(errors='replace')[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def weights_path() -> Path:
    """Return the encoder's weights in ``models/``, for a checkout that lacks them."""
    weights = sorted((ROOT / "models").glob("dinov2_vits14*.pth"))
    if not weights:
        sys.exit("There are no weights of the encoder in models/; run `make weights`.")
    return weights[0].resolve()


if __name__ == "__main__":
    main()
