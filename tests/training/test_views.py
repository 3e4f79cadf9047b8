"""Fits on several views: cached embeddings, calibration of the fused map, and the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from scripts.data.cases import CaseDataset
from scripts.errors import InputError, cause_of
from scripts.inference.inferer import DPMMInferer
from scripts.models.checkpoint import read_network
from scripts.training.calibrator import ThresholdCalibrator
from scripts.training.cross_fit import HeldOut
from scripts.training.embedding_cache import EmbeddingCache
from scripts.training.embeddings import EmbeddingDataset
from scripts.training.held_out_scores import HeldOutScores
from tests.tiny_bundle import run_bundle
from tests.tiny_cases import save

VIEWS = [0, 1, 2]
SHAPE = (18, 20, 16)


def head(seed, shape=SHAPE):
    """Return a textured ball ``[H,W,D]`` on a background of zeros."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1)
    return ((600 + 400 * noise) * (np.square(grid).sum(0) < 0.9)).astype(np.float32)


def image_of(seed, spacing=(1.0, 1.0, 1.2)):
    return MetaTensor(torch.from_numpy(head(seed) / 2000)[None], torch.diag(torch.tensor([*spacing, 1.0])))


class Files(CaseDataset):
    """Cases that are files, with a list of those that were loaded."""

    def __init__(self, folder, images):
        self.loaded, self.images = [], images
        folder.mkdir(exist_ok=True)
        data = [{"case": str(number), "image": str(folder / f"{number}.nii")} for number in range(len(images))]
        for case in data:
            Path(case["image"]).open("a").close()  # leaves the time of a file that is there
        super().__init__(data, lambda case: {**case, "image": images[int(case["case"])]})

    def __getitem__(self, index):
        self.loaded.append(index)
        return super().__getitem__(index)


def embed(cases, network, views=VIEWS, **arguments):
    network.views = views or []
    return EmbeddingDataset(cases, network, DPMMInferer(2, 8, views=views), progress=False, **arguments).compute()


def named(images):
    return [{"case": str(number), "image": image} for number, image in enumerate(images)]


class TestEmbeddings:
    def test_slices_of_all_views(self, fitted_network):
        image = image_of(0)
        dataset = embed(named([image, image[..., 8]]), fitted_network)
        singles = [
            EmbeddingDataset(named([image]), fitted_network, DPMMInferer(axis), progress=False).compute()
            for axis in VIEWS
        ]
        assert dataset.n_used == 2 and [dataset.n_views(index) for index in (0, 1)] == [3, 1]
        for view, single in enumerate(singles):
            np.testing.assert_allclose(dataset.case(0, view), single.case(0), atol=2e-3)
            assert dataset.geometry(0, view).spacing.tolist() == single.geometry(0).spacing.tolist()
        assert len(dataset) == sum(map(len, singles)) + 1
        assert dataset.select([1]).n_used == 1 and (dataset.select([1]) + dataset.select([0])).n_views(1) == 3

    def test_store_is_shared_with_fits_on_one_view(self, fitted_network, tmp_path):
        images = [image_of(0), image_of(1)[..., 8]]
        for views, loaded in (([2], [0, 1]), (VIEWS, [0]), (VIEWS, []), (None, [])):
            cases = Files(tmp_path / "cases", images)
            dataset = embed(cases, fitted_network, views, cache=EmbeddingCache(tmp_path / "store"))
            assert cases.loaded == loaded and dataset.n_used == 2
            assert len(list((tmp_path / "store").glob("*.npy"))) == (2 if loaded == [0, 1] else 4)

    def test_refused_volume_is_a_failed_case(self, fitted_network, tmp_path):
        images = [image_of(0), image_of(1, (1, 1, 2.5))]
        cases, store = Files(tmp_path / "cases", images), EmbeddingCache(tmp_path / "store")
        for axis in VIEWS:  # its embeddings are there from fits on one view
            EmbeddingDataset(cases, fitted_network, DPMMInferer(axis, 8), cache=store, progress=False).compute()
        dataset = embed(cases, fitted_network, cache=store)
        assert dataset.n_used == 1 and list(dataset.failed) == ["1"] and "1 x 1 x 2.5 mm" in dataset.failed["1"]


class TestCalibration:
    @pytest.fixture
    def calibrated(self, fitted_network):
        images = [image_of(seed) for seed in range(2)]
        dataset = embed(named(images), fitted_network)
        calibrator = ThresholdCalibrator(fitted_network, dataset)
        calibrator.calibrate(calibrator.scores())
        maps = [DPMMInferer(2, 8, views=VIEWS)(image[None], fitted_network)[0, 0].numpy() for image in images]
        return fitted_network, dataset, images, maps

    def test_thresholds_and_peaks_are_those_of_fused_maps(self, calibrated):
        network, dataset, images, maps = calibrated
        foreground = [image[0].numpy() > 0 for image in images]
        values = np.concatenate([scores[inside] for scores, inside in zip(maps, foreground, strict=True)])
        assert np.median(values) == pytest.approx(0, abs=0.02)
        assert (values >= 1).mean() == pytest.approx(network.target_fpr, rel=0.2)

        scores = HeldOutScores(network, [HeldOut(network.mixture, dataset)])
        row = scores.kinds.index(network.score)
        median, threshold = network.score_range()
        peaks = scores.region_peaks(0)[network.score]
        for case, of_case, expected in zip(scores.cases, peaks, maps, strict=True):
            fused = scores.anomaly_map(case, row, lambda raw: (raw - median) / (threshold - median))
            np.testing.assert_allclose(fused, expected, atol=0.05)  # the cache has half precision
            assert len(of_case) and (of_case.max() - median) / (threshold - median) <= fused.max() + 1e-4


class TestModel:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("views")
        for seed in range(4):
            save(folder / "normals" / f"{seed}.nii.gz", head(seed), np.diag([1, 1, 1.2, 1]))
        fit = {"output_dir": str(folder / "fit"), "ckpt_path": str(folder / "model.pt"), "calibration_folds": 2}
        run_bundle("training", dataset_dir=str(folder / "normals"), views=VIEWS, slice_batch_size=16, **fit)
        return folder

    def infer(self, folder, out, **settings):
        arguments = {
            "dataset_dir": str(folder / "cases"),
            "output_dir": str(out),
            "ckpt_path": str(folder / "model.pt"),
        }
        run_bundle("inference", **{**arguments, "slice_batch_size": 16, "report": False, **settings})

    def test_views_are_a_setting_of_the_fit(self, folder):
        assert read_network(folder / "model.pt")["_extra_state"]["settings"]["views"] == VIEWS
        assert json.loads((folder / "fit" / "fit_report.json").read_text())["settings"]["views"] == VIEWS

    @pytest.mark.parametrize(("views", "own"), [("off", "off"), ([0, 2], "[0, 2]")])
    def test_other_views_are_refused(self, folder, tmp_path, views, own):
        save(folder / "cases" / "a.nii.gz", head(9), np.diag([1, 1, 1.2, 1]))
        with pytest.raises(RuntimeError) as caught:
            self.infer(folder, tmp_path, views=views)
        assert isinstance(cause_of(caught.value), InputError)
        assert f"fitted with views=[0, 1, 2], this network has views={own}; give" in str(cause_of(caught.value))

    def test_inference(self, folder, tmp_path):
        save(folder / "cases" / "a.nii.gz", head(9), np.diag([1, 1, 1.2, 1]))
        save(folder / "cases" / "thick.nii.gz", head(9), np.diag([1, 1, 4, 1]))
        with pytest.raises(RuntimeError) as caught:
            self.infer(folder, tmp_path, views=[2, 1, 0], report=True)
        assert "1 of 2 cases failed" in str(cause_of(caught.value))
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert [entry["case"] for entry in summary["cases"]] == ["a"] and (tmp_path / "report.html").is_file()
        assert "1 x 1 x 4 mm" in summary["failed"]["thick"]
        assert summary["settings"]["views"] == VIEWS and summary["cases"][0]["held_out_cases"] == 4
