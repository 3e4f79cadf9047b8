"""Atomic writes of files and folders."""

import os

import pytest

from scripts.files import atomic_directory, atomic_write


def fill(folder, text):
    with atomic_directory(folder) as partial:
        (partial / "file").write_text(text)


class TestAtomicDirectory:
    def test_folder_is_replaced(self, tmp_path):
        for text in ("old", "new"):
            fill(tmp_path / "folder", text)
            assert (tmp_path / "folder" / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_failed_write_keeps_the_folder(self, tmp_path):
        fill(tmp_path / "folder", "old")
        with pytest.raises(OSError, match="no space"), atomic_directory(tmp_path / "folder"):
            raise OSError("no space")
        assert (tmp_path / "folder" / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_failed_move_keeps_the_folder(self, tmp_path, monkeypatch):
        fill(tmp_path / "folder", "old")
        replace, moves = os.replace, []

        def fails_once(source, target):
            moves.append(source)
            if len(moves) == 2:
                raise OSError("busy")
            replace(source, target)

        monkeypatch.setattr(os, "replace", fails_once)
        with pytest.raises(OSError, match="busy"):
            fill(tmp_path / "folder", "new")
        assert (tmp_path / "folder" / "file").read_text() == "old"

    def test_leftovers_of_a_killed_run(self, tmp_path):
        fill(tmp_path / ".folder.old", "old")
        (tmp_path / ".folder.partial").mkdir()
        with pytest.raises(OSError, match="no space"), atomic_directory(tmp_path / "folder"):
            raise OSError("no space")
        assert (tmp_path / "folder" / "file").read_text() == "old"


class TestAtomicWrite:
    def test_failed_write_keeps_the_file(self, tmp_path):
        (tmp_path / "file").write_text("old")
        with pytest.raises(OSError, match="no space"), atomic_write(tmp_path / "file") as partial:
            partial.write_text("new")
            raise OSError("no space")
        assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
