"""A release of the bundle with a tiny model: its folder, and downloads of it."""

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import huggingface_hub
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import yaml

import release.maker
from release.changelog import release_section
from release.hub import front_matter
from release.maker import bundle_name, check_unused, make_release
from scripts.errors import InputError
from scripts.files import RECORD
from scripts.metadata import bundle_version
from tests.release.servers import serve_files, serve_hub
from tests.tiny_bundle import TINY
from tests.tiny_cases import brain, save

pytestmark = pytest.mark.slow
NAME = bundle_name()
TITLE = f"{NAME}_v{bundle_version()}"


@pytest.fixture(scope="module")
def released(shipped, tmp_path_factory):
    """Make a release with all checks; return its folder."""
    output = tmp_path_factory.mktemp("release") / "release_output"
    make_release(shipped / "models" / "model.pt", output, allow_dirty=True, **TINY)
    return output / TITLE


@pytest.fixture(scope="module")
def expected_map(shipped, tmp_path_factory):
    """Return the map of a case by the exported bundle."""
    return segment(shipped, tmp_path_factory.mktemp("expected"))


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out the checks of the model zoo, which take most of the time."""
    monkeypatch.setattr(release.maker, "check_archive", lambda *_: None)


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def segment(bundle, folder):
    """Run inference of a bundle on one case; return the map."""
    save(folder / "cases" / "case.nii.gz", brain(9))
    workflow = monai.bundle.ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(folder / "cases"),
        output_dir=str(folder / "results"),
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return nib.load(folder / "results" / "case" / "case_map.nii.gz").get_fdata()


class TestFolder:
    def test_files(self, released):
        files = {f"{TITLE}.zip", "SHA256SUMS", "model_info.json", "release_notes.md", RECORD}
        assert {name for name in names_in(released) if not name.startswith("huggingface/")} == files

    def test_archive_has_the_layout_of_the_zoo(self, released, shipped):
        with zipfile.ZipFile(released / f"{TITLE}.zip") as archive:
            names = set(archive.namelist())
        wanted = "LICENSE large_files.yml configs/metadata.json docs/README.md scripts/__init__.py models/model.pt"
        assert {f"{NAME}/{name}" for name in wanted.split()} <= names
        exported = {name for name in names_in(shipped) if "__pycache__" not in name and ".compiled/" not in name}
        assert names == {f"{NAME}/{name}" for name in exported - {RECORD}}

    def test_hub_folder_differs_in_its_readme_alone(self, released):
        hub = released / "huggingface" / NAME
        with zipfile.ZipFile(released / f"{TITLE}.zip") as archive:
            contents = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        assert set(contents) == names_in(hub)
        assert [name for name in contents if (hub / name).read_bytes() != contents[name]] == ["README.md"]

    def test_hub_card(self, released):
        _, head, card = (released / "huggingface" / NAME / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(head)["library_name"] == "monai" and yaml.safe_load(head)["license"] == "apache-2.0"
        assert card.startswith("\n# Model card\n") and "the weights are random" in card

    def test_checksums(self, released):
        lines = [line.split("  ") for line in (released / "SHA256SUMS").read_text().splitlines()]
        assert {name for _, name in lines} == names_in(released) - {"SHA256SUMS", RECORD}
        for digest, name in lines:
            assert hashlib.sha256((released / name).read_bytes()).hexdigest() == digest

    def test_entry_for_the_zoo(self, released):
        ((title, entry),) = json.loads((released / "model_info.json").read_text()).items()
        assert title == TITLE
        assert entry["checksum"] == hashlib.sha1((released / f"{TITLE}.zip").read_bytes()).hexdigest()
        assert entry["source"].endswith(f"/{TITLE}.zip")

    def test_notes_are_the_section_of_the_changelog(self, released):
        assert (released / "release_notes.md").read_text() == release_section().text + "\n"

    def test_same_input_gives_the_same_bytes(self, released, shipped, tmp_path, unchecked):
        shutil.copy(shipped / "models" / "model.pt", tmp_path)
        (tmp_path / "model.compiled" / "1-0123456789abcdef").mkdir(parents=True)  # made for this machine
        (tmp_path / "model.compiled" / "1-0123456789abcdef" / "blocks.onnx").write_bytes(b"compiled")
        make_release(tmp_path / "model.pt", tmp_path / "again", allow_dirty=True, **TINY)
        again = tmp_path / "again" / TITLE
        assert (again / "SHA256SUMS").read_text() == (released / "SHA256SUMS").read_text()


class TestDownloads:
    def test_archive_from_a_server(self, released, expected_map, tmp_path):
        with serve_files(released) as address:
            monai.bundle.download(name=NAME, url=f"{address}/{TITLE}.zip", bundle_dir=tmp_path, progress=False)
        np.testing.assert_array_equal(segment(tmp_path / NAME, tmp_path / "run"), expected_map)

    def test_hub_folder_from_the_hub(self, released, expected_map, tmp_path, monkeypatch):
        asked = []
        tags = [bundle_version(), "0.9.0", "latest_version"]
        with serve_hub(f"someone/{NAME}", released / "huggingface" / NAME, tags, asked) as address:
            template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
            path = template.removeprefix(huggingface_hub.constants.ENDPOINT)
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
            monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
            monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
            for version in (None, bundle_version()):
                monai.bundle.download(
                    NAME, version, tmp_path / str(version), source="huggingface_hub", repo=f"someone/{NAME}"
                )
        assert asked == ["latest_version", bundle_version()]
        np.testing.assert_array_equal(segment(tmp_path / "None" / NAME, tmp_path / "run"), expected_map)


class TestRefusals:
    def release(self, shipped, folder, **arguments):
        make_release(shipped / "models" / "model.pt", folder, **{"allow_dirty": True, **TINY, **arguments})

    def test_own_release_is_replaced_and_a_changed_one_is_not(self, released, shipped, tmp_path, unchecked):
        shutil.copytree(released.parent, tmp_path / "out")
        self.release(shipped, tmp_path / "out", source="https://host/a.zip")
        assert "https://host/a.zip" in (tmp_path / "out" / TITLE / "model_info.json").read_text()
        (tmp_path / "out" / TITLE / "release_notes.md").write_text("my own words")
        with pytest.raises(InputError, match=r"release_notes\.md was not written by this program, or was changed"):
            self.release(shipped, tmp_path / "out")
        assert (tmp_path / "out" / TITLE / "release_notes.md").read_text() == "my own words"

    def test_folder_of_others_is_left_alone(self, shipped, tmp_path, unchecked):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match="holds files that this program did not write"):
            self.release(shipped, tmp_path)
        assert names_in(tmp_path) == {"thesis.txt"}

    def test_failed_check_leaves_the_earlier_release(self, released, shipped, tmp_path, monkeypatch):
        shutil.copytree(released.parent, tmp_path / "out")
        before = {name: (tmp_path / "out" / name).stat().st_mtime for name in names_in(tmp_path / "out")}

        def fail(*_):
            raise InputError("The bundle fails the model zoo's check of metadata: no task.")

        monkeypatch.setattr(release.maker, "check_archive", fail)
        with pytest.raises(InputError, match="check of metadata"):
            self.release(shipped, tmp_path / "out", false_regions=0.1)
        after = {name: (tmp_path / "out" / name).stat().st_mtime for name in names_in(tmp_path / "out")}
        assert after == before

    def test_files_that_are_not_committed(self, shipped, tmp_path, monkeypatch):
        def refuse(root: Path):
            raise InputError(f"A release of {root.name} needs a commit.")

        monkeypatch.setattr(release.maker, "check_committed", refuse)
        with pytest.raises(InputError, match="needs a commit"):
            self.release(shipped, tmp_path / "out", allow_dirty=False)
        assert not (tmp_path / "out").exists()

    def test_missing_model(self, tmp_path):
        with pytest.raises(InputError, match=rf"There is no fitted model {re.escape(str(tmp_path))}/none\.pt; fit it"):
            make_release(tmp_path / "none.pt", tmp_path / "out", allow_dirty=True)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["", "brain t1", "../brain", "brain_v2", "2brain"])
    def test_name_that_the_zoo_cannot_have(self, shipped, tmp_path, name):
        with pytest.raises(InputError, match="name must be of letters"):
            self.release(shipped, tmp_path / "out", name=name)

    def test_version_that_the_zoo_has(self, tmp_path):
        (tmp_path / "model_info.json").write_text(json.dumps({"other_v1.0.0": {}, "spleen_v0.1.0": {}}))
        check_unused("spleen_v0.2.0", tmp_path / "model_info.json")
        with pytest.raises(InputError, match=r"The zoo has spleen_v0\.1\.0 already"):
            check_unused("spleen_v0.1.0", tmp_path / "model_info.json")
        with pytest.raises(InputError, match="model_info must be a copy"):
            check_unused("spleen_v0.1.0", tmp_path / "none.json")


@pytest.mark.parametrize(
    ("licence", "stated"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("DINOv3 License; with conditions on use", {"license": "other", "license_name": "dinov3-license"}),
        ("unknown; check whether your use is allowed", {"license": "other", "license_name": "unknown"}),
    ],
)
def test_hub_names_the_licence_of_the_weights(licence, stated):
    head = yaml.safe_load(front_matter(licence))
    assert {key: value for key, value in head.items() if key.startswith("license")} == stated
