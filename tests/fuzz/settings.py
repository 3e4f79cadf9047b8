"""Attacks by settings of the command line: misspelt names, wrong types and wrong ranges."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fire.parser import DefaultParseValue

from scripts.data.cases import find_cases

from ..tiny_bundle import ROOT
from ..tiny_cases import brain, save
from .judge import judge_sources, snapshot
from .reading import SHAPE
from .whole_run import fitted, judge_results, try_run, working_directory

TEXTS = [
    "abc",
    "-1",
    "0",
    "1",
    "1.5",
    "1e400",
    "nan",
    "$float('nan')",
    "-0.5",
    "[]",
    "{}",
    "[1]",
    "True",
    "False",
    "no",
    "off",
]
TEXTS += [
    "None",
    "",
    "2024",
    "007",
    "a,b",
    "1,2",
    "999999999999",
    "'x'",
    "\x1b[31m",
    "a\nb",
    "ü",
    "100%",  # MONAI reads a text after % as a file of settings, before the bundle's code runs
    "..",
    "/dev/null",
    "x" * 300,
]
# Values that must be refused, by the type of the setting
WRONG = {
    "count": ["abc", "-1", "0", "1.5", "$float('nan')", "[]", "{}", "1e400"],
    "number": ["abc", "$float('nan')", "[]", "{}", "1,2"],
    "switch": ["abc", "2.5", "[]", "nan", "a,b"],
    "choice": ["abc", "1.5", "[]", "-1", "ü"],
}
HOLDS = {
    "count": ["n_components", "slice_batch_size", "slice_step", "image_size"],
    "number": ["threshold", "target_fpr", "smoothing_mm", "reg_covar"],
    "switch": ["report", "show_progress", "torch_compile"],
    "choice": ["score", "covariance_type", "runtime", "precision", "encoder_name"],
}
OF_A_FIT = {
    "count": ["max_epochs", "batch_slices", "n_components", "slice_batch_size"],
    "number": ["validation_fraction", "step_size", "embedding_store_gb", "target_fpr"],
    "switch": ["resume", "show_progress"],
    "choice": ["schedule", "init_params", "score"],
}
FREE = [
    "dataset_dir",
    "output_dir",
    "ckpt_path",
    "file_pattern",
    "seed",
    "layers",
    "layer_reduction",
    "scales",
    "rank",
    "spatial_dim",
    "device",
]
FREE_OF_A_FIT = [*FREE, "validation_dir", "embedding_store", "log_dir", "patience"]
FITS = 0.3  # share of the attacks that are on a fit


def try_settings(random: Random, folder: Path) -> tuple[str, list[str]]:
    """Try a run with a misspelt setting or an unusual value."""
    data, work = folder / "data", folder / "work"
    run_id = "training" if random.random() < FITS else "inference"
    for seed in range(3 if run_id == "training" else 1):
        save(data / f"case-{seed}.nii.gz", brain(seed, SHAPE))
    work.mkdir()
    overrides: dict[str, Any] = {"dataset_dir": str(data), "output_dir": str(folder / "out")}
    if run_id == "training":
        overrides |= {"ckpt_path": str(folder / "model.pt"), "max_epochs": 1}
    name, text, must_fail = random.choice([near_miss, wrong_value, wrong_value, any_value])(random, run_id)
    value = DefaultParseValue(text)
    if value is not None:  # MONAI drops those
        overrides[name] = value
    fitted()
    before = snapshot(folder)
    with working_directory(work):
        error, problems = try_run(run_id, data, **overrides)
        if Path.cwd() != work:
            problems.append(f"the working directory was changed to {Path.cwd()}")
    if must_fail and error is None and name in overrides:
        problems.append(f"{name} = {value!r} was taken")
    if error is None and run_id == "inference":
        output = work / str(overrides["output_dir"])
        problems += judge_results(output, None if name in ("dataset_dir", "file_pattern") else find_cases(data))
    if not set(snapshot(work)) <= _allowed(work, overrides):
        problems.append(f"files were left in the working directory: {sorted(snapshot(work))}")
    return f"{run_id} --{name} {text!r}", problems + judge_sources(before, folder)


def near_miss(random: Random, run_id: str) -> tuple[str, str, bool]:
    """Misspell a setting."""
    known = _ids(run_id)
    name = random.choice([each for names in _holds(run_id).values() for each in names])
    place = random.randrange(len(name) - 1)
    first, second = name[place], name[place + 1]
    misspelt = random.choice(
        [
            name[:place] + name[place + 1 :],
            name[:place] + first + name[place:],
            name[:place] + second + first + name[place + 2 :],
            name.replace("_", ""),
            name.upper(),
            name + "s",
        ]
    )
    return misspelt, "1", misspelt not in known


def wrong_value(random: Random, run_id: str) -> tuple[str, str, bool]:
    """Give a setting a value of another type or out of its range."""
    kind, names = random.choice(sorted(_holds(run_id).items()))
    return random.choice(names), random.choice(WRONG[kind]), True


def any_value(random: Random, run_id: str) -> tuple[str, str, bool]:
    """Give any setting any value: the run ends in a result or in a sentence."""
    free = FREE_OF_A_FIT if run_id == "training" else FREE
    name = random.choice([*free, *(each for names in _holds(run_id).values() for each in names)])
    text = random.choice(TEXTS)
    return name, text, name == "output_dir" and not text


def _holds(run_id: str) -> dict[str, list[str]]:
    return OF_A_FIT if run_id == "training" else HOLDS


def _ids(run_id: str) -> set[str]:
    path = ROOT / "configs" / ("train.json" if run_id == "training" else "inference.json")
    return set(json.loads(path.read_text()))


def _allowed(work: Path, overrides: dict[str, Any]) -> set[str]:
    """Return the entries allowed in the working directory: relative paths among the settings."""
    named = [
        Path(str(overrides[name]))
        for name in ("output_dir", "ckpt_path", "embedding_store", "log_dir")
        if name in overrides
    ]
    roots = {path.parts[0] for path in named if path.parts and not path.is_absolute()}
    return {path for path in snapshot(work) if Path(path).parts[0] in roots}
