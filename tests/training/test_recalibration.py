"""`run calibrate`: decision thresholds of a site for a fitted model."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.data.cases import find_cases
from scripts.errors import InputError, cause_of
from scripts.models.mixture import SCORE_KINDS, DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from tests.conftest import make_encoder
from tests.tiny_bundle import run_configs

TARGET = 0.15
SETTINGS = {"covariance_type": "diag", "score": "cosine", "target_fpr": TARGET}


def write_pictures(folder, seeds, noise):
    """Write pictures of waves with noise."""
    folder.mkdir(parents=True)
    rows, columns = np.meshgrid(np.linspace(0, 9, 60), np.linspace(0, 9, 60), indexing="ij")
    for seed in seeds:
        generator = np.random.default_rng(seed)
        picture = 120 + 50 * np.sin(rows + seed) * np.cos(columns) + generator.normal(0, noise, rows.shape)
        Image.fromarray(np.clip(picture, 1, 255).astype(np.uint8)).save(folder / f"Doe_{seed}.png")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit a model; its folder also has the normals of a noisier site."""
    folder = tmp_path_factory.mktemp("site")
    write_pictures(folder / "normals", range(12), noise=4)
    write_pictures(folder / "validation", range(20, 32), noise=4)
    write_pictures(folder / "site", range(40, 54), noise=40)
    run_configs(
        "training",
        ["train"],
        dataset_dir=str(folder / "normals"),
        validation_dir=str(folder / "validation"),
        output_dir=str(folder / "fit"),
        ckpt_path=str(folder / "model.pt"),
        max_epochs=2,
        calibration_folds="off",
        **SETTINGS,
    )
    return folder


@pytest.fixture
def calibrate(fitted, tmp_path):
    """Return a function that calibrates a copy of the model, and returns the report and the new state."""
    shutil.copy(fitted / "model.pt", tmp_path)

    def run(dataset_dir, calibrated="model.pt", **overrides):
        settings = {**SETTINGS, "ckpt_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "out")}
        if calibrated != "model.pt":
            settings["calibrated_path"] = str(tmp_path / calibrated)
        run_configs("calibrate", ["train", "calibrate"], dataset_dir=str(dataset_dir), **{**settings, **overrides})
        report = json.loads((tmp_path / "out" / "calibration_report.json").read_text())
        return report, torch.load(tmp_path / calibrated, weights_only=True)

    return run


def said_by(calibrate, *args, **overrides):
    with pytest.raises(Exception) as caught:
        calibrate(*args, **overrides)
    assert isinstance(cause_of(caught.value), InputError), repr(cause_of(caught.value))
    return str(cause_of(caught.value))


def raw_scores(state, folder):
    """Compute the cosine scores of all patches of a folder's pictures, without the cache of embeddings."""
    network = PatchAnomalyNetwork(make_encoder(), DirichletProcessMixture(8, 32), target_fpr=TARGET)
    network.load_state_dict(state)
    scores = []
    for case in find_cases(folder):
        picture = np.asarray(Image.open(case["image"]), dtype=np.float32)
        low, high = np.percentile(picture, [0.5, 99.5])
        image = torch.from_numpy((picture - low) * (0.7 / (high - low))).float().clamp(0, 1)
        scores.append(network.patch_scores(network.embed(image[None, None]), "cosine").flatten())
    return torch.cat(scores).detach().numpy()


class TestRecalibrate:
    def test_thresholds_become_quantiles_of_the_site(self, fitted, calibrate):
        before = torch.load(fitted / "model.pt", weights_only=True)
        report, after = calibrate(fitted / "site")
        cosine, target = SCORE_KINDS.index("cosine"), list(before["calibration.rates"]).index(torch.tensor(TARGET))
        scores = raw_scores(before, fitted / "site")
        limits = after["calibration.quantiles"][cosine]
        np.testing.assert_allclose(limits, np.quantile(scores, 1 - after["calibration.rates"].numpy()), rtol=2e-2)
        old_limit = float(before["calibration.quantiles"][cosine, target])
        assert report["share_beyond_old_limit"] == pytest.approx((scores > old_limit).mean(), abs=0.02)
        assert report["share_beyond_old_limit"] > 2 * TARGET
        assert report["old_limits"][f"fpr {TARGET:g}"] == pytest.approx(old_limit)
        assert list(report["new_limits"].values()) == pytest.approx(limits.tolist())
        assert report["data"]["cases"] == 14 and report["data"]["patches"] == 14 * 16
        assert report["settings"]["n_components"] == 8 and report["encoder_weights_digest"] is not None
        assert "Doe" not in json.dumps({**report, "settings": None})

    def test_only_the_calibration_changes(self, fitted, calibrate):
        before = torch.load(fitted / "model.pt", weights_only=True)
        _, after = calibrate(fitted / "site")
        changed = {name for name in before if str(before[name]) != str(after[name])}
        peaks = {"calibration.regions.case_local_peaks", "calibration.regions.region_local_peaks"}
        assert changed == {"calibration.quantiles", "_extra_state", *peaks}
        digests = [state["_extra_state"].pop("digest") for state in (before, after)]
        assert digests[0] != digests[1] and before["_extra_state"] == after["_extra_state"]

    def test_calibrated_path_keeps_the_model(self, fitted, calibrate, tmp_path):
        _, after = calibrate(fitted / "site", calibrated="site.pt")
        assert (tmp_path / "model.pt").read_bytes() == (fitted / "model.pt").read_bytes()
        assert set(after) == set(torch.load(fitted / "model.pt", weights_only=True))

    def test_normals_of_the_fit_give_its_thresholds(self, fitted, calibrate):
        before = torch.load(fitted / "model.pt", weights_only=True)["calibration.quantiles"]
        report, after = calibrate(fitted / "validation")
        torch.testing.assert_close(after["calibration.quantiles"], before, rtol=0, atol=0, equal_nan=True)
        assert report["share_beyond_old_limit"] == pytest.approx(TARGET, abs=0.01)
        assert report["old_limits"] == report["new_limits"]

    def test_bad_normal_is_left_out_and_reported(self, fitted, calibrate, tmp_path):
        shutil.copytree(fitted / "site", tmp_path / "site")
        Image.new("L", (60, 60), 7).save(tmp_path / "site" / "flat.png")
        said = said_by(calibrate, tmp_path / "site")
        assert "1 of 15 cases failed (the model was calibrated without them and saved)" in said
        assert "flat: every voxel is 7" in said
        assert (tmp_path / "model.pt").read_bytes() != (fitted / "model.pt").read_bytes()

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({"target_fpr": 0.01}, "at least 1000 patches of normal images; got 224"),
            ({"n_components": 9}, "n_components=8"),
            ({"layers": [0]}, "layers=[1]"),
            ({"ckpt_path": "no.pt"}, "There is no fitted model no.pt"),
            ({"dataset_dir": "no"}, "does not exist"),
        ],
    )
    def test_failure_leaves_the_model_unchanged(self, fitted, calibrate, tmp_path, overrides, expected):
        overrides = {"dataset_dir": str(fitted / "site"), **overrides}
        assert expected in said_by(calibrate, **overrides)
        assert (tmp_path / "model.pt").read_bytes() == (fitted / "model.pt").read_bytes()
        assert not (tmp_path / "out" / "calibration_report.json").exists()
