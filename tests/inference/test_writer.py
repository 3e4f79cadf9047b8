"""Foreground, measurements and warnings of cases."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from scripts.data.foreground import foreground_mask
from scripts.inference import writer
from scripts.inference.measurements import OUTSIDE_SHARE, measurements
from tests.tiny_bundle import run_configs

SHAPE = (20, 20)


def measured(share, threshold=1.0, background=0):
    """Measure a picture whose scores exceed 1 on this share of its foreground; ``threshold`` makes the mask."""
    scores = np.zeros(SHAPE)
    scores.flat[: round(share * scores.size)] = 1.5
    scores = np.pad(scores, background, constant_values=5.0)
    foreground = np.pad(np.ones(SHAPE, bool), background)
    return measurements(scores, scores >= threshold, foreground, np.eye(4), spatial_dim=2)


class TestForegroundMask:
    @pytest.mark.parametrize("background", [0.0, 0.06])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_dark_background(self, background, channels):
        inside = np.zeros(SHAPE, bool)
        inside[5:15, 4:16] = True
        image = np.random.default_rng(0).uniform(0, 1, (channels, *SHAPE)).astype(np.float32)
        image[:, ~inside] = background
        assert np.array_equal(foreground_mask(image), inside)

    def test_picture_without_background(self):
        image = np.random.default_rng(0).uniform(0, 0.9, (1, *SHAPE))
        image[:, 5:15, 5:15] = 1.0  # clipped intensities
        assert foreground_mask(image).all()


class TestMeasurements:
    @pytest.mark.parametrize("background", [0, 30])
    @pytest.mark.parametrize("threshold", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize("share", [0.0, OUTSIDE_SHARE / 2, OUTSIDE_SHARE + 0.02, 1.0])
    def test_outside_fitted_range_at_any_threshold(self, share, threshold, background):
        entry = measured(share, threshold, background)
        assert entry["fraction_beyond_limit"] == pytest.approx(share)
        assert entry["outside_fitted_range"] is (share > OUTSIDE_SHARE)


class TestPredictionWriter:
    def test_warning_in_log_summary_and_picture(self, tmp_path, monkeypatch, caplog):
        rows, columns = np.meshgrid(np.linspace(0, 9, 60), np.linspace(0, 9, 60), indexing="ij")

        def write(name, seed, noise):
            generator = np.random.default_rng(seed)
            picture = 120 + 50 * np.sin(rows + seed) * np.cos(columns) + generator.normal(0, noise, rows.shape)
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.fromarray(np.clip(picture, 1, 255).astype(np.uint8)).save(tmp_path / name)

        for seed in range(12):
            write(f"normals/{seed}.png", seed, noise=4)
        write("cases/alike.png", 20, noise=4)
        write("cases/unlike.png", 21, noise=70)
        settings = {"ckpt_path": str(tmp_path / "model.pt"), "target_fpr": 0.1}
        run_configs(
            "training",
            ["train"],
            dataset_dir=str(tmp_path / "normals"),
            output_dir=str(tmp_path / "fit"),
            max_epochs=2,
            **settings,
        )

        titles = []
        monkeypatch.setattr(writer, "overlay_png", lambda view, title: titles.append(title) or b"")
        with caplog.at_level(logging.WARNING, logger="scripts.inference.writer"):
            run_configs(
                "inference",
                ["inference"],
                dataset_dir=str(tmp_path / "cases"),
                output_dir=str(tmp_path / "out"),
                threshold=50,
                **settings,
            )
        entries = json.loads((tmp_path / "out" / "summary.json").read_text())["cases"]
        assert {entry["case"]: entry["outside_fitted_range"] for entry in entries} == {"alike": False, "unlike": True}
        assert ["OUTSIDE" in title for title in titles] == [False, True]
        (warning,) = (record.getMessage() for record in caplog.records if record.name == "scripts.inference.writer")
        assert warning.startswith("unlike: ") and "the mask means little" in warning
