"""Command ``python -m benchmarks.many_cases``: time, memory and files of a run over very many small images.

The encoder is tiny and random, so that what is measured is everything else: listing, reading, writing, summary, report.
``--slices 8`` makes volumes instead of pictures. ``--pictures False`` leaves out the drawing, which takes the same time
for each case, and most of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from PIL import Image

from tests.tiny_bundle import ROOT, TINY

from .cost import peak_mb, resident_mb

SIDE = 32  # pixels of an edge
N_NORMALS = 40
SETTINGS = {**TINY, "slice_batch_size": 16}


def make_images(folder: Path, n_images: int, seed: int, side: int = SIDE, n_slices: int | None = None) -> None:
    """Write images of noise, every tenth with a bright square: PNGs, or NIfTI volumes if they have slices.

    Args:
        folder: where to.
        n_images: their number.
        seed: seed of the noise.
        side: their height and width in pixels.
        n_slices: slices of a volume; None for PNGs.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    lesion = slice(side // 3, side // 3 + side // 5)
    for number in range(n_images):
        image = generator.normal(120, 10, (side, side, n_slices or 1)).clip(1, 255)
        if number % 10 == 9:
            image[lesion, lesion] = 250
        voxels = image.astype(np.uint8)
        if n_slices:
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{number:06d}.nii.gz")
        else:
            Image.fromarray(voxels[..., 0]).save(folder / f"{number:06d}.png")


def run(config: str, run_id: str, **settings: Any) -> ConfigWorkflow:
    """Prepare a run of one of the bundle's configs with the tiny encoder."""
    paths = {name: str(value) for name, value in settings.items() if isinstance(value, Path)}
    values: dict[str, Any] = {**SETTINGS, **settings, **paths}
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / f"{config}.json"),
        workflow_type=config,
        run_id=run_id,
        bundle_root=str(ROOT),
        logging_file=False,
        **values,
    )
    workflow.initialize()
    return workflow


def measure(paths: Mapping[str, Path]) -> dict[str, float]:
    """Run inference, and measure it.

    Args:
        paths: ``dataset_dir``, ``output_dir`` and ``ckpt_path``.

    Returns:
        ``start``, the seconds before the run (settings, model, list of the cases); ``first_tenth`` and ``last_tenth``,
        seconds per case; ``end``, the seconds after the last case (summary, report); ``resident_tenth`` and
        ``resident_last``, resident memory in MB after a tenth of the cases and after the last; ``peak``, that of the
        process in MB.
    """
    begin = time.perf_counter()
    workflow = run("inference", "inference", **paths)
    evaluator = workflow.parser.get_parsed_content("evaluator")
    n_cases = len(evaluator.loader)
    times: list[float] = []
    resident: dict[int, float] = {}

    def sample() -> None:
        times.append(time.perf_counter())
        if len(times) in (n_cases // 10, n_cases):
            resident[len(times)] = resident_mb()

    evaluator.add_event_handler(Events.STARTED, lambda: times.clear())
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, sample)
    started = time.perf_counter()
    workflow.run()
    end = time.perf_counter()
    tenth = n_cases // 10
    return {
        "start": started - begin,
        "first_tenth": (times[tenth - 1] - started) / tenth,
        "last_tenth": (times[-1] - times[-1 - tenth]) / tenth,
        "end": end - times[-1],
        "resident_tenth": resident[tenth],
        "resident_last": resident[n_cases],
        "peak": peak_mb(),
    }


def main() -> None:
    """Fit a tiny model, run inference twice, the second time over finished cases, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n_cases", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of an edge")
    parser.add_argument("--slices", type=int, help="slices of a volume; pictures without")
    parser.add_argument("--pictures", choices=("True", "False"), default="True", help="whether pictures are drawn")
    parser.add_argument("--folder", type=Path, help="new folder for pictures and results, which are kept")
    options = parser.parse_args()
    if options.n_cases < 20:
        parser.error(f"--n_cases must be at least 20; got {options.n_cases}.")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as undrawn:
        if options.pictures == "False":
            undrawn.enter_context(patch("scripts.inference.writer.overlay_png", lambda *_: b"none"))
            undrawn.enter_context(patch("scripts.report.content.histogram_svg", lambda *_: ""))
        folder = (options.folder or Path(temporary, "many_cases")).absolute()
        make_images(folder / "normals", N_NORMALS, 0, options.side, options.slices)
        make_images(folder / "cases", options.n_cases, 1, options.side, options.slices)
        model, output = folder / "model.pt", folder / "results"
        fit = {"dataset_dir": folder / "normals", "output_dir": folder / "fit", "ckpt_path": model}
        run("train", "training", pretrained_encoder="@encoder", max_epochs=2, log_dir=None, **fit).run()
        paths = {"dataset_dir": folder / "cases", "output_dir": output, "ckpt_path": model}
        figures = {name: measure(paths) for name in ("new", "kept")}
        sizes = {name: (output / name).stat().st_size / 1e6 for name in ("summary.json", "report.html")}
        print(json.dumps({**figures, "megabytes": sizes}, indent=2))


if __name__ == "__main__":
    main()
