"""The rows of all tables, and how each is measured."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.exports import compare
from scripts.runtimes.cache import RuntimeCache
from scripts.runtimes.selection import FASTEST_FIRST, PRECISIONS, RUNTIMES

from .images import Images, middle_slices

ROOT = Path(__file__).resolve().parents[2]
REFERENCE, PLAIN, DEFAULT = "torch fp32", "plain", "auto"
UNQUANTIZED = "openvino bf16"  # what auto selects on a CPU where the model was not quantised
METRICS = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "average precision",
    "max_dice": "best Dice",
    "aupro_0.3": "AUPRO",
}

Figures = dict[str, Any]  # of a row; ``error`` where it has none


class RowError(Exception):
    """Why a row could not be measured, in one sentence."""


class Benchmark:
    """Measures rows, each in a process of its own, with models that are fitted as users fit them.

    Args:
        images: the images.
        output: the folder of models and results.
        tables: rows measured so far; a memory bank needs the reference's.
        model: a model fitted with the default settings, which is copied; None to fit one.

    Raises:
        ValueError: the folder holds another model than ``model``.
    """

    def __init__(
        self, images: Images, output: Path, tables: Mapping[str, Mapping[str, Figures]], model: Path | None = None
    ) -> None:
        self.images, self.output, self.tables = images, output, tables
        copied = output / "models" / "default" / "model.pt"
        if model and not copied.is_file():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model, copied)
        if model and not filecmp.cmp(model, copied, shallow=False):
            raise ValueError(f"{output} holds another model than {model}, and figures of it; give another --output.")

    def rows(self) -> dict[str, dict[str, Callable[[], Figures]]]:
        """Return what measures each row, by table and name, in the order of measurement."""
        plain = {"runtime": "torch", "precision": "fp32", "slice_batch_size": 1}
        fast = json.loads((ROOT / "configs" / "fast.json").read_text())
        variants = {**named_runtimes(), DEFAULT: {}, "auto, fast": fast}
        reference = variants[REFERENCE]
        return {
            "runtimes": {
                PLAIN: partial(self.run, plain, fill_background=True),
                **{name: partial(self.run, settings) for name, settings in variants.items()},
            },
            "bank": {f"{n:,}": partial(self.bank, n) for n in (10_000, 100_000, 200_000, 1_500_000)},
            "slices": {str(n): partial(self.run, {}, n_slices=n) for n in (1, 8, 32, 91, 182)},
            "normals": {str(n or "all"): partial(self.run, reference, n_slices=1, n_normals=n) for n in (1, 5, None)},
            "accuracy": {  # that of auto is that of the runtime which it selects
                name: partial(self.accuracy, name, settings) for name, settings in variants.items() if name != DEFAULT
            },
        }

    def run(
        self,
        settings: Mapping[str, Any],
        n_slices: int = 182,
        n_normals: int | None = None,
        fill_background: bool = False,
    ) -> Figures:
        """Measure an inference run on middle slices of the volume; see `middle_slices` and `run.measure`."""
        case = middle_slices(self.images.volume, n_slices, self.output / "volumes", fill_background)
        settings = {**settings, "ckpt_path": str(self.model(settings, n_normals))}
        paths = {"case": str(case), "output_dir": str(self.output / "runs")}
        return measure_in_child("benchmarks.inference.run", settings=settings, **paths, process_start=time.time())

    def bank(self, n_stored: int) -> Figures:
        """Measure the search of a memory bank; see `benchmarks.memory_bank.measure`."""
        reference = self.tables.get("runtimes", {}).get(REFERENCE, {})
        if "n_features" not in reference:
            raise RowError(f"it needs the row runtimes/{slug(REFERENCE)}, which has no figures")
        n_patches, n_features = reference["patches_per_slice"], reference["n_features"]
        return measure_in_child("benchmarks.memory_bank", n_stored=n_stored, n_patches=n_patches, n_features=n_features)

    def accuracy(self, name: str, settings: Mapping[str, Any]) -> Figures:
        """Evaluate maps against labels, and count the voxels whose mask differs from the reference's."""
        output_dir, reference_dir = (self.output / "maps" / slug(variant) for variant in (name, REFERENCE))
        paths = {**self.images.evaluation, "ckpt_path": self.model(settings), "output_dir": output_dir}
        run_bundle("evaluation", "inference", "evaluate", **paths, **settings, n_resamplings=0, report=False)
        metrics = json.loads((output_dir / "metrics.json").read_text())["pooled"]
        figures = {metric: metrics[metric]["value"] for metric in METRICS}
        if reference_dir.is_dir():
            comparison = compare(reference_dir, output_dir)
            figures["differing"] = comparison.n_differing / comparison.n_voxels
        return figures

    def model(self, settings: Mapping[str, Any], n_normals: int | None = None) -> Path:
        """Fit a model on the first normals or on all, and quantise it where a run may use int8: outside that run.

        Raises:
            RowError: it cannot be fitted, or not quantised where the settings ask for int8.
        """
        folder = self.output / "models" / (f"n_normals_{n_normals}" if n_normals else "default")
        fit = {**self.images.fit, "output_dir": folder, "ckpt_path": folder / "model.pt"}
        if not fit["ckpt_path"].is_file():
            if n_normals:
                subset = folder / "normals"
                subset.mkdir(parents=True, exist_ok=True)
                for file in sorted(fit["dataset_dir"].iterdir())[:n_normals]:
                    (subset / file.name).unlink(missing_ok=True)
                    (subset / file.name).symlink_to(file.resolve())
                fit["dataset_dir"] = subset
            run_bundle("training", "train", **fit, embedding_store=self.output / "embeddings")
        precision = settings.get("precision", "auto")
        if precision in ("auto", "int8") and not RuntimeCache(fit["ckpt_path"]).is_quantized:
            try:
                run_bundle("quantize", "train", "quantize", **fit)
            except RowError:
                if precision == "int8":
                    raise
        return fit["ckpt_path"]


def named_runtimes() -> dict[str, dict[str, Any]]:
    """Return the settings of each runtime and precision of this machine, by name."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = sorted(FASTEST_FIRST[device], key=lambda pair: (RUNTIMES.index(pair[0]), PRECISIONS.index(pair[1])))
    named: dict[str, dict[str, Any]] = {" ".join(pair): {"runtime": pair[0], "precision": pair[1]} for pair in pairs}
    if torch.cuda.is_available():
        named["torch bf16, compiled"] = {**named["torch bf16"], "torch_compile": True}
    return named


def slug(name: str) -> str:
    """Turn the name of a row into one for files and the command line."""
    return name.replace(",", "").replace(" ", "-")


def run_bundle(run_id: str, *configs: str, **settings: Any) -> None:
    """Run `python -m monai.bundle run` with overlaid configs, as users do.

    Raises:
        RowError: the run failed.
    """
    settings = {"config_file": [f"configs/{name}.json" for name in configs], "show_progress": False, **settings}
    words = (word for name, value in settings.items() for word in (f"--{name}", str(value)))
    run_python("-m", "monai.bundle", "run", run_id, *words)


def measure_in_child(module: str, **arguments: Any) -> Figures:
    """Run the ``measure`` function of a module in a process of its own.

    Raises:
        RowError: it failed.
    """
    return json.loads(run_python("-m", module, json.dumps(arguments)).splitlines()[-1])


def run_python(*arguments: str) -> str:
    """Run Python and return its output.

    Raises:
        RowError: it failed; with the text after ``error:``, otherwise with the last line.
    """
    process = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"the process ended with status {process.returncode}"]
        starts = [number for number, line in enumerate(lines) if line.startswith("error: ")] or [-1]
        raise RowError(" ".join(" ".join(lines[starts[-1] :]).removeprefix("error: ").split()))
    return process.stdout
