"""Runs of the bundle by `monai.bundle`: configs, results, and errors for wrong input."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.data.foreground import fill_holes
from scripts.errors import InputError, cause_of
from tests.tiny_bundle import ROOT, run_bundle
from tests.tiny_cases import AFFINE, brain, save, save_dicom_series

pytestmark = pytest.mark.slow


def error_of(run_id, **overrides):
    """Return the sentence of a run that must fail."""
    with pytest.raises(Exception) as caught:
        run_bundle(run_id, **overrides)
    assert isinstance(cause_of(caught.value), InputError), repr(cause_of(caught.value))
    return str(cause_of(caught.value))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit on normals from another working directory than the bundle's; return the folder of both."""
    folder = tmp_path_factory.mktemp("fit")
    for seed in range(5):
        save(folder / "normals" / f"sub-{seed}.nii.gz", brain(seed))
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_bundle("training", dataset_dir="normals", output_dir="fit", ckpt_path="model.pt")
    finally:
        os.chdir(before)
    return folder


def visible(folder):
    """Return the names of the files and folders that are not hidden."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def infer(fitted, cases, output, **overrides):
    run_bundle(
        "inference", dataset_dir=str(cases), output_dir=str(output), ckpt_path=str(fitted / "model.pt"), **overrides
    )


class TestTraining:
    def test_results(self, fitted):
        state = torch.load(fitted / "model.pt", weights_only=True)
        assert int(state["mixture.n_steps"]) > 0
        assert state["calibration.quantiles"][:4].isfinite().all()
        kept = {path.name for path in (fitted / "fit").iterdir()}
        shown = {name for name in kept if not name.startswith(".")}
        assert shown == {"embeddings", "fit_report.json", "fit_report.png", "last_epoch.pt", "tensorboard"}
        assert {path.suffix for path in (fitted / "fit" / "embeddings").glob("[!.]*")} == {".npy", ".npz"}

    def test_same_seed_gives_the_same_fit(self, fitted, tmp_path):
        run_bundle(
            "training",
            dataset_dir=str(fitted / "normals"),
            output_dir=str(tmp_path),
            ckpt_path=str(tmp_path / "again.pt"),
        )
        first = torch.load(fitted / "model.pt", weights_only=True)
        again = torch.load(tmp_path / "again.pt", weights_only=True)
        assert all(
            torch.equal(first[name].nan_to_num(), again[name].nan_to_num())
            for name in first
            if isinstance(first[name], torch.Tensor)
        )

    def test_bad_normal_is_left_out_and_reported(self, fitted, tmp_path):
        for file in (fitted / "normals").iterdir():
            (tmp_path / "normals").mkdir(exist_ok=True)
            (tmp_path / "normals" / file.name).symlink_to(file)
        save(tmp_path / "normals" / "flat.nii.gz", np.full((40, 40, 3), 7, np.int16))
        for seed in range(90, 95):
            save(tmp_path / "others" / f"{seed}.nii.gz", brain(seed))
        message = error_of(
            "training",
            dataset_dir=str(tmp_path / "normals"),
            validation_dir=str(tmp_path / "others"),
            output_dir=str(tmp_path / "fit"),
            ckpt_path=str(tmp_path / "m.pt"),
        )
        assert "1 of 11 cases failed" in message and "flat: every voxel is 7" in message
        assert (tmp_path / "m.pt").is_file()


class TestInference:
    def test_results_of_every_format(self, fitted, tmp_path, capfd):
        lesion = (slice(16, 22), slice(20, 26), slice(2, 4))
        save(tmp_path / "in" / "volume.nii.gz", brain(50, lesion=lesion))
        save(
            tmp_path / "in" / "one-folder-a-case" / "anything.nii", brain(51, shape=(31, 57, 3)), np.diag([1, 1, 3, 1])
        )
        save_dicom_series(tmp_path / "in" / "series", brain(52))
        (tmp_path / "in" / "slices").mkdir()
        grey = np.clip(brain(53)[..., 0] / 8, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "in" / "slices" / "grey.png")
        Image.fromarray(np.stack([grey, grey // 2, grey], -1)).save(tmp_path / "in" / "slices" / "colour.jpg")
        infer(fitted, tmp_path / "in", tmp_path / "out")

        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        entries = {entry["case"]: entry for entry in summary["cases"]}
        assert set(entries) == {"volume", "one-folder-a-case", "series", "slices_grey", "slices_colour"}
        assert summary["failed"] == {} and summary["settings"]["n_components"] == 8 and summary["versions"]["torch"]
        assert visible(tmp_path / "out") == {*entries, "report.html", "summary.json"}
        for case in entries:
            assert visible(tmp_path / "out" / case) == {
                f"{case}_mask.nii.gz",
                f"{case}_map.nii.gz",
                f"{case}_overlay.png",
            }
            mask, scores = (nib.load(tmp_path / "out" / case / f"{case}_{kind}.nii.gz") for kind in ("mask", "map"))
            assert mask.get_data_dtype() == np.uint8 and scores.get_data_dtype() == np.float32
            assert (np.asarray(scores.dataobj)[np.asarray(mask.dataobj) == 1] >= 1).all()
            assert min(Image.open(tmp_path / "out" / case / f"{case}_overlay.png").size) > 100
        for case, file in (("volume", "volume.nii.gz"), ("one-folder-a-case", "one-folder-a-case/anything.nii")):
            source, mask = nib.load(tmp_path / "in" / file), nib.load(tmp_path / "out" / case / f"{case}_mask.nii.gz")
            assert mask.shape == source.shape
            assert np.array_equal(mask.affine, source.affine)
        series = nib.load(tmp_path / "out" / "series" / "series_mask.nii.gz")
        assert series.shape == (40, 46, 5)
        np.testing.assert_allclose(np.abs(np.diag(series.affine)), [0.9, 1.1, 4.0, 1], atol=1e-5)
        assert nib.load(tmp_path / "out" / "slices_grey" / "slices_grey_mask.nii.gz").shape == grey.T.shape

        volume = entries["volume"]
        mask = np.asarray(nib.load(tmp_path / "out" / "volume" / "volume_mask.nii.gz").dataobj)
        assert volume["anomalous_volume_ml"] == pytest.approx(mask.sum() * abs(np.linalg.det(AFFINE[:3, :3])) / 1000)
        assert volume["slices"] == np.flatnonzero(mask.any((0, 1))).tolist() and volume["slice_axis"] == 2
        assert entries["slices_grey"]["anomalous_volume_ml"] is None
        report = re.sub(r"base64,[\w+/=]*", "", (tmp_path / "out" / "report.html").read_text())
        assert all(f">{case}<" in report for case in entries)
        printed = "".join(capfd.readouterr()) + (tmp_path / "out" / "summary.json").read_text()
        assert "Doe" not in printed + report and "4711" not in printed and not re.search(r"(?<![\d.])4711", report)

    def test_map_is_high_in_the_lesion(self, fitted, tmp_path):
        lesion = (slice(14, 22), slice(24, 32), slice(1, 3))
        save(tmp_path / "in" / "case.nii.gz", brain(60, lesion=lesion))
        infer(fitted, tmp_path / "in", tmp_path / "out", score="negative_log_likelihood")
        scores = nib.load(tmp_path / "out" / "case" / "case_map.nii.gz").get_fdata()
        inside = np.zeros(scores.shape, bool)
        inside[lesion] = True
        assert scores[inside].mean() > 1 > scores[~inside].mean()
        assert scores[inside].max() > 0.9 * scores.max()  # a patch is larger than the lesion

    @pytest.mark.parametrize("spatial_dim", [0, 1, 2])
    def test_spatial_dim(self, fitted, tmp_path, spatial_dim):
        save(tmp_path / "in" / "case.nii.gz", np.tile(brain(61, (40, 46, 1)), (1, 1, 20)), np.diag([1, 1, 2, 1]))
        infer(fitted, tmp_path / "in", tmp_path / "out", spatial_dim=spatial_dim)
        (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())["cases"]
        assert entry["slice_axis"] == {0: 1, 1: 0, 2: 2}[spatial_dim]  # rows run back, columns left, slices up

    def test_bad_case_does_not_stop_the_others(self, fitted, tmp_path):
        good = brain(70)
        save(tmp_path / "in" / "a-good.nii.gz", good)
        save(tmp_path / "in" / "constant.nii.gz", np.full(good.shape, 3, np.int16))
        save(tmp_path / "in" / "four-d.nii.gz", np.stack([good] * 6, -1))
        save(tmp_path / "in" / "nan.nii.gz", np.where(good == good.max(), np.nan, good).astype(np.float32))
        save(tmp_path / "in" / "tiny.nii.gz", good[18:28, 18:28])
        save(tmp_path / "in" / "zero.nii.gz", np.zeros_like(good))
        (tmp_path / "in" / "text.nii.gz").write_text("not an image")
        whole = (tmp_path / "in" / "a-good.nii.gz").read_bytes()
        (tmp_path / "in" / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
        save(tmp_path / "in" / "z-good.nii.gz", good)
        message = error_of(
            "inference",
            dataset_dir=str(tmp_path / "in"),
            output_dir=str(tmp_path / "out"),
            ckpt_path=str(fitted / "model.pt"),
        )
        assert "7 of 9 cases failed (the others are finished)" in message
        for case, why in {
            "constant": "every voxel is 3",
            "four-d": "6 volumes",
            "nan": "NaN",
            "tiny": "10 x 10 pixels",
            "zero": "every voxel is 0",
            "text": "check that the file is whole",
            "truncated": "check that the file is whole",
        }.items():
            (line,) = (line for line in message.splitlines() if line.strip().startswith(f"{case}:"))
            assert why in line
        assert visible(tmp_path / "out") == {"a-good", "z-good", "report.html", "summary.json"}
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert len(summary["failed"]) == 7 and [entry["case"] for entry in summary["cases"]] == ["a-good", "z-good"]

    def test_dicom_series_with_a_gap_is_refused(self, fitted, tmp_path):
        for case in ("missing", "damaged", "whole"):
            save_dicom_series(tmp_path / "in" / case, brain(75))
        (tmp_path / "in" / "missing" / "002.dcm").unlink()
        damaged = tmp_path / "in" / "damaged" / "004.dcm"
        damaged.write_bytes(damaged.read_bytes()[:-3000])
        paths = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
        message = error_of("inference", **paths, ckpt_path=str(fitted / "model.pt"))
        assert "missing: the slices of the series lie 4 to 8 mm apart" in message and "damaged: " in message
        assert visible(tmp_path / "out") == {"whole", "report.html", "summary.json"}

    def test_results_inside_dataset_dir_are_not_cases(self, fitted, tmp_path):
        save(tmp_path / "case.nii.gz", brain(76))
        for _ in range(2):
            infer(fitted, tmp_path, tmp_path / "results")
            assert len(json.loads((tmp_path / "results" / "summary.json").read_text())["cases"]) == 1

    def test_three_volumes_are_not_colours(self, fitted, tmp_path):
        save(tmp_path / "in" / "case.nii.gz", np.stack([brain(77)] * 3, -1))
        paths = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
        assert "3 volumes" in error_of("inference", **paths, ckpt_path=str(fitted / "model.pt"))

    def test_threshold_and_padding(self, fitted, tmp_path):
        image = brain(78, lesion=(slice(16, 22), slice(20, 26), slice(2, 4)))
        save(tmp_path / "in" / "tight.nii.gz", image)
        save(tmp_path / "in" / "padded.nii.gz", np.pad(image, ((0, 0), (0, 0), (10, 10))))
        infer(fitted, tmp_path / "in", tmp_path / "out", threshold=1.5)
        entries = {
            entry["case"]: entry for entry in json.loads((tmp_path / "out" / "summary.json").read_text())["cases"]
        }
        assert entries["tight"]["image_score"] == pytest.approx(entries["padded"]["image_score"], rel=1e-5)
        assert [index + 10 for index in entries["tight"]["slices"]] == entries["padded"]["slices"]
        mask, scores = (nib.load(tmp_path / "out" / "tight" / f"tight_{kind}.nii.gz") for kind in ("mask", "map"))
        expected = (np.asarray(scores.dataobj) >= 1.5) & fill_holes(image != 0)  # the background is never in a mask
        assert np.array_equal(np.asarray(mask.dataobj) == 1, expected) and expected.any()

    def test_smoothing(self, fitted, tmp_path):
        save(tmp_path / "in" / "volume.nii.gz", brain(71, lesion=(slice(18, 22), slice(20, 24), slice(2, 3))))
        Image.fromarray((brain(72)[..., 2] // 8).astype(np.uint8)).save(tmp_path / "in" / "picture.png")
        for name, sigma in (("plain", None), ("smooth", 4.0)):
            infer(fitted, tmp_path / "in", tmp_path / name, smoothing_mm=sigma)
            assert json.loads((tmp_path / name / "summary.json").read_text())["settings"]["smoothing_mm"] == sigma
        for case in ("volume", "picture"):
            plain, smooth = (
                nib.load(tmp_path / name / case / f"{case}_map.nii.gz").get_fdata() for name in ("plain", "smooth")
            )
            assert smooth.shape == plain.shape and np.ptp(smooth) < np.ptp(plain)

    def test_results_are_complete_or_unchanged(self, fitted, tmp_path, monkeypatch):
        save(tmp_path / "in" / "case.nii.gz", brain(80))
        infer(fitted, tmp_path / "in", tmp_path / "out")
        before = (tmp_path / "out" / "case" / "case_map.nii.gz").read_bytes()

        def no_space(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        save(tmp_path / "in" / "case.nii.gz", brain(81))
        monkeypatch.setattr(sys.modules["scripts.inference.writer"], "overlay_png", no_space)
        message = error_of(
            "inference",
            dataset_dir=str(tmp_path / "in"),
            output_dir=str(tmp_path / "out"),
            ckpt_path=str(fitted / "model.pt"),
        )
        assert "No space left" in message
        assert (tmp_path / "out" / "case" / "case_map.nii.gz").read_bytes() == before
        assert visible(tmp_path / "out") == {"case", "report.html", "summary.json"}
        assert "none was finished" in message


class TestWrongSettings:
    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({"dataset_dir": "no/such/folder"}, "does not exist"),
            ({"dataset_dir": ""}, "does not exist"),
            ({"ckpt_path": "no/such/model.pt"}, "There is no fitted model no/such/model.pt"),
            ({"n_components": 9}, "n_components=8"),
            ({"image_size": 70}, "image_size=56"),
            ({"image_size": 50}, "multiple of 14"),
            ({"encoder_name": "dinov2_vits14_reg"}, "encoder_name=dinov2_vits14"),
            ({"encoder_name": "resnet"}, "must be one of dinov2_vits14"),
            ({"score": "beauty"}, "score must be one of cosine"),
            ({"target_fpr": 0.9}, "target_fpr must be"),
            ({"covariance_type": "round"}, "covariance_type must be"),
            ({"spatial_dim": 3}, "spatial_dim must be"),
            ({"slice_batch_size": 0}, "slice_batch_size must be"),
        ],
    )
    def test_inference(self, fitted, tmp_path, overrides, expected):
        save(tmp_path / "in" / "case.nii.gz", brain(1))
        paths = {
            "dataset_dir": str(tmp_path / "in"),
            "output_dir": str(tmp_path / "o"),
            "ckpt_path": str(fitted / "model.pt"),
        }
        assert expected in error_of("inference", **{**paths, **overrides})
        assert not (tmp_path / "o").exists()

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({"n_components": 10**5}, "Reduce n_components"),
            ({"max_epochs": 0}, "max_epochs must be"),
            ({"step_size": 2.0}, "step_size must be"),
            ({"schedule": "linear"}, "schedule must be"),
            ({"validation_fraction": 1.5}, "validation_fraction must"),
            (
                {"pretrained_encoder#_target_": "scripts.models.load_encoder_weights", "weights_path": "no.pth"},
                "do not exist",
            ),
        ],
    )
    def test_training(self, fitted, tmp_path, overrides, expected):
        if "weights_path" in overrides:
            overrides = {
                "pretrained_encoder": {
                    "_target_": "scripts.models.load_encoder_weights",
                    "encoder": "@encoder",
                    "path": "no.pth",
                }
            }
        paths = {
            "dataset_dir": str(fitted / "normals"),
            "output_dir": str(tmp_path),
            "ckpt_path": str(tmp_path / "m.pt"),
        }
        assert expected in error_of("training", **{**paths, **overrides})
        assert not (tmp_path / "m.pt").exists()

    def test_command_line_ends_with_one_sentence(self, tmp_path):
        command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(ROOT)]
        command += ["--config_file", str(ROOT / "configs" / "inference.json"), "--dataset_dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert re.search(r"^error: There are no cases in .*expected images.*$", done.stderr.strip().splitlines()[-1])


class TestConfigs:
    def test_shared_ids_are_equal(self):
        train, inference = (
            json.loads((ROOT / "configs" / f"{name}.json").read_text()) for name in ("train", "inference")
        )
        assert train["network_def"].pop("encoder") == "@pretrained_encoder"
        assert inference["network_def"].pop("encoder") == "@encoder"
        shared = set(train) & set(inference)
        assert {"network_def", "mixture", "encoder", "inferer", "preprocessing", "image_size"} <= shared
        different = {name for name in shared if train[name] != inference[name]}
        # A fit measures the field of view, inference reads it; a fit needs 64-bit floats.
        assert different == {"run", "network", "inferer", "field_of_view", "check"}
        assert train["inferer"] | {"slice_step": "@slice_step"} == inference["inferer"]  # a fit leaves no slice out

    def test_ids_that_monai_label_changes(self):
        train, inference = (
            json.loads((ROOT / "configs" / f"{name}.json").read_text()) for name in ("train", "inference")
        )
        assert all(
            isinstance(handler, dict) for handler in train["train"]["handlers"]
        )  # it looks for a CheckpointLoader
        assert "displayable_configs" not in train  # every training request would have to name them
        for name in inference["displayable_configs"]:
            others = {**inference, "displayable_configs": None, "run_settings": None}
            assert f'"@{name}"' not in json.dumps(others), f"{name} must be read where a request changes it"

    def test_logging_configuration_loads(self):
        logging.config.fileConfig(ROOT / "configs" / "logging.conf", disable_existing_loggers=False)
        assert not logging.getLogger("LoadImage").isEnabledFor(logging.INFO)  # a line for every reader that is not used
