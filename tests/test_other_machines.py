"""What docs/other-machines.md says of Windows, as far as it can be simulated: no machine of it was there."""

import ast
import errno
import json
import os
from pathlib import Path

import pytest

from scripts.errors import cause_of
from scripts.files import PARTIAL
from tests.tiny_bundle import ROOT, run_bundle
from tests.tiny_cases import brain, save

OF_A_USER = ("scripts", "dpmm", "label", "kit", "release", "demo")
# Modules that Windows does not have, functions of `os` that it does not have, and folders of Linux
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_FUNCTIONS = {"chown", "fork", "forkpty", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "setsid", "uname"}
LINUX_FOLDERS = ("/dev/", "/proc/", "/tmp/", "/var/")


@pytest.mark.parametrize(
    "path",
    [path for folder in OF_A_USER for path in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_module_needs_posix(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        assert POSIX_MODULES.isdisjoint(names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in POSIX_FUNCTIONS
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith(LINUX_FOLDERS)


def test_results_that_a_viewer_holds_open_are_kept(tmp_path, monkeypatch):
    """Windows renames no folder of which a program has a file open."""
    out = tmp_path / "out"
    for number in range(4):
        save(tmp_path / "in" / f"sub-{number}.nii.gz", brain(number))
    run = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(out), "ckpt_path": str(tmp_path / "model.pt")}
    run_bundle("training", **run)
    run_bundle("inference", **run)
    before = {path: path.read_bytes() for path in (out / "sub-1").iterdir()}
    replace = os.replace

    def replace_as_windows(source, target):
        if Path(source) == out / "sub-1":
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_as_windows)
        with pytest.raises(Exception) as caught:
            run_bundle("inference", **run, threshold=0.5)
    assert "close programs that show older ones" in str(cause_of(caught.value))
    assert {path: path.read_bytes() for path in (out / "sub-1").iterdir()} == before
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["failed"]) == ["sub-1"] and len(summary["cases"]) == 3
    assert not [path for path in out.iterdir() if path.name.startswith(PARTIAL)]
    run_bundle("inference", **run, threshold=0.5)
    assert len(json.loads((out / "summary.json").read_text())["cases"]) == 4
