"""Attacks on reading: a folder with a good and a bad image, read as by an inference run."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

from scripts.data.cases import CaseDataset, find_cases
from scripts.errors import InputError, cause_of
from scripts.inference.measurements import affine_of

from ..tiny_bundle import inference_config
from ..tiny_cases import brain, save
from .attack import Prepare
from .judge import judge_case_name, judge_sentence, judge_sources, snapshot

GOOD = "good"  # the good case, which must be read
SHAPE = (18, 16, 3)


@functools.cache
def transforms() -> tuple[Any, Any]:
    """Return preprocessing and postprocessing of `configs/inference.json`."""
    parser = inference_config()
    return parser.get_parsed_content("preprocessing"), parser.get_parsed_content("postprocessing")


def try_reading(random: Random, folder: Path, prepare: Prepare) -> tuple[str, list[str]]:
    """Try an attack on reading.

    Args:
        random: generator of the attack.
        folder: an empty folder.
        prepare: function that puts the attack into a folder.

    Returns:
        A description of the attack, and its problems.
    """
    data = folder / "data"
    save(data / f"{GOOD}.nii.gz", brain(0, SHAPE))
    attack = prepare(random, data)
    before = snapshot(folder)
    problems = read(data, attack.must_fail)
    return attack.what, problems + judge_sources(before, folder)


def read(data: Path, must_fail: bool = False, max_cases: int = 1000) -> list[str]:
    """Read a folder with a good case and others.

    Args:
        data: the folder.
        must_fail: whether a result of one of the others would be wrong.
        max_cases: largest number of cases allowed.

    Returns:
        Problems.
    """
    try:
        cases = find_cases(data)
    except InputError as error:
        return [f"one bad item ends the run: {error}"]
    except Exception as error:
        return [f"one bad item ends the run by a traceback: {type(error).__name__}: {error}"]
    problems = [problem for case in cases for problem in judge_case_name(case["case"])]
    if len({case["case"] for case in cases}) < len(cases):
        problems.append("two cases have one name")
    if len(cases) > max_cases:
        return [*problems, f"{len(cases)} cases were found in {max_cases} files"]
    dataset, was_read = CaseDataset(cases, transforms()[0]), set()
    for case, item in zip(cases, map(dataset.__getitem__, range(len(cases))), strict=True):
        if "error" in item:
            problems += judge_sentence(item["error"], data)
            continue
        problems += [f"{case['case']}: {problem}" for problem in judge_item(item, Path(case["image"]))]
        was_read.add(case["case"])
    if GOOD not in was_read:
        problems.append("the good case beside it was not read")
    if must_fail and was_read > {GOOD}:
        problems.append(f"what must be refused was read: {sorted(was_read - {GOOD})}")
    return problems


def judge_item(item: dict[str, Any], path: Path) -> list[str]:
    """Judge a case that was read, and its results with the image in place of the map.

    Args:
        item: item of `CaseDataset`.
        path: path of the image.

    Returns:
        Its problems.
    """
    image, problems = item["image"], []
    if not bool(image.isfinite().all()) or float(image.min()) < 0 or float(image.max()) > 1:
        problems.append("intensities are not finite numbers from 0 to 1")
    try:
        output = transforms()[1]({**item, "pred": image[:1].clone()})
    except Exception as error:
        return [*problems, f"no results can be made of it: {type(cause_of(error)).__name__}: {error}"]
    try:
        json.dumps(output["result"], allow_nan=False)
    except ValueError:
        problems.append(f"the measurements are no JSON: {output['result']}")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        problems += judge_geometry(tuple(output["map"].shape[1:]), affine_of(output["image"]), path)
    return problems


def judge_geometry(shape: tuple[int, ...], affine: np.ndarray, source: Path) -> list[str]:
    """Judge whether a result has the geometry of its source in nibabel, to the precision of the format.

    Args:
        shape: shape of the result.
        affine: affine of the result, ``[4,4]``.
        source: a NIfTI file.

    Returns:
        Its problems.
    """
    try:
        shape_shown, affine_shown = _shown_by_nibabel(source)
    except Exception as error:
        return [f"a result of a file that nibabel refuses: {error}"]
    problems = []
    if not np.isfinite(affine_shown).all() or np.linalg.det(affine_shown) == 0:
        problems.append(f"a result with an invented geometry; nibabel shows {affine_shown.tolist()}")
    elif not np.array_equal(affine.astype(np.float32), affine_shown.astype(np.float32)):
        problems.append(f"the affine is {affine.tolist()}; nibabel shows {affine_shown.tolist()}")
    if _without_ones(shape) != _without_ones(shape_shown):
        problems.append(f"the result has the shape {shape}; the image has {shape_shown}")
    return problems


def _shown_by_nibabel(source: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of a copy with the right suffix: nibabel chooses the format by lower-case suffix."""
    content = source.read_bytes()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        copy = Path(folder, "copy.nii.gz" if content.startswith(b"\x1f\x8b") else "copy.nii")
        copy.write_bytes(content)
        image: Any = nib.load(copy)
        return image.shape, image.affine


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
