"""Folders of a MONAI Label server, and the checks of `python -m label` before its start."""

import hashlib
import json
import shutil
import socket
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import pytest

from label import __main__ as command
from label import app_folder
from label.__main__ import check_address, export_once, link_all_studies, serve
from label.app_folder import copy_bundles, link_normals, link_studies, make_app, open_output
from scripts.errors import InputError
from scripts.files import LOCK, RECORD, RecordedDirectory
from tests.tiny_bundle import TINY
from tests.tiny_cases import brain, save


def digests(folder):
    """Return the SHA-256, or the target of a link, by path."""
    return {
        path: path.readlink() if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.name != LOCK
    }


@pytest.fixture
def output(tmp_path):
    """Open the folder of a server."""
    with open_output(str(tmp_path / "served")) as output:
        yield output


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """Write a substitute of MONAI Label's sample app."""
    for name in ("main.py", "lib/__init__.py", "lib/infers/__init__.py"):
        (tmp_path / "sample" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sample" / name).write_text(f"# {name}")
    monkeypatch.setattr(app_folder, "sample_app", lambda: tmp_path / "sample")
    return tmp_path / "sample"


class TestLinkNormals:
    def test_labels_of_normals_are_empty(self, tmp_path):
        for group, name in (("cases", "ill"), ("normals", "well")):
            save(tmp_path / group / f"{name}.nii.gz", brain(1))
        names = link_studies(tmp_path / "studies", tmp_path / "cases")
        assert names == ["ill"] and link_normals(tmp_path / "studies", tmp_path / "normals", names) == ["well"]
        assert (tmp_path / "studies" / "ill.nii.gz").resolve() == (tmp_path / "cases" / "ill.nii.gz").resolve()
        label = nib.load(tmp_path / "studies" / "labels" / "final" / "well.nii.gz")
        image = nib.load(tmp_path / "normals" / "well.nii.gz")
        assert label.shape == image.shape and not np.asarray(label.dataobj).any()
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-5)

    def test_drawn_label_is_kept(self, tmp_path):
        save(tmp_path / "normals" / "well.nii.gz", brain(1))
        link_normals(tmp_path / "studies", tmp_path / "normals")
        label = tmp_path / "studies" / "labels" / "final" / "well.nii.gz"
        save(label, np.ones(brain(1).shape, np.uint8))
        link_normals(tmp_path / "studies", tmp_path / "normals")
        assert np.asarray(nib.load(label).dataobj).all()

    def test_name_in_studies_and_normals_raises(self, tmp_path):
        for group in ("cases", "normals"):
            save(tmp_path / group / "one.nii.gz", brain(1))
        names = link_studies(tmp_path / "studies", tmp_path / "cases")
        with pytest.raises(InputError, match="both have a case 'one'"):
            link_normals(tmp_path / "studies", tmp_path / "normals", names)

    def test_linked_label_is_not_followed(self, tmp_path):
        save(tmp_path / "normals" / "well.nii.gz", brain(1))
        label = tmp_path / "served" / "studies" / "labels" / "final" / "well.nii.gz"
        label.parent.mkdir(parents=True)
        label.symlink_to(tmp_path / "not-there-now.nii.gz")
        link_normals(tmp_path / "served" / "studies", tmp_path / "normals")
        assert label.is_symlink() and not (tmp_path / "not-there-now.nii.gz").exists()


class TestShipOnce:
    def test_other_model_or_settings_raise(self, shipped, tmp_path, output):
        model = tmp_path / "model.pt"
        shutil.copy(shipped / "models" / "model.pt", model)
        trained = export_once(str(model), output, TINY) / "models" / "model.pt"
        trained.write_bytes(b"trained since")
        export_once(str(model), output, TINY)
        with pytest.raises(InputError, match="other settings"):
            export_once(str(model), output, {**TINY, "target_fpr": 0.05})
        model.write_bytes(b"another")
        with pytest.raises(InputError, match="another model"):
            export_once(str(model), output, TINY)
        assert trained.read_bytes() == b"trained since"

    def test_copy_of_unknown_model_is_kept(self, shipped, tmp_path, output):
        shutil.copytree(shipped, output.path / "anomaly")
        before = digests(output.path / "anomaly")
        with pytest.raises(InputError, match="delete it to begin"):
            export_once(str(shipped / "models" / "model.pt"), output, TINY)
        assert digests(output.path / "anomaly") == before


class TestServe:
    def test_setting_for_given_bundles_raises(self, tmp_path):
        with pytest.raises(InputError, match=r"give target_fpr to scripts\.export_bundle"):
            serve(bundles=str(tmp_path), output_dir=str(tmp_path / "out"), target_fpr=0.05)

    def test_occupied_port_raises(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(InputError, match="is taken"):
                check_address("127.0.0.1", taken.getsockname()[1])

    @pytest.mark.parametrize("port", ["http", 0, -1, 65536, 80.5, True, None])
    def test_invalid_port_raises(self, port):
        with pytest.raises(InputError, match="whole number from 1 to 65535"):
            check_address("127.0.0.1", port)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "viewer.hospital"])
    def test_other_machines_need_authentication(self, monkeypatch, host):
        monkeypatch.delenv(command.AUTHENTICATION, raising=False)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(InputError, match="anyone there could read the images"):
            check_address(host, port)
        monkeypatch.setenv(command.AUTHENTICATION, "true")
        check_address(host, port)

    @pytest.mark.parametrize("text", ["*", '"http://a"', '["*"]', "{", '["a.example"]'])
    def test_wrong_origins_raise(self, monkeypatch, text):
        monkeypatch.setenv(command.ORIGINS, text)
        with pytest.raises(InputError, match="must be a list such as"):
            command.allowed_origins()

    def test_numbers_and_commas_are_paths(self, monkeypatch):
        opened = []
        monkeypatch.setattr(command, "check_address", lambda host, port: None)
        monkeypatch.setattr(
            command, "open_output", lambda output_dir: opened.append(output_dir) or RecordedDirectory("")
        )
        for name in ("2024", "1e3", "a,b", "[1]", "None"):
            with pytest.raises(InputError, match="empty name"):
                fire.Fire(serve, ["--studies", name, "--normals", name, "--ckpt_path", name, "--output_dir", name])
        assert opened == ["2024", "1e3", "a,b", "[1]", "None"]

    def test_empty_path_raises(self):
        with pytest.raises(InputError, match="studies must name"):
            serve(studies="", port=1)
        with pytest.raises(InputError, match="output_dir must name"):
            serve(output_dir="", port=1)


class TestOpenedOutput:
    def test_foreign_folder_is_left_alone(self, tmp_path):
        (tmp_path / "study" / "app").mkdir(parents=True)
        (tmp_path / "study" / "app" / "main.py").write_text("somebody's")
        before = digests(tmp_path)
        with pytest.raises(InputError, match="did not write, such as 'app'"), open_output(str(tmp_path / "study")):
            pass
        assert digests(tmp_path) == before

    def test_folder_that_cannot_be_made_raises(self, tmp_path):
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(InputError, match="output_dir"), open_output(str(path)):
                pass

    def test_second_server_raises(self, tmp_path):
        with open_output(str(tmp_path / "served")) as output:
            (output.path / ".dpmm_partial-server").mkdir()
            with pytest.raises(InputError, match="Another run"), open_output(str(tmp_path / "served")):
                pass
            assert (output.path / ".dpmm_partial-server").is_dir()
        with open_output(str(tmp_path / "served")) as output:
            assert not (output.path / ".dpmm_partial-server").exists()  # left by a server that was killed

    def test_labels_of_version_0_4_are_kept(self, shipped, tmp_path):
        images, served = tmp_path / "images", tmp_path / "served"
        save(images / "ill.nii.gz", brain(1))
        with open_output(str(tmp_path / "later")) as output:
            studies = link_all_studies(output, images, None).name
        (served / "app").mkdir(parents=True)
        (served / "app" / "server.py").write_text("class Refusals:\n    pass\n")
        drawn = served / studies / "labels" / "final" / "ill.nii.gz"
        save(drawn, np.ones(brain(1).shape, np.uint8))
        (served / studies / "datastore_v2.json").write_text("{}")
        (served / studies / "ill.nii.gz").symlink_to(images / "ill.nii.gz")
        (served / studies / "old.nii.gz").symlink_to(images / "old.nii.gz")
        shutil.copytree(shipped, served / "anomaly")
        model = str(shipped / "models" / "model.pt")
        origin = {"model": hashlib.sha256(Path(model).read_bytes()).hexdigest(), "settings": TINY}
        (served / "anomaly_origin.json").write_text(json.dumps(origin))
        before = digests(served)
        with open_output(str(served)) as output:
            assert link_all_studies(output, images, None) == drawn.parents[2]
            export_once(model, output, TINY)
        after = digests(served)
        gone = {served / "app" / "server.py", served / studies / "old.nii.gz"}
        assert {path: after.get(path) for path in before if path not in gone} == {
            path: digest for path, digest in before.items() if path not in gone
        }
        assert (served / "app_0.4" / "server.py").is_file() and not (served / studies / "old.nii.gz").is_symlink()


class TestMakeApp:
    def test_app_is_renewed_and_changes_are_kept(self, sample, output):
        bundle = output.path / "bundles" / "anomaly"
        bundle.mkdir(parents=True)
        app = make_app(output, [bundle])
        assert (app / "model" / "anomaly").resolve() == bundle.resolve()
        assert (app / "bundle_app.py").read_text() == "# main.py" and (app / "lib" / "infers" / "__init__.py").is_file()
        (app / "logs").mkdir()
        (app / "logs" / "app.log").write_text("logged")
        (sample / "main.py").write_text("# newer")
        make_app(output, [bundle])
        assert (app / "bundle_app.py").read_text() == "# newer" and (app / "logs" / "app.log").read_text() == "logged"
        (app / "main.py").write_text("changed")
        with pytest.raises(InputError, match="changed since; rename it"):
            make_app(output, [bundle])
        assert (app / "main.py").read_text() == "changed"

    def test_foreign_link_is_kept(self, sample, tmp_path, output):
        (output.path / "app" / "model").mkdir(parents=True)
        (output.path / "app" / "model" / "anomaly").symlink_to(tmp_path / "theirs")
        with pytest.raises(InputError, match="not a link that this program made"):
            make_app(output, [output.path / "anomaly"])
        assert (output.path / "app" / "model" / "anomaly").readlink() == tmp_path / "theirs"


class TestCopyBundles:
    def test_bundles_are_copied_once(self, shipped, tmp_path, output):
        bundle = tmp_path / "mine"
        shutil.copytree(shipped, bundle)
        (bundle / ".git").mkdir()
        (bundle / "linked.txt").symlink_to(bundle / "LICENSE")
        (bundle / "dangling").symlink_to(bundle / "nowhere")
        before = digests(bundle)
        (copy,) = copy_bundles(output, [bundle])
        assert (copy / "linked.txt").is_file() and not any(path.is_symlink() for path in copy.rglob("*"))
        assert not (copy / ".git").exists()
        (copy / "models" / "model.pt").write_bytes(b"trained since")
        assert copy_bundles(output, [bundle]) == [copy]
        assert (copy / "models" / "model.pt").read_bytes() == b"trained since" and digests(bundle) == before
        (bundle / "models" / "model.pt").write_bytes(b"another")
        with pytest.raises(InputError, match="another model"):
            copy_bundles(output, [bundle])

    def test_bundles_that_cannot_be_copied_raise(self, shipped, tmp_path, monkeypatch):
        with open_output(str(tmp_path / "served")) as output:
            with pytest.raises(InputError, match="There is no bundle in"):
                copy_bundles(output, [tmp_path / "nothing"])
            with pytest.raises(InputError, match="same name"):
                copy_bundles(output, [tmp_path / "a" / "anomaly", tmp_path / "b" / "anomaly"])

            def full(*_, **__):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(shutil, "copytree", full)
            with pytest.raises(InputError, match="No space left"):
                copy_bundles(output, [shipped])
        with open_output(str(shipped / "served")) as output:
            try:
                with pytest.raises(InputError, match="lies in the bundle"):
                    copy_bundles(output, [shipped])
            finally:
                shutil.rmtree(shipped / "served")


class TestLinkStudies:
    def test_own_links_are_renewed_and_others_kept(self, tmp_path):
        for name in ("a", "b"):
            save(tmp_path / "cases" / f"{name}.nii.gz", brain(1))
        studies = tmp_path / "served" / "studies"
        link_studies(studies, tmp_path / "cases")
        (studies / "theirs.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
        (studies / "uploaded.nii.gz").write_text("uploaded")
        (studies / "b.nii.gz").unlink()
        (studies / "b.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
        for name in ("a", "b"):
            (tmp_path / "cases" / f"{name}.nii.gz").unlink()
        save(tmp_path / "cases" / "c.nii.gz", brain(1))
        for _ in range(2):
            assert link_studies(studies, tmp_path / "cases") == ["c"]
            names = {path.name for path in studies.iterdir()}
            assert names == {RECORD, "b.nii.gz", "c.nii.gz", "theirs.nii.gz", "uploaded.nii.gz"}

    def test_upload_is_not_replaced(self, tmp_path):
        save(tmp_path / "cases" / "a.nii.gz", brain(1))
        studies = tmp_path / "served" / "studies"
        link_studies(studies, tmp_path / "cases")
        save(tmp_path / "cases" / "b.nii.gz", brain(1))
        (studies / "b.nii.gz").write_text("uploaded")
        with pytest.raises(InputError, match="such as an uploaded image"):
            link_studies(studies, tmp_path / "cases")
        assert (studies / "b.nii.gz").read_text() == "uploaded"

    def test_foreign_folder_is_left_alone(self, tmp_path):
        save(tmp_path / "cases" / "a.nii.gz", brain(1))
        save(tmp_path / "served" / "studies" / "theirs.nii.gz", brain(2))
        (tmp_path / "served" / "studies" / "linked.nii.gz").symlink_to(tmp_path / "cases" / "a.nii.gz")
        before = digests(tmp_path)
        with pytest.raises(InputError, match="did not put there"):
            link_studies(tmp_path / "served" / "studies", tmp_path / "cases")
        assert digests(tmp_path) == before

    def test_output_among_the_studies_is_no_study(self, tmp_path):
        save(tmp_path / "cases" / "a.nii.gz", brain(1))
        for _ in range(2):
            with open_output(str(tmp_path / "cases" / "served")) as output:
                studies = link_all_studies(output, tmp_path / "cases", None)
                assert sorted(path.name for path in studies.glob("*.nii.gz")) == ["a.nii.gz"]

    def test_names_are_printable(self, tmp_path):
        save(tmp_path / "cases" / "a\nb.nii.gz", brain(1))
        (name,) = link_studies(tmp_path / "served" / "studies", tmp_path / "cases")
        assert name.isprintable() and (tmp_path / "served" / "studies" / f"{name}.nii.gz").is_symlink()
