"""Rules for requests to MONAI Label, and protection of its folder of studies."""

import json
import subprocess

import pytest

from label.request_rules import NAMES, refusal
from tests.integration.label_server import PYTHON
from tests.tiny_bundle import ROOT

BAD_NAMES = (".", "..", " ", "../a", "/a", "a/b", "a\\b", "..\\a", "a\0", "a\n", "\x1b[2J", "a\u2028b", "é" * 101)
GOOD_NAMES = (
    "lesion-05",
    "sub-1_T1w.v2",
    "Volume 1",
    "Größe",
    ".hidden",
    "..a",
    "1.2.840.113619.2",
    "a\u202fb",
    "患者",
    "$x",
)
EXPRESSIONS = ("$print()", " $print()", "@device", "%train.json::data")


def refused(*arguments, **others):
    """Return the status of a refusal, or None; its sentence must be printable and short."""
    result = refusal(*arguments, **others)
    assert result is None or (result[1].isprintable() and len(result[1]) < 1000)
    return result and result[0]


class TestNames:
    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_bad_name_is_refused(self, name):
        for key in NAMES:
            assert refused("GET", "/x", {key: name}) == 422
            assert refused("GET", "/x", {}, query=[(key, "a"), (key, name)]) == 422
            assert refused("GET", "/x", {}, form=[(key, name)]) == 422
            for value in (name, [name], ["a", [name]], {"a": {key: name}}):
                assert refused("GET", "/x", {}, body={key: value}) == 422
        assert refused("PUT", "/session/", {}, query=[("session_id", "a")], body=[{"image": name}]) == 422

    @pytest.mark.parametrize("name", GOOD_NAMES)
    def test_plain_name_passes(self, name):
        is_expression = name.startswith("$")
        for key in NAMES:
            assert refused("GET", "/x", {key: name}, query=[(key, name)], form=[(key, name)]) is None
            assert refused("GET", "/x", {}, body={key: [name]}) == (422 if is_expression else None)

    def test_empty_name(self):
        empty = [(key, "") for key in NAMES]
        assert (
            refused("POST", "/infer/anomaly", {"model": "anomaly"}, query=empty, form=empty, body=dict(empty)) is None
        )
        for key in NAMES:
            assert refused("DELETE", "/datastore/", {}, query=[(key, "")]) == 422
            assert refused("DELETE", "/datastore/", {key: ""}) == 422

    def test_names_of_uploaded_files(self):
        for name in ("a.nii.gz", "/tmp/a.nii.gz", "C:\\Users\\me\\a.nii.gz", ""):
            assert refused("PUT", "/session/", {}, file_names=[name]) is None
        for name in ("..", "/tmp/..", "/tmp/", "C:\\..", "a\0.nii", "a\n.nii"):
            assert refused("PUT", "/session/", {}, file_names=[name]) == 422


class TestSettings:
    @pytest.mark.parametrize("text", EXPRESSIONS)
    def test_expressions_are_refused(self, text):
        for settings in ({"threshold": text}, {"a": [1, {"b": text}]}, {"anomaly": {"max_epochs": text}}):
            assert refused("POST", "/train/anomaly", {}, body=settings) == 422
        assert refused("POST", "/infer/anomaly", {}, form=[("params", json.dumps({"threshold": text}))]) == 422

    @pytest.mark.parametrize("value", ["{", "[1]", "1", "null", '"a"', "[" * 100_000, '{"a":' * 100_000])
    def test_settings_in_a_form_are_an_object(self, value):
        for field in ("params", "info", "wsi"):
            assert refused("POST", "/infer/anomaly", {}, form=[(field, value)]) == 422
        assert refused("POST", "/infer/anomaly", {}, form=[("params", ""), ("comment", value)]) is None

    def test_targets_and_paths_are_refused(self):
        assert refused("POST", "/train/a", {}, body={"threshold": {"_target_": "os.remove", "path": "/a"}}) == 422
        for key in ("tracking_uri", "bundle_path"):
            assert refused("POST", "/train/a", {}, body={"a": {key: "file:///a"}}) == 422
            assert refused("POST", "/train/a", {}, body={key: ["/a"]}) == 422
            assert refused("POST", "/train/a", {}, body={key: ""}) is None

    def test_deep_body_is_searched(self):
        settings = {"threshold": "$print()"}
        for _ in range(100_000):
            settings = [settings]
        assert refused("POST", "/train/a", {}, body=settings) == 422

    def test_requests_of_viewers_pass(self):
        training = {
            "device": ["NVIDIA H200", "AMD Radeon RX 6800/6800 XT"],
            "max_epochs": 50,
            "val_split": 0.2,
            "multi_gpu": True,
            "gpus": "all",
            "tracking": ["mlflow", "None"],
            "tracking_uri": "",
            "run_id": "",
            "model_filename": ["model.pt"],
            "client_id": "user-xyz",
        }
        assert refused("POST", "/train/anomaly", {"model": "anomaly"}, body={"anomaly": training}) is None
        label = '{"label_info": [{"name": "a/b", "color": [255, 0, 0]}], "result_extension": ".nrrd", "threshold": 2.0}'
        query = [("image", "lesion"), ("session_id", ""), ("output", "image")]
        assert refused("POST", "/infer/anomaly", {"model": "anomaly"}, query=query, form=[("params", label)]) is None


class TestAddresses:
    def test_archives_are_not_unpacked(self):
        for value in ("true", "1", "yes", "on", "t", "Y", "anything"):
            assert refused("PUT", "/session/", {}, query=[("uncompress", value)]) == 403
        for value in ("false", "0", "No", "off", ""):
            assert refused("PUT", "/session/", {}, query=[("uncompress", value)]) is None
        assert refused("PUT", "/session/", {}, query=[("uncompress", "false"), ("uncompress", "true")]) == 403

    def test_dicomweb_is_read_only(self):
        for method in ("POST", "PUT", "DELETE"):
            assert refused(method, "/proxy/dicom/stow/studies", {"path": "studies"}) == 403
        for path in ("../tools", "..\\tools", "%2e%2e/tools", "studies/.."):
            assert refused("GET", f"/proxy/dicom/{path}", {"path": path}) == 422
        assert refused("GET", "/proxy/dicom/wado/studies/1.2/series", {"path": "studies/1.2/series"}) is None


STUDIES = """
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore
from read_only_studies import ReadOnlyStudies

folder = Path(sys.argv[1])
original, sent = folder / "originals" / "a.nii.gz", folder / "sent.nii.gz"
original.parent.mkdir()
nib.save(nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4)), original)
nib.save(nib.Nifti1Image(np.eye(4, dtype=np.uint8)[..., None].repeat(4, -1), np.eye(4)), sent)
before = original.read_bytes()
(folder / "studies").mkdir()
(folder / "studies" / "a.nii.gz").symlink_to(original)
(folder / "studies" / "gone.nii.gz").symlink_to(folder / "originals" / "gone.nii.gz")
store = ReadOnlyStudies(str(folder / "studies"))


def status(method, *arguments):
    try:
        getattr(store, method)(*arguments)
    except HTTPException as error:
        return error.status_code


for name in ("a", "gone"):
    assert status("add_image", name, str(sent), {}) == 403, name
assert status("add_image", "a", str(folder / "x.nii"), {}) == 403
for name in ("../originals/a", str(folder / "originals" / "a"), "..", "a/b"):
    assert status("add_image", name, str(sent), {}) == 422, name
assert status("add_image", "datastore_v2", str(folder / "x.json"), {}) == 422
assert status("remove_image", "a") == 403 and status("remove_image", "b") == 404
for tag in ("..", "../../originals", str(folder / "originals")):
    assert status("save_label", "a", str(sent), tag, {}) == 422, tag
assert status("save_label", "b", str(sent), "final", {}) == 404

store._datastore.objects["../originals/a"] = store._datastore.objects["a"].model_copy(deep=True)  # a forged file
assert status("remove_image", "../originals/a") == 403
(folder / "studies" / "labels" / "linked").symlink_to(folder / "originals")
assert status("save_label", "a", str(sent), "linked", {}) == 403
store.refresh()
assert status("remove_label", "a", "linked") == 403

for values in (np.zeros((4, 4, 3)), np.full((4, 4, 4), 0.5), -np.ones((4, 4, 4)), np.full((4, 4, 4), np.nan)):
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), folder / "wrong.nii.gz")
    assert status("save_label", "a", str(folder / "wrong.nii.gz"), "final", {}) == 422
(folder / "text.nii.gz").write_text("text")
assert status("save_label", "a", str(folder / "text.nii.gz"), "final", {}) == 422
assert status("save_label", "a", str(sent), "final", {}) is None and status("remove_label", "a", "final") is None
assert status("remove_label", "a", "final") == 404
assert status("add_image", "", str(sent), {}) is None and status("remove_image", "sent") is None
assert not (folder / "studies" / "sent.nii.gz").exists() and original.read_bytes() == before
"""


class TestReadOnlyStudies:
    @pytest.mark.label
    def test_originals_are_guarded(self, tmp_path):
        if not PYTHON.is_file():
            pytest.skip("NOT TESTED: MONAI Label is not installed; make .venv-label/installed")
        done = subprocess.run([PYTHON, "-c", STUDIES, tmp_path], cwd=ROOT / "label", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert sorted(path.name for path in (tmp_path / "originals").iterdir()) == ["a.nii.gz"]
