"""Kinds of attack, and the number that `make test` tries of each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from . import dicom, meta_images, nifti, pictures
from .attack import Prepare, Trial, Try
from .folders import try_folders
from .models import try_models
from .names import try_names
from .reading import try_reading
from .runs import try_runs
from .settings import try_settings


class Kind(NamedTuple):
    """A kind of attack.

    Attributes:
        tries: function that tries an attack.
        n_tested: number of seeds, from 0, that `make test` tries.
        is_native: whether libraries in C++, which may end the process, read the files.
    """

    tries: Try
    n_tested: int
    is_native: bool = False


def _reads(prepare: Prepare) -> Callable[[Random, Path], tuple[str, list[str]]]:
    return partial(try_reading, prepare=prepare)


KINDS = {
    "nifti": Kind(_reads(nifti.attack), 150),
    "dicom": Kind(_reads(dicom.attack), 40, is_native=True),
    "png": Kind(_reads(pictures.attack_png), 60),
    "jpeg": Kind(_reads(pictures.attack_jpeg), 60),
    "meta_images": Kind(_reads(meta_images.attack), 60, is_native=True),
    "names": Kind(try_names, 20),
    "folders": Kind(try_folders, 20),
    "settings": Kind(try_settings, 25),
    "models": Kind(try_models, 40),
    "runs": Kind(try_runs, 8),
}


def try_attack(kind: str, seed: int, workspace: Path) -> Trial:
    """Try an attack.

    Args:
        kind: one of `KINDS`.
        seed: the only input of the attack.
        workspace: an existing folder, cleared after the attack.

    Returns:
        Its outcome.
    """
    folder = workspace / f"{kind}-{seed}"
    folder.mkdir()
    try:
        what, problems = KINDS[kind].tries(Random(f"{kind} {seed}"), folder)
    except Exception as error:
        what, problems = "it got through to the attacker", [f"{type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Trial(kind, seed, what, tuple(problems))
