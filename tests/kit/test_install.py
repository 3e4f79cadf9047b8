"""The installer of a kit: whole installations without a network, and what is refused before anything is written."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from dpmm.weights import FILES
from kit import install
from tests.kit.conftest import PYTHON

OFFLINE = ["unshare", "--map-root-user", "--net"]
can_be_offline = shutil.which("unshare") and not subprocess.run([*OFFLINE, "true"], capture_output=True).returncode
FAILED = subprocess.CompletedProcess((), 1)
INSTALLED = {install.STATE, install.ENVIRONMENT, install.BUNDLE, install.COMMAND}


def run(kit, *arguments, cwd=None, python=sys.executable, **variables):
    """Run ``install.sh``, without a network where that can be had."""
    command = [*(OFFLINE if can_be_offline else ()), "sh", os.path.relpath(kit / "install.sh", cwd), *arguments]
    environment = {**os.environ, "PYTHON": python, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def state_of(kit):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (kit, *kit.rglob("*"))}


@pytest.fixture
def copied(tiny_kit, tmp_path):
    """Return a copy of a kit, to be damaged."""
    return shutil.copytree(tiny_kit, tmp_path / "kit")


class TestInstalls:
    @pytest.fixture(scope="class")
    def read_only(self, tiny_kit, tmp_path_factory):
        """Return a kit without rights to write, as on a CD."""
        kit = shutil.copytree(tiny_kit, tmp_path_factory.mktemp("a CD") / "kit")
        for path in (*kit.rglob("*"), kit):
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        return kit

    @pytest.fixture(scope="class")
    def killed(self, read_only, tmp_path_factory):
        """Return the folder of an installation that was killed in its last step."""
        folder = tmp_path_factory.mktemp("folder with spaces") / "new" / "anomaly"
        done = run(read_only, str(folder), TINY_COMMAND="kills")
        assert done.returncode != 0 and "Installed." not in done.stdout
        return folder

    def test_a_killed_one_is_not_taken_for_whole(self, killed):
        assert not (killed / "dpmm").exists() and (killed / "environment" / "bin" / "dpmm").is_file()

    def test_again_into_a_relative_folder_from_a_read_only_kit(self, killed, read_only):
        (killed / "environment" / "leftover").touch()
        (killed / "results").mkdir()
        before, cwd = state_of(read_only), killed.parent.parent
        done = run(read_only, "new/anomaly", cwd=cwd, PIP_REQUIRE_VIRTUALENV="0", PIP_TARGET="elsewhere")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in killed.iterdir()} == INSTALLED | {"results"} and "Installed." in done.stdout
        assert state_of(read_only) == before and [path.name for path in cwd.iterdir()] == ["new"]

        assert not (killed / "environment" / "leftover").exists()
        bundle = {path.relative_to(killed / "bundle") for path in (killed / "bundle").rglob("*")}
        assert bundle == {path.relative_to(read_only / "bundle") for path in (read_only / "bundle").rglob("*")}
        said = subprocess.run([killed / "dpmm", "segment"], capture_output=True, text=True, check=True)
        assert said.stdout == "tiny weights segment\n"  # the weights are where the command looks for them
        assert list((killed / "environment").rglob("tiny-1.0.dist-info"))

        again = run(read_only, str(killed))
        assert again.returncode == 1 and "holds an installation already" in again.stderr

    def test_a_step_that_fails_is_said(self, tiny_kit, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(install, "KIT", tiny_kit)
        monkeypatch.setattr("kit.install.subprocess.run", lambda *arguments, **options: FAILED)
        assert install.main([str(tmp_path / "anomaly")]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and "cannot make an environment" in said and said.endswith("run again.\n")
        assert [path.name for path in (tmp_path / "anomaly").iterdir()] == [install.STATE]


class TestRefuses:
    def refused(self, kit, folder, sentence, **options):
        """Assert that the installer says a sentence and leaves everything as it was."""
        before = contents(folder.parent)
        done = run(kit, str(folder), **options)
        assert done.returncode == 1 and sentence in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert contents(folder.parent) == before

    @pytest.mark.parametrize("name", [f"bundle/models/{FILES[1]}", "wheels/tiny-1.0-py3-none-any.whl", "LICENSE"])
    def test_a_damaged_file(self, copied, name, tmp_path):
        with (copied / name).open("r+b") as file:
            file.write(b"x")
        self.refused(copied, tmp_path / "to" / "anomaly", f"{name} is damaged: its SHA-256 sum")

    @pytest.mark.parametrize("name", ["LICENSE", "wheels/tiny-1.0-py3-none-any.whl"])
    def test_a_missing_file(self, copied, name, tmp_path):
        (copied / name).unlink()
        self.refused(copied, tmp_path / "to" / "anomaly", f"lacks {name}; copy the kit again")

    @pytest.mark.parametrize("text", [None, "", "\0\xff"])
    def test_sums_that_are_not_whole(self, copied, text, tmp_path):
        (copied / "SHA256SUMS").unlink()
        if text is not None:
            (copied / "SHA256SUMS").write_text(text)
        self.refused(copied, tmp_path / "to" / "anomaly", "has no whole SHA256SUMS; copy the kit again")

    @pytest.mark.parametrize("version", ["2.7", "3.8", "3.99"])
    def test_another_python(self, tiny_kit, version, tmp_path):
        python = tmp_path / "a python"
        python.write_text(f"#!/bin/sh\necho {version}\n")
        python.chmod(0o755)
        sentence = f"needs Python {PYTHON}, but {python} is {version}; install such a Python"
        self.refused(tiny_kit, tmp_path / "to" / "anomaly", sentence, python=str(python))

    def test_no_python(self, tiny_kit, tmp_path):
        sentence = f"needs Python {PYTHON}; install such a Python, or name it"
        self.refused(tiny_kit, tmp_path / "to" / "anomaly", sentence, python="/no/python")

    def test_a_folder_of_somebody_else(self, tiny_kit, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "dpmm").write_text("my own")
        self.refused(tiny_kit, tmp_path / "mine", "holds files that this kit did not install; give a new folder")
        self.refused(tiny_kit, tmp_path / "mine" / "dpmm", "is not a folder; give a new one")
        self.refused(tiny_kit, tmp_path / "mine" / "dpmm" / "below", "cannot be used (Not a directory)")

    @pytest.mark.parametrize("name", ["", "new"])
    def test_the_kit_itself(self, copied, name):
        self.refused(copied, copied / name, "Give a folder outside the kit")

    @pytest.mark.parametrize("arguments", [(), ("--help",), ("a", "b"), ("",)])
    def test_other_arguments(self, tiny_kit, tmp_path, arguments):
        done = run(tiny_kit, *arguments, cwd=tmp_path)
        assert done.returncode == 1 and "sh install.sh FOLDER" in done.stderr and list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("platform.libc_ver", ("glibc", "2.17"), "glibc 2.28 or later"),
            ("platform.libc_ver", ("", ""), "another C library"),
            ("platform.machine", "aarch64", "this is linux on aarch64"),
            (
                "shutil.disk_usage",
                shutil._ntuple_diskusage(10, 10, 0),
                "its disk has 0.0 GB free; give a folder elsewhere",
            ),
            ("sys.implementation", type("pypy", (), {"name": "pypy"}), "needs CPython"),
        ],
    )
    def test_another_machine(self, tiny_kit, tmp_path, monkeypatch, capsys, name, value, sentence):
        monkeypatch.setattr(install, "KIT", tiny_kit)
        is_value = name == "sys.implementation"
        monkeypatch.setattr(f"kit.install.{name}", value if is_value else lambda *arguments: value)
        assert install.main([str(tmp_path / "anomaly")]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and sentence in said and list(tmp_path.iterdir()) == []
