"""Directory in which a run replaces its own files only, even after a kill at any moment."""

import errno
import itertools
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.errors import InputError
from scripts.files import (
    LOCK,
    OLD,
    PARTIAL,
    RECORD,
    RecordedDirectory,
    changed_files,
    has_record,
    is_intact,
    read_record,
    record,
)


class Killed(BaseException):
    """Stand-in for the end of a process."""


def killed_at(monkeypatch, number, action):
    """Run an action that is killed before its n-th change to the disk; return whether it was killed."""
    changes = itertools.count()

    def dying(function):
        def change(*arguments, **keywords):
            if next(changes) >= number:
                raise Killed
            return function(*arguments, **keywords)

        return change

    with monkeypatch.context() as patch:
        for owner, names in (
            (os, ["replace", "link"]),
            (shutil, ["rmtree"]),
            (Path, ["unlink", "mkdir", "rmdir", "write_text"]),
        ):
            for name in names:
                patch.setattr(owner, name, dying(getattr(owner, name)))
        try:
            action()
        except Killed:
            return True
    return False


def opened(path):
    directory = RecordedDirectory(path)
    directory.open()
    return directory


def write(directory, name, text):
    with directory.write(name) as partial:
        partial.write_text(text)


def write_directory(directory, name, **texts):
    with directory.write_directory(name) as partial:
        for file, text in texts.items():
            (partial / file).write_text(text)


def contents(path):
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def leftovers(path):
    return [file.name for file in path.iterdir() if file.name.startswith((PARTIAL, OLD, f".{RECORD}", f".{PARTIAL}"))]


class TestOpen:
    def test_foreign_files_raise(self, tmp_path):
        (tmp_path / "image.dcm").write_text("mine")
        with pytest.raises(
            InputError, match=r"holds files that this program did not write, such as 'image.dcm'; give an"
        ):
            RecordedDirectory(tmp_path).open()
        assert contents(tmp_path) == {"image.dcm": "mine"}
        with pytest.raises(InputError, match="is a file"):
            RecordedDirectory(tmp_path / "image.dcm").open()

    @pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db"])
    def test_desktop_files_are_ignored(self, tmp_path, name):
        (tmp_path / name).write_text("")
        write(opened(tmp_path), "a.txt", "ours")
        write(opened(tmp_path), "a.txt", "again")
        assert (tmp_path / "a.txt").read_text() == "again" and (tmp_path / name).is_file()

    def test_lock(self, tmp_path):
        first = opened(tmp_path)
        with first.lock(), first.write_directory("case") as partial:
            with pytest.raises(InputError, match="Another run writes into output_dir"):
                RecordedDirectory(tmp_path).open()
            assert partial.is_dir()  # the directory of the first process is kept
            with (
                pytest.raises(InputError, match="Another run writes into output_dir"),
                RecordedDirectory(tmp_path).lock(),
            ):
                pass
            first.open()  # its own
        with opened(tmp_path).lock():
            pass

    def test_parts(self, tmp_path, monkeypatch):
        monkeypatch.setattr("scripts.files.recorded_directory.SECONDS_TO_START", 0.1)
        first, second = RecordedDirectory(tmp_path), RecordedDirectory(tmp_path)
        with first.open_part("1"), first.write_directory("a") as partial:
            (partial / "mask").write_text("1")
            with second.open_part("2"), second.write_directory("b") as other:
                (other / "mask").write_text("2")
            assert partial.is_dir() and (tmp_path / "b" / "mask").is_file()
            for held in (RecordedDirectory(tmp_path).open_part("1"), RecordedDirectory(tmp_path).lock()):
                with pytest.raises(InputError, match="Another run writes into output_dir"), held:
                    pass
        with (
            opened(tmp_path).lock(),
            pytest.raises(InputError, match="Another run writes"),
            RecordedDirectory(tmp_path).open_part("1"),
        ):
            pass
        assert (tmp_path / "a" / "mask").read_text() == "1"
        assert [path.name for path in tmp_path.glob(f"{LOCK}-*")] == []  # removed by the run that had all

    def test_parts_that_start_at_once(self, tmp_path):
        folder, barrier = tmp_path / "new", threading.Barrier(8)

        def write_part(number):
            barrier.wait()
            directory = RecordedDirectory(folder)
            with directory.open_part(str(number)), directory.write_directory(f"case-{number}") as partial:
                (partial / "mask").write_text("1")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write_part, range(8)))
        assert len(list(folder.glob("case-*/mask"))) == 8 and has_record(folder)

    def test_file_system_without_locks(self, tmp_path, monkeypatch, caplog):
        directory = opened(tmp_path)

        def refuse(*_, **__):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr("scripts.files.recorded_directory.FileLock.acquire", refuse)
        with directory.lock():
            write(directory, "a.txt", "ours")
        assert "let no other run write into it" in caplog.text

    @pytest.mark.parametrize("call", ["iterdir", "mkdir"])
    def test_unusable_directory_raises(self, tmp_path, monkeypatch, call):
        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, call, refuse)
        with pytest.raises(InputError, match=r"cannot be (read|written) \(Permission denied\); give another directory"):
            RecordedDirectory(tmp_path).open()

    @pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"a": [3]}, "about": {}}', '{"files": {}}'])
    def test_damaged_record_raises(self, tmp_path, text):
        write(opened(tmp_path), "a.txt", "ours")
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(InputError, match=r"record .* cannot be read"):
            RecordedDirectory(tmp_path).open()
        assert not is_intact(tmp_path) and changed_files(tmp_path) == []

    def test_paths_are_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        directory = RecordedDirectory("out")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        directory.open()
        write(directory, "a.txt", "ours")
        assert (tmp_path / "out" / "a.txt").is_file() and not any((tmp_path / "elsewhere").iterdir())


class TestWrite:
    @pytest.mark.parametrize("moment", range(12))
    def test_killed_process_leaves_a_complete_file(self, tmp_path, monkeypatch, moment):
        write(opened(tmp_path), "a.txt", "first")
        for text in ("second", "third"):  # killed twice in a row
            before = (tmp_path / "a.txt").read_text()
            was_killed = killed_at(monkeypatch, moment, lambda text=text: write(opened(tmp_path), "a.txt", text))
            assert (tmp_path / "a.txt").read_text() in {before, text}
        write(opened(tmp_path), "a.txt", "last")
        assert (tmp_path / "a.txt").read_text() == "last" and not leftovers(tmp_path)
        assert was_killed or moment > 2

    def test_file_changed_during_write_is_kept(self, tmp_path):
        directory = opened(tmp_path)
        write(directory, "a.txt", "ours")
        with pytest.raises(InputError, match="changed since"), directory.write("a.txt") as partial:
            partial.write_text("ours again")
            (tmp_path / "a.txt").write_text("mine, of late")
        assert (tmp_path / "a.txt").read_text() == "mine, of late"

    def test_invalid_json_is_not_written(self, tmp_path):
        directory = opened(tmp_path)
        with pytest.raises(ValueError, match="not JSON compliant"):
            directory.write_json({"score": float("nan")}, "a.json")
        directory.write_json({"score": 1.5}, "a.json")
        assert json.loads((tmp_path / "a.json").read_text()) == {"score": 1.5}
        assert [*read_record(tmp_path)["files"]] == ["a.json"]

    def test_file_is_hashed_once(self, tmp_path, monkeypatch):
        directory = opened(tmp_path)
        hashed = []
        sha256 = record.file_sha256
        monkeypatch.setattr(record, "file_sha256", lambda path: hashed.append(path.name) or sha256(path))
        for text in "abc":
            write(directory, "large", text)
        assert len(hashed) == 3 and "large" not in hashed


class TestWriteDirectory:
    @pytest.mark.parametrize("moment", range(40))
    def test_killed_process_leaves_a_complete_directory(self, tmp_path, monkeypatch, moment):
        write_directory(opened(tmp_path), "case", mask="1", gone="1")
        foreign = {"note.txt": "mine", "raw/image.dcm": "mine too"}
        for name, text in foreign.items():
            (tmp_path / "case" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "case" / name).write_text(text)
        (tmp_path / "case" / "link").symlink_to("nowhere")

        was_killed = killed_at(
            monkeypatch, moment, lambda: write_directory(opened(tmp_path), "case", mask="2", new="2")
        )
        opened(tmp_path)
        texts = contents(tmp_path / "case")
        record = texts.pop(RECORD)
        assert texts in ({"mask": "1", "gone": "1", **foreign}, {"mask": "2", "new": "2", **foreign})
        assert set(json.loads(record)["files"]) == set(texts) - set(foreign) and is_intact(tmp_path / "case")
        assert (tmp_path / "case" / "link").is_symlink() and not leftovers(tmp_path)
        write_directory(opened(tmp_path), "case", mask="3")
        assert {**contents(tmp_path / "case"), RECORD: ""} == {"mask": "3", **foreign, RECORD: ""}
        assert was_killed or moment > 15

    def test_files_are_copied_without_hard_links(self, tmp_path, monkeypatch):
        write_directory(opened(tmp_path), "case", mask="1")
        (tmp_path / "case" / "mine.txt").write_text("mine")

        def refuse(*_, **__):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
        write_directory(opened(tmp_path), "case", mask="2")
        assert (tmp_path / "case" / "mine.txt").read_text() == "mine" and (
            tmp_path / "case" / "mask"
        ).read_text() == "2"

    def test_file_added_during_write_is_kept(self, tmp_path):
        directory = opened(tmp_path)
        write_directory(directory, "case", mask="1")
        with directory.write_directory("case") as partial:
            (partial / "mask").write_text("2")
            (tmp_path / "case" / "late.txt").write_text("mine")
        assert (tmp_path / "case" / "late.txt").read_text() == "mine"

    def test_empty_directory_is_replaced(self, tmp_path):
        directory = opened(tmp_path)
        (tmp_path / "case").mkdir()
        write_directory(directory, "case", mask="1")
        assert (tmp_path / "case" / "mask").read_text() == "1"

    def test_failure_keeps_the_directory(self, tmp_path):
        directory = opened(tmp_path)
        write_directory(directory, "case", mask="1")
        before = contents(tmp_path / "case")
        for error in (ValueError, KeyboardInterrupt):
            with pytest.raises(error), directory.write_directory("case") as partial:
                (partial / "mask").write_text("2")
                raise error
        assert contents(tmp_path / "case") == before and not leftovers(tmp_path)

    def test_interrupt_between_renames(self, tmp_path, monkeypatch):
        directory = opened(tmp_path)
        write_directory(directory, "case", mask="1")
        replace = os.replace

        def interrupted(source, target):
            if Path(source).name.startswith(PARTIAL) and Path(target).name == "case":
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_directory(directory, "case", mask="2")
        assert (tmp_path / "case" / "mask").read_text() == "1" and not leftovers(tmp_path)

    def test_nested_directories_are_recorded(self, tmp_path):
        directory = opened(tmp_path)
        with directory.write_directory("copy") as partial:
            (partial / "configs" / "a").mkdir(parents=True)
            (partial / "configs" / "a" / "b.json").write_text("1")
        (tmp_path / "copy" / "configs" / "mine.json").write_text("mine")
        write_directory(directory, "copy", other="2")
        texts = contents(tmp_path / "copy")
        del texts[RECORD]
        assert texts == {"other": "2", "configs/mine.json": "mine"}


class TestForeignFiles:
    def test_changed_file_is_kept(self, tmp_path):
        directory = opened(tmp_path)
        write(directory, "a.txt", "ours")
        write_directory(directory, "case", mask="1", other="1")
        (tmp_path / "a.txt").write_text("mine")
        (tmp_path / "case" / "mask").write_text("corrected")
        assert changed_files(tmp_path / "case") == ["mask"] and not is_intact(tmp_path / "case")
        for again in (directory, opened(tmp_path)):
            with pytest.raises(InputError, match=r"has a a\.txt that this program did not write, or that was"):
                write(again, "a.txt", "ours")
            with pytest.raises(InputError, match="case/mask was not written by this program, or was changed since"):
                write_directory(again, "case", mask="2")
            again.remove("a.txt")
        assert (tmp_path / "a.txt").read_text() == "mine" and (tmp_path / "case" / "mask").read_text() == "corrected"
        assert not leftovers(tmp_path)

    def test_links_are_kept(self, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "image").write_text("mine")
        directory = opened(tmp_path / "out")
        (tmp_path / "out" / "case").symlink_to(outside)
        (tmp_path / "out" / "a.txt").symlink_to(outside / "image")
        with pytest.raises(InputError, match="did not write"):
            write(directory, "a.txt", "ours")
        with pytest.raises(InputError, match="did not write"):
            write_directory(directory, "case", mask="1")
        assert contents(outside) == {"image": "mine"}

    @pytest.mark.parametrize("kind", ["images", "renamed results", "results of another run", "damaged record"])
    def test_other_directory_is_kept(self, tmp_path, kind):
        directory = opened(tmp_path)
        if kind == "images":
            (tmp_path / "case").mkdir()
            (tmp_path / "case" / "1.dcm").write_text("mine")
        elif kind == "results of another run":
            write(opened(tmp_path / "case"), "summary.json", "other")
        else:
            write_directory(directory, "former", mask="1")
            (tmp_path / "former").rename(tmp_path / "case")
        if kind == "damaged record":
            (tmp_path / "case" / RECORD).write_text("{")
        before = contents(tmp_path / "case")
        with pytest.raises(InputError, match="has a directory case that this program did not write under this name"):
            write_directory(directory, "case", mask="2")
        assert contents(tmp_path / "case") == before
