"""Commands of the documentation, run as written in a copy of the bundle with a tiny encoder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundle import ROOT
from tests.tiny_cases import brain, save

pytestmark = pytest.mark.slow

PAGES = ("README.md", "export.md")
LESION = (slice(16, 22), slice(20, 26), slice(2, 4))


def blocks():
    """Return every fenced block of the pages in order, each once."""
    pages = {}
    for page in PAGES:
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S):
            pages.setdefault((language, text), page)
    return [pytest.param(*block, id=f"{page}-{index}") for index, (block, page) in enumerate(pages.items())]


@pytest.fixture(scope="module")
def places(shipped, tmp_path_factory):
    """Return the bundle's copy, and folders of tiny cases for the words in capitals of the commands."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(shipped, folder / "bundle")
    for seed in range(24):  # a thousand patches of the foreground, which a calibration needs
        save(folder / "normals" / f"sub-{seed}.nii.gz", brain(seed))
    label = np.zeros(brain(0).shape, np.uint8)
    label[LESION] = 1
    for seed in (50, 51):
        save(folder / "cases" / f"case-{seed}.nii.gz", brain(seed, lesion=LESION))
        save(folder / "labels" / f"case-{seed}.nii.gz", label)
    names = {"NORMALS": "normals", "CASES": "cases", "LABELS": "labels", "RESULTS": "results"}
    return {"bundle": folder / "bundle", **{word: folder / name for word, name in names.items()}}


class TestCommands:
    @pytest.mark.parametrize(("language", "text"), blocks())
    def test_block_runs_as_written(self, places, language, text):
        for word, path in places.items():
            text = re.sub(rf"\b{word}\b", str(path), text) if word != "bundle" else text
        assert language in ("bash", "python"), "say how to run this block"
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", "-e", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            command, cwd=places["bundle"], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        if "run inference" in text or "run evaluation" in text:
            masks = sorted(places["RESULTS"].glob("*/*_mask.nii.gz"))
            assert len(masks) == 2
            shutil.rmtree(places["RESULTS"])  # the next command writes them again

    def test_commands_leave_their_files(self, places):
        left = {path.name for path in (places["bundle"] / "models").iterdir()}
        assert {"model.pt", "model.ts", "model.onnx", "site.pt"} <= left
