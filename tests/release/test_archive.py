"""The archive of a release."""

import os
import zipfile

from release.archive import write_archive

FILES = {"LICENSE": b"licence", "configs/a.json": b"{}", "models/model.pt": bytes(range(256)) * 500}


def make_bundle(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_bytes_depend_on_names_and_contents_alone(tmp_path):
    first = make_bundle(tmp_path / "first" / "bundle", FILES)
    second = make_bundle(tmp_path / "second" / "bundle", dict(reversed(FILES.items())))
    (second / "LICENSE").chmod(0o700)
    os.utime(second / "LICENSE", (1e9, 1e9))
    write_archive(first, list(FILES), "2026-11-30", tmp_path / "first.zip")
    write_archive(second, reversed(FILES), "2026-11-30", tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_layout(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", {**FILES, "notes.txt": b"not in the release"})
    write_archive(bundle, list(FILES), "2026-11-30", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"bundle/{name}": content for name, content in FILES.items()
        }
        assert {entry.date_time for entry in archive.infolist()} == {(2026, 11, 30, 0, 0, 0)}
