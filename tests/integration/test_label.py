"""A real MONAI Label server with the bundle: inference, training, and answers to wrong input."""

import hashlib
import json
import shutil
import tarfile
import time

import nibabel as nib
import numpy as np
import pytest
import requests
import torch

from tests.integration.label_server import label_server
from tests.tiny_bundle import run_bundle
from tests.tiny_cases import brain, save

pytestmark = pytest.mark.label

AFFINE = np.diag([-0.9, 1.1, 4.0, 1])
LESION = (slice(18, 24), slice(20, 26), slice(2, 4))
CASES = {"plain": brain(8), "lesion": brain(9, lesion=LESION), "oblong": brain(10, shape=(31, 57, 3), lesion=LESION)}
OTHER_NETWORK = """
import torch


class PatchAnomalyNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("limit", torch.zeros(1))

    def forward(self, images):
        return (images > self.limit).float()
"""
OTHER_INFERENCE = {
    "device": "cpu",
    "network_def": {"_target_": "scripts.models.PatchAnomalyNetwork"},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "EnsureTyped", "keys": "pred"}]},
}


def make_other_bundle(folder, shipped):
    """Make another author's bundle whose ``scripts`` has modules and classes of the same names."""
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir(parents=True)
    shutil.copy(shipped / "configs" / "metadata.json", folder / "configs")
    (folder / "configs" / "inference.json").write_text(json.dumps(OTHER_INFERENCE))
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "models.py").write_text(OTHER_NETWORK)
    torch.save({"limit": torch.tensor([700.0])}, folder / "models" / "model.pt")


@pytest.fixture(scope="module")
def folder(shipped, tmp_path_factory):
    """Make studies, normals and five bundles: ours, ours to train, unfitted and without model, and another's."""
    folder = tmp_path_factory.mktemp("label")
    for name, image in CASES.items():
        save(folder / "in" / f"{name}.nii.gz", image, AFFINE)
    save(folder / "in" / "four-d.nii.gz", np.stack([CASES["plain"]] * 6, -1))
    save(folder / "in" / "tiny.nii.gz", CASES["plain"][15:25, 15:25])
    save(folder / "in" / "flat.nii.gz", np.full((40, 40, 4), 3, np.int16))
    (folder / "in" / "text.nii.gz").write_text("not an image")
    whole = (folder / "in" / "plain.nii.gz").read_bytes()
    (folder / "in" / "cut-off.nii.gz").write_bytes(whole[: len(whole) // 2])
    for seed in range(5):
        save(folder / "normals" / f"normal-{seed}.nii.gz", brain(20 + seed), AFFINE)
    for name in ("anomaly", "trained", "unfitted", "empty"):
        shutil.copytree(shipped, folder / name)
    fitted = torch.load(shipped / "models" / "model.pt", weights_only=True)
    unfitted = {name: value for name, value in fitted.items() if not name.startswith("calibration")}
    torch.save(unfitted, folder / "unfitted" / "models" / "model.pt")
    (folder / "empty" / "models" / "model.pt").unlink()
    make_other_bundle(folder / "other", shipped)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    bundles = ",".join(str(folder / name) for name in ("anomaly", "trained", "unfitted", "empty", "other"))
    flags = ("--bundles", bundles, "--studies", str(folder / "in"), "--normals", str(folder / "normals"))
    with label_server(folder / "served", *flags) as running:
        yield running


def mask_of(response, path):
    """Return the label of a response."""
    assert response.status_code == 200, response.text
    path.write_bytes(response.content)
    return nib.load(path)


def infer_locally(folder, tmp_path, model="anomaly", images=None, **settings):
    """Return masks and measurements of the bundle's inference with a model."""
    cases = tmp_path / "cases"
    cases.mkdir(exist_ok=True)
    for name in CASES:
        shutil.copy((images or folder / "in") / f"{name}.nii.gz", cases)
    ckpt = str(folder / model / "models" / "model.pt")
    run_bundle("inference", dataset_dir=str(cases), output_dir=str(tmp_path / "own"), ckpt_path=ckpt, **settings)
    masks = {name: nib.load(tmp_path / "own" / name / f"{name}_mask.nii.gz") for name in CASES}
    summary = json.loads((tmp_path / "own" / "summary.json").read_text())
    return masks, {entry.pop("case"): entry for entry in summary["cases"]}


@pytest.fixture(scope="module")
def local_results(folder, tmp_path_factory):
    """Run the bundle's inference on all cases once; return masks and measurements."""
    return infer_locally(folder, tmp_path_factory.mktemp("local"))


def digests(folder):
    """Return the SHA-256 by path of all files outside the server's folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and "served" not in path.relative_to(folder).parts[0]]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def leaves(value):
    """Yield the values in nested lists and dicts."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def assert_same(label, mask):
    assert np.array_equal(np.asarray(label.dataobj), np.asarray(mask.dataobj))


class TestInference:
    def test_label_is_the_mask_of_the_bundle(self, server, tmp_path, local_results):
        masks, _ = local_results
        for name, mask in masks.items():
            label = mask_of(server.infer("anomaly", name, "image"), tmp_path / "label.nii.gz")
            assert_same(label, mask)
            np.testing.assert_allclose(label.affine, mask.affine, atol=1e-5)
            assert label.get_data_dtype() == np.uint8
        assert np.asarray(masks["lesion"].dataobj)[LESION].mean() > 0.5

    def test_uploaded_image(self, server, folder, tmp_path, local_results):
        masks, _ = local_results
        with open(folder / "in" / "lesion.nii.gz", "rb") as file:
            label = mask_of(
                server.infer("anomaly", "", "image", {"file": ("x.nii.gz", file)}), tmp_path / "label.nii.gz"
            )
        assert_same(label, masks["lesion"])

    def test_session(self, server, folder, tmp_path, local_results):
        masks, _ = local_results
        answer = server.infer_in_session("anomaly", "Volume 1", folder / "in" / "lesion.nii.gz")
        assert_same(mask_of(answer, tmp_path / "label.nii.gz"), masks["lesion"])

    def test_json_has_the_measurements_of_the_summary(self, server, local_results):
        _, entries = local_results
        for name, entry in entries.items():
            answer = server.infer("anomaly", name, "json").json()
            assert answer["label_names"] == {"anomaly": 1}
            for key, value in entry.items():
                assert [*leaves(answer[key])] == [
                    pytest.approx(leaf, rel=1e-5) if isinstance(leaf, float) else leaf for leaf in leaves(value)
                ], key

    def test_displayed_settings_are_used(self, server, folder, tmp_path):
        config = server.get("info/").json()["models"]["anomaly"]["config"]
        assert (config["threshold"], config["smoothing_mm"], config["false_regions"]) == (0.0, 0.0, 0.25)
        assert config.keys() >= {"extent", "min_region_mm3"}
        for settings in ({"threshold": 0.4}, {"smoothing_mm": 3.0}, {"false_regions": 4.0, "extent": 0.2}, {}):
            masks, _ = infer_locally(folder, tmp_path, **settings)
            assert_same(
                mask_of(server.infer("anomaly", "lesion", "image", **settings), tmp_path / "l.nii.gz"), masks["lesion"]
            )

    def test_two_bundles_in_one_server(self, server, tmp_path, local_results):
        masks, _ = local_results
        for name in ("lesion", "oblong", "lesion"):
            assert_same(mask_of(server.infer("anomaly", name, "image"), tmp_path / "l.nii.gz"), masks[name])
            other = mask_of(server.infer("other", name, "image"), tmp_path / "l.nii.gz")
            assert np.array_equal(np.asarray(other.dataobj) == 1, CASES[name] > 700)


class TestTraining:
    def test_training_replaces_the_model_in_use(self, server, folder, tmp_path):
        originals, copy = digests(folder), folder / "served" / "bundles" / "trained"
        before = (copy / "models" / "model.pt").read_bytes()
        marked = np.zeros(CASES["lesion"].shape, np.uint8)
        marked[LESION] = 1
        save(tmp_path / "marked.nii.gz", marked, AFFINE)
        server.put_label("lesion", tmp_path / "marked.nii.gz")  # labelled, but not normal: left out
        response = server.train("trained", max_epochs=4)
        assert response.status_code == 200, response.text
        assert (copy / "models" / "model.pt").read_bytes() != before
        assert digests(folder) == originals
        data = json.loads((copy / "output" / "fit_report.json").read_text())["data"]
        assert data["train"]["cases"] + data["validation"]["cases"] == 5
        masks, entries = infer_locally(folder / "served" / "bundles", tmp_path, "trained", folder / "in")
        for name, mask in masks.items():
            assert_same(mask_of(server.infer("trained", name, "image"), tmp_path / "l.nii.gz"), mask)
        score = server.infer("trained", "lesion", "json").json()["image_score"]
        assert score == pytest.approx(entries["lesion"]["image_score"], rel=1e-5)
        assert score != pytest.approx(server.infer("anomaly", "lesion", "json").json()["image_score"], rel=1e-3)

    def test_training_in_the_background_logs_epochs(self, server):
        details = server.train_in_background("trained", max_epochs=3)
        assert any("epoch 3/3: validation log-likelihood" in line for line in details)

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [({"val_split": 0.0}, "None of 0 cases is normal"), ({"max_epochs": 0}, "max_epochs must")],
    )
    def test_failed_training_keeps_the_model(self, server, folder, settings, expected):
        model = folder / "served" / "bundles" / "anomaly" / "models" / "model.pt"
        before = model.read_bytes()
        response = server.train("anomaly", **settings)
        assert response.status_code == 422 and expected in response.json()["detail"]
        assert model.read_bytes() == before
        assert server.infer("anomaly", "lesion", "json").status_code == 200


class TestWrongInput:
    @pytest.mark.parametrize(
        ("model", "image", "status", "expected"),
        [
            ("anomaly", "four-d", 422, "6 volumes or channels"),
            ("anomaly", "tiny", 422, "10 x 10 pixels"),
            ("anomaly", "flat", 422, "every voxel is 3"),
            ("anomaly", "text", 422, "the file is damaged"),
            ("anomaly", "cut-off", 422, "the file is damaged"),
            ("anomaly", "nobody", 404, "There is no image 'nobody'"),
            ("anomaly", "../in/lesion", 422, "must be a plain name"),
            ("anomaly", "/etc/hostname", 422, "must be a plain name"),
            ("unfitted", "lesion", 422, "is not a model of this network"),
            ("empty", "lesion", 404, "no fitted model 'empty'"),
            ("nothing", "lesion", 404, "no fitted model 'nothing'"),
        ],
    )
    def test_bad_image_is_answered_with_a_reason(self, server, folder, model, image, status, expected):
        before = sorted(path for path in (folder / "served").rglob("*") if "logs" not in path.parts)
        for output in ("image", "json"):
            response = server.infer(model, image, output)
            assert response.status_code == status and expected in response.json()["detail"], response.text
        assert sorted(path for path in (folder / "served").rglob("*") if "logs" not in path.parts) == before
        assert server.infer("anomaly", "lesion", "json").status_code == 200

    def test_setting_out_of_range(self, server):
        response = server.infer("anomaly", "lesion", "json", smoothing_mm=-1)
        assert response.status_code == 422 and "at least 0 and at most 50" in response.json()["detail"]
        assert server.infer("anomaly", "lesion", "json").status_code == 200

    def test_wrong_parameters_are_refused_before_anything_is_read(self, server):
        wrong = [{"threshold": value} for value in (None, -1, "2.0", True, [1.0], {"a": 1}, float("nan"), float("inf"))]
        wrong += [{"smoothing_mm": 1e9}, {"false_regions": 17}, {"extent": 1.1}, {"min_region_mm3": "1"}]
        wrong += [{"unknown": 1}, {"threshold ": 1}, {"image": "lesion"}, {"session": {}}, {"device": "cuda:77"}]
        wrong += [{"result_extension": ".exe"}, {"result_dtype": "object"}, {"save_label": "yes"}, {"label_info": 1}]
        wrong += [{"model_filename": "other.pt"}, {"logging": "LOUD"}, {"threshold": 10**400}, {"x" * 10_000: 1}]
        for params in wrong:
            image = {"image": "text", "output": "json"}
            response = server.send("POST", "infer/anomaly", params=image, **with_params(**params))
            detail = response.json()["detail"]
            assert response.status_code == 422 and "the file is damaged" not in detail, (params, detail)
            assert detail.isprintable() and 10 < len(detail) < 1000

    def test_unread_parameters_are_refused(self, server):
        for arguments in (
            {"params": {"image": "lesion"}, "json": {"threshold": 2.0}},
            {"params": {"image": "lesion", "threshold": 2.0}},
            {"params": {"image": "lesion", "output": "picture"}},
            {"params": {"image": "lesion", "output": "dicom_seg"}},
            {"params": {"image": "lesion"}, "data": {"params": "[]"}},
            {},
        ):
            response = server.send("POST", "infer/anomaly", **arguments)
            assert response.status_code == 422 and response.json()["detail"], arguments

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("POST", "infer/anomaly?image=lesion&session_id=bogus", 404),
            ("GET", "session/bogus", 404),
            ("POST", "activelearning/bogus", 404),
            ("POST", "scoring/bogus", 404),
            ("POST", "train/bogus", 404),
            ("POST", "batch/infer/bogus", 404),
            ("POST", "infer/wsi/anomaly?image=lesion", 404),
            ("POST", "reload", 404),
            ("GET", "model/bogus", 404),
            ("PUT", "model/anomaly", 403),
            ("DELETE", "model/anomaly", 403),
            ("POST", "infer/anomaly?output=json", 422),
            ("GET", "datastore/image", 422),
        ],
    )
    def test_unknown_things_are_answered_with_a_sentence(self, server, method, path, status):
        response = server.send(method, path)
        assert response.status_code == status and isinstance(response.json()["detail"], str)

    def test_other_types_of_json_are_checked_as_well(self, server, folder):
        evil = folder / "evil"
        config = json.dumps({"configs": {"evil": f"$open({str(evil)!r}, 'w')"}})
        session = requests.put(f"{server.address}/session/", files={"files": ("x.json", config)}, timeout=60).json()
        attack = {"tracking": session["session_info"]["image"], "run_id": "evil", "max_epochs": 1}
        for kind in ("application/json", "application/form+json", "APPLICATION/FORM+JSON; x=form", "text/form"):
            for params in (attack, {"client_id": "$1+1"}, {"tracking": "mlflow"}, {"gpus": "a\0b"}):
                data = {"data": json.dumps(params), "headers": {"Content-Type": kind}}
                assert server.send("POST", "train/anomaly", **data).status_code == 422, (kind, params)
        assert not evil.exists()

    def test_format_that_cannot_hold_the_result_is_refused(self, server):
        for params in ({"result_extension": ".png"}, {"result_extension": ".tif"}):
            response = server.infer("anomaly", "lesion", "image", **params)
            assert response.status_code == 422 and "A volume cannot be written" in response.json()["detail"]

    def test_uploads_keep_their_format(self, server, tmp_path):
        for name in ("x.nii", "X.NII.GZ", "x.y.nii.gz"):
            save(tmp_path / name.lower(), CASES["lesion"], AFFINE)
            with (tmp_path / name.lower()).open("rb") as file:
                assert server.infer("anomaly", "", "json", {"file": (name, file)}).status_code == 200, name

    def test_label_elsewhere_is_refused(self, server, tmp_path):
        zeros = np.zeros(CASES["lesion"].shape, np.uint8)
        shifted = AFFINE.copy()
        shifted[0, 3] += 7
        for affine in (np.diag([9.0, 9.0, 9.0, 1.0]), shifted):
            save(tmp_path / "l.nii.gz", zeros, affine)
            data = {"label": ("l.nii.gz", (tmp_path / "l.nii.gz").read_bytes())}
            answer = server.send("PUT", "datastore/label", params={"image": "lesion", "tag": "x"}, files=data)
            assert answer.status_code == 422 and "another place" in answer.json()["detail"]
        header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 40 40 5\nencoding: raw\ndata file: /etc/passwd\n\n"
        files = {"label": ("l.nrrd", header)}
        answer = server.send("PUT", "datastore/label", params={"image": "lesion", "tag": "x"}, files=files)
        assert answer.status_code == 422 and "holds its values itself" in answer.json()["detail"]

    def test_text_is_no_label(self, server, folder):
        before = digests(folder)
        for content in (b"text", (folder / "in" / "lesion.nii.gz").read_bytes()):
            image = {"image": "oblong", "tag": "final"}
            answer = server.send("PUT", "datastore/label", params=image, files={"label": ("l.nii.gz", content)})
            assert answer.status_code == 422 and "label" in answer.json()["detail"]
        assert digests(folder) == before and not list((folder / "served").glob("studies-*/labels/final/oblong*"))


NEW = ("new.nii.gz", b"not an original")
UPLOAD, LABEL = {"files": {"file": NEW}}, {"files": {"label": NEW}}


def with_params(**params):
    return {"data": {"params": json.dumps(params)}}


def attacks(folder):
    """Yield requests against files outside the server's folder: method, path, arguments, status."""
    original, evil = folder / "in" / "lesion.nii.gz", folder / "evil"
    run = f"$__import__('pathlib').Path({str(evil)!r}).write_text('run')"
    archive = folder / "served" / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "in" / "text.nii.gz", arcname=f"../../../../../../../../..{original}")
    outside = f"../../../in/{original.name}"
    for address in ("datastore/", "datastore/image"):
        yield "DELETE", address, {"params": {"id": "lesion"}}, 403
        yield "DELETE", address, {"params": {"id": "lesion.nii.gz"}}, 404
        for name in (str(original), "../in/lesion", "", ".", "..", "lesion\0", "lesion\n"):
            yield "DELETE", address, {"params": {"id": name}}, 422
        yield "PUT", address, {"params": {"image": "lesion"}, **UPLOAD}, 403
        yield "PUT", address, {"params": {"image": "lesion"}, "files": {"file": ("x.png", b"")}}, 403
        yield "PUT", address, {"files": {"file": ("lesion.nii.gz", b"")}}, 403
        yield "PUT", address, {"files": {"file": ("lesion.v2.nii.gz", b"")}}, 403
        yield "PUT", address, {"params": {"image": "datastore_v2"}, "files": {"file": ("x.json", b"{}")}}, 422
        for name in (str(original)[: -len(".nii.gz")], "../in/lesion", "..\\lesion", "", "."):
            yield "PUT", address, {"params": {"image": name}, **UPLOAD}, 422
    for tag in ("..", ".", "../..", "../../../in", str(original.parent), "", "..\\..", "a\0b"):
        yield "PUT", "datastore/label", {"params": {"image": "lesion", "tag": tag}, **LABEL}, 422
        yield "DELETE", "datastore/label", {"params": {"id": "lesion", "tag": tag}}, 422
        yield "POST", "infer/anomaly?image=lesion", with_params(save_label=True, label_tag=tag or ".."), 422
        yield "POST", "batch/infer/anomaly?run_sync=true", {"json": {"label_tag": tag or ".."}}, 422
    yield "PUT", "datastore/label", {"params": [("image", "lesion"), ("tag", ".."), ("tag", "final")], **LABEL}, 422
    yield "PUT", "datastore/label", {"params": {"image": outside}, **LABEL}, 422
    yield "PUT", "datastore/label", {"params": {"image": "nobody"}, **LABEL}, 404
    yield "DELETE", "datastore/label", {"params": {"id": "plain", "tag": "nothing"}}, 404
    yield "PUT", "session/?uncompress=true", {"files": {"files": ("evil.tar", archive.read_bytes())}}, 403
    yield "PUT", "session/", {"files": {"files": ("..", b"")}}, 422
    for session in ("..%2F..%2Fin", "%2e%2e", "%00"):
        for method in ("GET", "DELETE"):
            yield method, f"session/{session}", {}, (404, 422)
    yield "POST", "infer/anomaly", {"params": {"session_id": "../../in"}}, 422
    yield "POST", "infer/anomaly", {"params": {"session_id": str(folder / "in")}}, 422
    for method in ("PUT", "DELETE"):
        yield method, "model/..%2F..%2Fanomaly", {"files": {"file": NEW}}, 404
    for params in (
        {"threshold": run},
        {"device": run},
        {"threshold": {"_target_": "shutil.rmtree", "path": str(folder / "in")}},
        {"image": str(original), "save_label": True},
        {"model_filename": "../../../../evil.pt"},
        {"result_extension": "/../../evil.nii.gz"},
    ):
        yield "POST", "infer/anomaly?image=lesion", with_params(**params), 422
    for params in (
        {"max_epochs": run},
        {"anomaly": {"device": run}},
        {"tracking": "mlflow", "tracking_uri": evil.as_uri()},
        {"bundle_path": str(folder / "other")},
        {"model_filename": ["../../evil.pt"]},
        {"run_id": run},
    ):
        for address in ("train/anomaly", "train/", "batch/infer/anomaly", "scoring/", "activelearning/random"):
            yield "POST", f"{address}?run_sync=true", {"json": params}, 422
    yield "POST", "batch/infer/anomaly?run_sync=true", {"json": {"images": [str(original)]}}, 422
    yield "POST", "train/anomaly", {"data": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, (400, 422)
    yield "PUT", "datastore/image/info?image=lesion", {"data": {"info": "[1]"}}, 422
    yield "POST", "proxy/dicom/stow/studies", {"data": b"x"}, 403
    yield "GET", "proxy/dicom/wado/..%2F..%2Ftools", {}, 422


class TestFiles:
    def test_no_request_changes_an_original(self, server, folder):
        for method, path, arguments, status in attacks(folder):
            before = digests(folder)
            response = server.send(method, path, **arguments)
            assert response.status_code in (status if isinstance(status, tuple) else (status,)), (
                method,
                path,
                arguments,
            )
            assert response.json()["detail"].strip()
            assert digests(folder) == before, (method, path, arguments)
        assert server.infer("anomaly", "lesion", "json").status_code == 200
        assert set(CASES) <= set(server.get("datastore/", output="all").json()["objects"])

    def test_uploaded_image_belongs_to_the_server(self, server, folder):
        before, image = digests(folder), (folder / "in" / "lesion.nii.gz").read_bytes()
        for file_name in ("own.nii.gz", "/home/somebody/own.nii.gz"):  # 3D Slicer sends the path
            upload = {"params": {"image": "own"}, "files": {"file": (file_name, image)}}
            assert server.send("PUT", "datastore/", **upload).json() == {"image": "own"}
            assert server.send("PUT", "datastore/", **upload).status_code == 403
            (uploaded,) = (folder / "served").glob("studies-*/own.nii.gz")
            assert uploaded.read_bytes() == image and not uploaded.is_symlink()
            assert server.infer("anomaly", "own", "json").status_code == 200
            assert server.send("DELETE", "datastore/", params={"id": "own"}).status_code == 200
            assert not uploaded.exists()
        assert digests(folder) == before

    def test_label_is_stored_in_the_server_folder(self, server, folder):
        before = digests(folder)
        server.put_label("oblong", folder / "in" / "oblong.nii.gz")
        (label,) = (folder / "served").glob("studies-*/labels/final/oblong.nii.gz")
        assert label.is_file() and not label.is_symlink()
        label.unlink()
        label.symlink_to(folder / "in" / "plain.nii.gz")  # as a user with labels elsewhere may do
        image = {"image": "oblong", "tag": "final"}
        assert server.send("PUT", "datastore/label", params=image, files={"label": NEW}).status_code == 403
        assert server.send("DELETE", "datastore/label", params={"id": "oblong", "tag": "final"}).status_code == 403
        label.unlink()
        server.put_label("oblong", folder / "in" / "oblong.nii.gz")
        assert server.send("DELETE", "datastore/label", params={"id": "oblong", "tag": "final"}).status_code == 200
        assert not label.exists() and digests(folder) == before

    def test_temporary_files_stay_in_the_server_folder(self, server, folder):
        (temporary,) = (folder / "served").glob(".dpmm_partial-*")
        before = set(temporary.iterdir())
        assert server.get("datastore/dataset").content.startswith(b"PK")
        end = time.monotonic() + 30  # the archive is removed after the answer
        while set(temporary.iterdir()) != before:
            assert time.monotonic() < end, "the archive is still there"
            time.sleep(0.1)

    def test_sentences_name_no_folders(self, server, folder):
        for name in ("text", "cut-off"):
            detail = server.infer("anomaly", name, "json").json()["detail"]
            assert str(folder) not in detail and "/in/" not in detail
