"""What inference costs: `python -m benchmarks.inference` measures whole processes with the real weights.

Each row is a process of its own that runs ``configs/inference.json`` on a NIfTI file made from nilearn's MNI152
template: a slab of 182 x 218 x 8 voxels, and the whole brain of 182 x 218 x 182.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from nilearn.datasets import load_mni152_template

from scripts.checkpoint import save_network
from scripts.weights import load_encoder_weights

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure and print a table, or in a child process measure one row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--slice_batch_size", type=int, default=None, help="default: that of the config")
    parser.add_argument("--row", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        overrides = {"slice_batch_size": options.slice_batch_size} if options.slice_batch_size else {}
        print(json.dumps(measure(*options.row, **overrides)))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, CUDA: {torch.cuda.is_available()}\n")
    columns = ("slices", "start s", "run s", "ms/slice", "encoder", "outside", "peak MB")
    print(f"{'volume':18s}" + "".join(f"{column:>10s}" for column in columns))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit(folder / "model.pt")
        for shape in ((182, 218, 8), (182, 218, 182)):
            case = folder / ("x".join(map(str, shape)) + ".nii.gz")
            brain = load_mni152_template(resolution=1)
            corner = [(have - want) // 2 for have, want in zip(brain.shape, shape, strict=True)]
            cut = brain.slicer[tuple(slice(s, s + n) for s, n in zip(corner, shape, strict=True))]
            nib.save(cut, case)
            command = [sys.executable, "-m", "benchmarks.inference", "--row", str(case), str(folder / "model.pt")]
            if options.slice_batch_size:
                command += ["--slice_batch_size", str(options.slice_batch_size)]
            before = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            start = time.perf_counter() - before - row["run"]
            share = row["encoder"] / row["run"]
            print(
                f"{case.name.split('.')[0]:18s}{row['slices']:10d}{start:10.1f}{row['run']:10.1f}"
                f"{1000 * row['run'] / row['slices']:10.0f}{share:10.1%}{1 - share:10.1%}{row['peak']:10.0f}",
                flush=True,
            )


def measure(case: Path, model: Path, **overrides: Any) -> dict[str, float]:
    """Run inference on one file in this process.

    Args:
        case: the file.
        model: the fitted model.
        overrides: config ids and their values.

    Returns:
        Seconds of the ``run`` (load, preprocess, encode, score, write; not the start of Python and the reading of the
        weights) and of the part of it inside the ``encoder``, the number of ``slices``, and ``peak`` memory in MB.
    """
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "inference.json"),
        workflow_type="inference",
        run_id="inference",
        logging_file=False,
        bundle_root=str(ROOT),
        dataset_dir=str(case),
        output_dir=str(case.parent / "out"),
        ckpt_path=str(model),
        show_progress=False,
        **overrides,
    )
    workflow.initialize()
    sys.path.insert(1, str(ROOT))
    encoder = workflow.parser.get_parsed_content("fitted_network").encoder
    workflow.parser.get_parsed_content("evaluator")
    spent: list[float] = []
    slices: list[int] = []
    encoder.register_forward_pre_hook(lambda *_: spent.append(-time.perf_counter()))
    encoder.register_forward_hook(lambda *_: spent.append(time.perf_counter()))
    encoder.register_forward_pre_hook(lambda _, inputs: slices.append(len(inputs[0])))
    start = time.perf_counter()
    workflow.run()
    return {
        "run": time.perf_counter() - start,
        "encoder": sum(spent),
        "slices": sum(slices),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@torch.no_grad()
def fit(path: Path) -> None:
    """Fit the default model on a few slices of the template, so that scoring costs what it does after a real fit.

    Args:
        path: the model to write.
    """
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    load_encoder_weights(network.encoder)
    brain = torch.from_numpy(load_mni152_template(resolution=2).get_fdata(dtype=np.float32))
    slices = (brain / brain.max()).clamp(0, 1).movedim(2, 0).unsqueeze(1)[30:60:5]
    embeddings = network.embed(slices)
    samples = embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    network.mixture.initialize(samples, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        network.mixture.partial_fit(samples, 0.2)
    kinds = network.mixture.score_kinds
    network.calibration.fit({kind: network.mixture.anomaly_score(samples, kind).numpy() for kind in kinds}, 0.01)
    save_network(network, path)


if __name__ == "__main__":
    main()
