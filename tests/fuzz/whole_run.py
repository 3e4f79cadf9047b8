"""Whole runs of the bundle with a tiny model, and checks of their results."""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.files import has_record, read_record

from ..tiny_bundle import run_bundle
from ..tiny_cases import brain, save
from .judge import judge_error
from .reading import SHAPE, judge_geometry


@functools.cache
def fitted() -> Path:
    """Return a folder with ``normals/``, a fit of one epoch in ``fit/``, and its ``model.pt``."""
    folder = Path(_temporary_folder().name)
    for seed in range(3):
        save(folder / "normals" / f"normal-{seed}.nii.gz", brain(seed, SHAPE))
    fit(folder / "fit", folder / "model.pt", max_epochs=1)
    return folder


def fit(output_dir: Path, ckpt_path: Path, **overrides: Any) -> None:
    """Fit on the normals of `fitted`."""
    normals = _temporary_folder().name + "/normals"
    with quiet():
        run_bundle(
            "training",
            **{"dataset_dir": normals, "output_dir": str(output_dir), "ckpt_path": str(ckpt_path), **overrides},
        )


def try_run(run_id: str, data: Path, **overrides: Any) -> tuple[BaseException | None, list[str]]:
    """Run the bundle.

    Args:
        run_id: id of the run.
        data: folder of the images, whose absolute paths must not be in a message.
        overrides: ids of the config.

    Returns:
        Its exception or None, and the problems of its message.
    """
    error = None
    with quiet():
        try:
            run_bundle(run_id, **{"ckpt_path": str(fitted() / "model.pt"), **overrides})
        except (Exception, SystemExit) as raised:
            error = raised
    return error, judge_error(error, data, str(overrides.get("output_dir", "")))


def judge_results(output_dir: Path, cases: Sequence[dict[str, Any]] | None = None) -> list[str]:
    """Judge the results of a completed run.

    Args:
        output_dir: folder with the results.
        cases: cases from `find_cases` that must be among the results or the failed; None if unknown.

    Returns:
        Their problems.
    """
    path = output_dir / "summary.json"
    if not path.is_file():
        return ["there is no summary.json"]
    try:
        summary = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except ValueError as error:
        return [f"summary.json is not valid: {error}"]
    done, failed = [entry["case"] for entry in summary["cases"]], list(summary["failed"])
    problems = []
    if set(done) & set(failed):
        problems.append(f"cases that succeeded and failed: {sorted(set(done) & set(failed))}")
    if cases is not None and len(done) + len(failed) != len(cases):
        problems.append(f"{len(cases)} cases, but {len(done)} results and {len(failed)} failed")
    sources = {case["case"]: Path(case["image"]) for case in cases or () if "image" in case}
    folders = _folders_by_case(output_dir)
    for case in done:
        case_folders = folders.get(case, [])
        if len(case_folders) == 1:
            problems += _judge_case(case_folders[0], sources.get(case))
        else:
            problems.append(f"{case}: {len(case_folders)} folders")
    return problems


def _folders_by_case(output_dir: Path) -> dict[str, list[Path]]:
    """Return the result folders by case, according to their records: a folder's name may differ from the case."""
    case_folders: dict[str, list[Path]] = {}
    for folder in output_dir.iterdir():
        if has_record(folder):
            case_folders.setdefault(read_record(folder)["about"]["entry"]["case"], []).append(folder)
    return case_folders


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs of libraries and of the bundle."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Work in another directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _judge_case(folder: Path, source: Path | None) -> list[str]:
    problems = []
    for kind in ("mask", "map"):
        paths = list(folder.glob(f"*_{kind}.nii.gz"))
        if len(paths) != 1:
            problems.append(f"{folder.name}: {len(paths)} files of the {kind}")
            continue
        image: Any = nib.load(paths[0])
        if not np.isfinite(image.get_fdata()).all():
            problems.append(f"{folder.name}: the {kind} is not finite")
        if source and source.name.endswith((".nii", ".nii.gz")):
            problems += [f"{folder.name}: {each}" for each in judge_geometry(image.shape, image.affine, source)]
    if len(list(folder.glob("*_overlay.png"))) != 1:
        problems.append(f"{folder.name}: no picture")
    return problems


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fuzz-")
