"""The folder of a kit: what is in it, and which folders it replaces."""

import functools
import json
import subprocess

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from dpmm.weights import FILES
from kit import builder
from kit.wheelhouse import read_wheel
from scripts.errors import InputError
from scripts.export_bundle import export_bundle
from scripts.files import RECORD, file_sha256
from tests.kit.conftest import PYTHON
from tests.tiny_bundle import ROOT, TINY


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestContent:
    def test_sums_are_of_every_file(self, tiny_kit):
        listed = {line[66:] for line in (tiny_kit / "SHA256SUMS").read_text().splitlines()}
        files = {path.relative_to(tiny_kit).as_posix() for path in files_of(tiny_kit)}
        assert listed == files - {"SHA256SUMS", RECORD}
        checked = subprocess.run(["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=tiny_kit, capture_output=True)
        assert checked.returncode == 0, checked.stderr

    def test_every_wheel_is_locked_and_in_the_papers(self, tiny_kit):
        wheels = list(map(read_wheel, (tiny_kit / "wheels").iterdir()))
        assert {wheel.name for wheel in wheels} == {"tiny", "pip", "dinov2-dpmm-anomaly"}
        locked = (tiny_kit / f"requirements-{PYTHON}.txt").read_text().splitlines()
        assert sorted(locked) == sorted(f"{one.name}=={one.version} --hash=sha256:{one.sha256}" for one in wheels)
        sums = {wheel.name: wheel.sha256 for wheel in wheels}

        text = (tiny_kit / f"sbom-{PYTHON}.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        components = {one["name"]: one for one in json.loads(text)["components"]}
        weights = {FILES[1]: file_sha256(tiny_kit / "bundle" / "models" / FILES[1])}
        assert {name: one["hashes"][0]["content"] for name, one in components.items()} == {**sums, **weights}
        assert components[FILES[1]]["licenses"] == [{"license": {"id": "MIT"}}]
        page = (tiny_kit / f"licences-{PYTHON}.md").read_text()
        assert "| tiny | 1.0 | MIT | permissive |" in page

    def test_bundle_and_page_are_whole(self, tiny_kit):
        metadata = json.loads((tiny_kit / "bundle" / "configs" / "metadata.json").read_text())
        page = (tiny_kit / "README.md").read_text()
        assert metadata["version"] in page and f"Python {PYTHON}." in page and "$" not in page
        assert (tiny_kit / "bundle" / "scripts" / "__init__.py").is_file()

    @pytest.mark.slow
    def test_model_comes_with_its_settings(self, build_tiny, shipped, tmp_path, monkeypatch):
        monkeypatch.setattr(builder, "export_bundle", functools.partial(export_bundle, **TINY))
        model = shipped / "models" / "model.pt"
        build_tiny(tmp_path / "kit", model=model)
        config = json.loads((tmp_path / "kit" / "bundle" / "configs" / "inference.json").read_text())
        assert config["image_size"] == TINY["image_size"]
        bill = json.loads((tmp_path / "kit" / f"sbom-{PYTHON}.cdx.json").read_text())
        (entry,) = (one for one in bill["components"] if one["name"] == "model.pt")
        assert entry["hashes"][0]["content"] == file_sha256(model)
        assert "--bundle_root" in (tmp_path / "kit" / "README.md").read_text()


class TestReplaces:
    def test_only_an_unchanged_kit(self, build_tiny, tmp_path):
        kit = tmp_path / "kit"
        kit.mkdir()  # an empty folder is used
        build_tiny(kit)
        (kit / "SHA256SUMS").touch()
        before = files_of(kit)
        build_tiny(kit)
        assert files_of(kit) == before and [path.name for path in tmp_path.iterdir()] == ["kit"]
        (kit / "notes.txt").write_text("mine")
        before = files_of(kit)
        with pytest.raises(InputError, match=r"notes\.txt, which was not written"):
            build_tiny(kit)
        assert files_of(kit) == before

    @pytest.mark.parametrize("name", ["folder/file", "folder"])
    def test_nothing_else(self, build_tiny, tmp_path, name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match="is not a kit and is left alone"):
            build_tiny(tmp_path / "folder")
        assert files_of(tmp_path) == {tmp_path / name: b"mine"}

    def test_no_part_of_the_bundle(self, build_tiny):
        with pytest.raises(InputError, match="is not a kit and is left alone"):
            build_tiny(ROOT / "docs" / "kit")
        assert not (ROOT / "docs" / "kit").exists()

    def test_failure_keeps_the_older_kit(self, build_tiny, tmp_path):
        build_tiny(tmp_path / "kit")
        before = files_of(tmp_path)
        with pytest.raises(InputError, match="There is no fitted model"):
            build_tiny(tmp_path / "kit", model=tmp_path / "no.pt")
        assert files_of(tmp_path) == before
