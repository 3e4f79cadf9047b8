"""Attacks by names of files and folders."""

from __future__ import annotations

import gzip
import os
from contextlib import suppress
from pathlib import Path
from random import Random

import nibabel as nib

from scripts.data.cases import find_cases

from ..tiny_cases import AFFINE, brain
from .judge import judge_sources, snapshot
from .reading import GOOD, SHAPE, read
from .whole_run import judge_results, try_run

STEMS = [
    "a\nb",
    "a\rb",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\tb",
    "\x7f",
    "a\x00b",
    "a\u202egpj",
    "a\u2028b",
    "\ufeffa",
]
STEMS += ["\udcff", "a\udce9b", "\udc80\udc81", "é", "e\u0301", "E\u0301", "ﬁ", "ß", "İ", "日本語", "🧠", "a\u200bb"]
STEMS += ["x" * 200, "x" * 240, "x" * 246, "é" * 120, "🧠" * 60, "x" * 255]
STEMS += [
    "report.html",
    "summary.json",
    "metrics.json",
    "metrics.csv",
    ".dpmm_record.json",
    ".dpmm_lock",
    "report",
    "summary",
]
STEMS += [
    "..",
    "...",
    "a.",
    ".a",
    " ",
    " a",
    "a ",
    "-rf",
    "--help",
    "~",
    "$HOME",
    "%s%n",
    "{0}",
    "{{ 1 }}",
    "a,b",
    "a;b",
    "a|b",
]
STEMS += [
    "*",
    "?",
    "[a]",
    "a\\b",
    "'",
    '"',
    "`id`",
    "$(id)",
    "<script>alert(1)</script>",
    "&amp;",
    "</script>",
    "CON",
    "nul",
]
STEMS += [
    "good",
    "GOOD",
    "Good",
    "good_2",
    "a_mask",
    "a_map",
    "a_overlay",
    "a#b",
    "@a",
    "$a",
    "1",
    "2024",
    "1e5",
    "None",
    "a%2Fb",
]
SUFFIXES = [".nii.gz", ".nii.gz", ".nii", ".NII.GZ", ".Nii", ".png", ".nii.gz.png", ".nii.nii"]
WHOLE_RUNS = 0.15  # share of the attacks that are scored and written as well


def try_names(random: Random, folder: Path) -> tuple[str, list[str]]:
    """Try unusual names of files and folders."""
    data = folder / "data"
    contents = _images()
    data.mkdir()
    (data / f"{GOOD}.nii.gz").write_bytes(contents[".nii.gz"])
    written = []
    for _ in range(random.choice([1, 2, 4])):
        name = random.choice(STEMS) + random.choice(SUFFIXES)
        if random.random() < 0.4:
            name = random.choice(STEMS) + random.choice(["", random.choice(SUFFIXES)]) + "/" + name
        content = contents[".nii.gz" if name.lower().endswith(".nii.gz") else ".nii"]
        with suppress(OSError, ValueError):  # the file system does not know such a name
            path = Path(os.path.normpath(data / name))
            if path.is_relative_to(data):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                written.append(name)
    before = snapshot(folder)
    problems = read(data)
    if random.random() < WHOLE_RUNS:
        _, said = try_run("inference", data, dataset_dir=str(data), output_dir=str(folder / "out"))
        problems += said + judge_results(folder / "out", find_cases(data))
    return f"names {written!r}", problems + judge_sources(before, folder)


def _images() -> dict[str, bytes]:
    content = nib.Nifti1Image(brain(0, SHAPE), AFFINE).to_bytes()
    return {".nii": content, ".nii.gz": gzip.compress(content, mtime=0)}
