"""The state of the checkout that a release is made from."""

import subprocess

import pytest

from release.repository import check_committed
from scripts.errors import InputError

COMMIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--no-verify", "--message=a"]


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "file.txt").write_text("content")
    (tmp_path / ".gitignore").write_text("/output/\n")
    for command in (["git", "init", "--quiet"], ["git", "add", "."], COMMIT):
        subprocess.run(command, cwd=tmp_path, check=True)
    return tmp_path


def test_committed_files_may_be_released(clone):
    (clone / "output").mkdir()
    (clone / "output" / "ignored.txt").write_text("a")
    check_committed(clone)


@pytest.mark.parametrize("name", ["file.txt", "new.txt"])
def test_changed_and_new_files_are_refused(clone, name):
    (clone / name).write_text("other")
    with pytest.raises(InputError, match=f"1 files are changed or new, such as {name}; commit them, or give --allow"):
        check_committed(clone)


def test_folder_without_git_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(InputError, match="git cannot tell"):
        check_committed(tmp_path)
