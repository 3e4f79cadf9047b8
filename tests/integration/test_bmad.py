"""Overlays for BMAD and for the paper's settings, on tiny data in the published layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from tests.tiny_bundle import run_configs

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Names of the published folders of validation and of anomalous images
LAYOUTS = {
    "bmad_brats2021": ("valid", "Ungood"),
    "bmad_liver": ("valid", "ungood"),
    "bmad_resc": ("val", "ungood"),
}


def write_image(path, seed, label=None):
    """Write a wave in a disc on black as 8-bit PNG; with a label, add a bright square and write its mask."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 48), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 4, rows.shape)
    image = (90 + 40 * np.sin(9 * rows + seed) + noise) * (np.hypot(rows, columns) < 0.9)
    if label is not None:
        square = np.zeros(rows.shape, bool)
        square[20:34, 16:30] = True
        image[square] = 250
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255) * square).save(label)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module", params=LAYOUTS)
def fitted(request, tmp_path_factory):
    """Return the name of the overlay, and a folder with the data set and a fit on it."""
    folder, (valid, anomalous) = tmp_path_factory.mktemp(request.param), LAYOUTS[request.param]
    data = folder / "data"
    for seed in range(6):
        write_image(data / "train" / "good" / f"{seed}.png", seed)
    for split, first in ((valid, 10), ("test", 20)):
        for seed in range(first, first + 3):
            write_image(data / split / "good" / "img" / f"{seed}.png", seed)
            blank = data / split / "good" / "label" / f"{seed}.png"  # some releases have empty labels
            blank.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (48, 60)).save(blank)
        for seed in range(first, first + 2):  # the same numbers as among the good ones
            abnormal = data / split / anomalous
            write_image(abnormal / "img" / f"{seed}.png", seed + 50, abnormal / "label" / f"{seed}.png")
    run_configs(
        "training",
        ["train", "paper", request.param],
        dataset_dir=str(data),
        output_dir=str(folder / "fit"),
        ckpt_path=str(folder / "model.pt"),
        max_epochs=3,
    )
    return request.param, folder


class TestRuns:
    def test_fit_uses_good_images_and_all_epochs(self, fitted):
        _, folder = fitted
        report = json.loads((folder / "fit" / "fit_report.json").read_text())
        assert {name: data["cases"] for name, data in report["data"].items()} == {"train": 6, "validation": 3}
        assert len(report["epochs"]) == 3 and report["settings"]["patience"] is None

    def test_inference_takes_the_test_images(self, fitted, tmp_path):
        overlay, folder = fitted
        run_configs(
            "inference",
            ["inference", "paper", overlay],
            dataset_dir=str(folder / "data"),
            output_dir=str(tmp_path),
            ckpt_path=str(folder / "model.pt"),
        )
        summary = json.loads((tmp_path / "summary.json").read_text())
        anomalous = LAYOUTS[overlay][1]
        expected = {"good_20", "good_21", "good_22", f"{anomalous}_20", f"{anomalous}_21"}
        assert {entry["case"] for entry in summary["cases"]} == expected

    def test_evaluation_finds_the_labels(self, fitted, tmp_path):
        overlay, folder = fitted
        run_configs(
            "evaluation",
            ["inference", "evaluate", "paper", overlay],
            dataset_dir=str(folder / "data"),
            output_dir=str(tmp_path),
            ckpt_path=str(folder / "model.pt"),
        )
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["failed"] == metrics["unlabelled"] == {}
        assert {row["case"]: row["lesions"] for row in metrics["cases"]} == {
            **dict.fromkeys(["good_20", "good_21", "good_22"], 0),
            **dict.fromkeys([f"{LAYOUTS[overlay][1]}_20", f"{LAYOUTS[overlay][1]}_21"], 1),
        }
        assert metrics["pooled"]["pixel_auroc"]["value"] > 0.5 and metrics["pooled"]["image_auroc"]["value"] is not None


class TestOverlays:
    @pytest.mark.parametrize("overlay", LAYOUTS)
    def test_intensities_are_not_scaled(self, overlay, tmp_path):
        write_image(tmp_path / "image.png", 0)
        parser = ConfigParser.load_config_files([str(CONFIGS / f"{name}.json") for name in ("inference", overlay)])
        prepared = ConfigParser(parser).get_parsed_content("preprocessing")({"image": str(tmp_path / "image.png")})
        pixels = np.asarray(Image.open(tmp_path / "image.png")) / 255
        np.testing.assert_allclose(prepared["image"].numpy()[0], pixels, atol=1e-6)

    @pytest.mark.parametrize("workflow", ["train", "inference"])
    @pytest.mark.parametrize(("covariance_type", "reg_covar"), [("diag", 1e-6), ("full", 1e-3)])
    def test_settings_of_the_paper(self, workflow, covariance_type, reg_covar):
        config = ConfigParser(
            ConfigParser.load_config_files([str(CONFIGS / f"{name}.json") for name in (workflow, "paper")])
        )
        config.update({"covariance_type": covariance_type, "network_def#encoder": "@encoder"})
        network = config.get_parsed_content("network_def")
        assert network.settings() == {
            "encoder_name": "dinov2_vits14",
            "layers": [11],
            "layer_reduction": "concat",
            "image_size": 448,
            "scales": [1.0],
            "n_components": 500,
            "n_features": 384,
            "covariance_type": covariance_type,
            "distribution": "gaussian",
            "patch_smoothing": 0.0,
        }
        assert network.mixture.reg_covar == reg_covar and network.score == "cosine"
        assert float(network.mixture.weight_concentration) == 2 and network.mixture.learn_weight_concentration
        if workflow == "train":
            assert config["settling_epochs"] == 0
        fit = {name: config[name] for name in ("schedule", "step_size", "batch_slices", "max_epochs", "patience")}
        assert fit == {"schedule": "ema", "step_size": 0.2, "batch_slices": 12, "max_epochs": 40, "patience": None}
