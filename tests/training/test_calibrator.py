"""Calibration on held-out cases: foreground, regions as inference finds them, and cross-fitting."""

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from scripts.data.foreground import foreground_mask
from scripts.errors import InputError
from scripts.inference.detection import DetectRegionsd
from scripts.inference.inferer import DPMMInferer
from scripts.inference.regions import find_regions, peak_size_of
from scripts.models.checkpoint import load_detection_limits
from scripts.training.calibrator import ThresholdCalibrator
from scripts.training.cross_fit import CrossFit, HeldOut
from scripts.training.embeddings import EmbeddingDataset
from scripts.training.geometry import CaseGeometry
from scripts.training.held_out_scores import HeldOutScores
from tests.tiny_bundle import run_bundle
from tests.tiny_cases import brain, save


def image_of(seed, shape=(40, 46, 5)):
    return torch.from_numpy(brain(seed, shape).astype(np.float32))[None] / 2000


def regions_of(image, anomaly_map):
    """Find the regions of a map as inference does."""
    spacing = (1, 1, 1) if image.ndim == 4 else None
    return find_regions(anomaly_map, foreground_mask(image.numpy()), peak_size=peak_size_of(anomaly_map.shape, spacing))


@pytest.fixture
def embedded(fitted_network):
    """Return a network with the embeddings of six cases."""
    images = [image_of(seed) for seed in range(5)] + [image_of(9)[..., 0]]
    cases = [{"case": str(index), "image": image} for index, image in enumerate(images)]
    dataset = EmbeddingDataset(cases, fitted_network, DPMMInferer(2, 2), progress=False).compute()
    return fitted_network, dataset, images


class Tracker:
    best_epoch = 2


class TestCaseGeometry:
    def test_file_gives_it_back(self, tmp_path):
        geometry = CaseGeometry.of(image_of(0), DPMMInferer())
        with (tmp_path / "a.npz").open("wb") as file:
            geometry.save(file)
        loaded = CaseGeometry.load(tmp_path / "a.npz")
        np.testing.assert_array_equal(loaded.foreground, geometry.foreground)
        np.testing.assert_array_equal(loaded.nonempty, geometry.nonempty)
        assert loaded.voxel_mm3 == geometry.voxel_mm3 and loaded.spacing.tolist() == [1, 1, 1]

    @pytest.mark.parametrize(("spatial_dim", "spacing"), [(0, [2, 3, 5]), (1, [3, 2, 5]), (2, [5, 2, 3])])
    def test_spacing_follows_the_slices(self, spatial_dim, spacing):
        affine = torch.diag(torch.tensor([2.0, 3.0, 5.0, 1.0]))
        geometry = CaseGeometry.of(MetaTensor(image_of(0, (40, 46, 20)), affine), DPMMInferer(spatial_dim))
        assert geometry.spacing.tolist() == spacing and geometry.voxel_mm3 == pytest.approx(30)

    @pytest.mark.parametrize("spatial_dim", [0, 1, 2, None])
    def test_regions_are_those_of_inference(self, spatial_dim):
        affine = torch.diag(torch.tensor([2.0, 3.0, 1.5, 1.0]))
        image = MetaTensor(image_of(0, (40, 46, 20)), affine)
        noise = np.random.default_rng(0).standard_normal(image.shape[1:])
        scores = gaussian_filter(noise, 1.5).astype(np.float32) * 30
        if spatial_dim is None:
            image, scores = image[..., 10], scores[..., 10]
        geometry = CaseGeometry.of(image, DPMMInferer(spatial_dim or 0))
        slices = scores[None] if spatial_dim is None else np.moveaxis(scores, spatial_dim, 0)
        data = {"image": image, "pred": MetaTensor(scores[None], image.affine)}
        detected = DetectRegionsd("pred", None)(data)["regions"]
        assert len(detected.peaks) > 3
        np.testing.assert_allclose(geometry.regions(slices, 0).peaks, detected.peaks, rtol=1e-4)

    def test_image_has_no_spacing(self, tmp_path):
        geometry = CaseGeometry.of(image_of(0)[..., 0], DPMMInferer())
        with (tmp_path / "a.npz").open("wb") as file:
            geometry.save(file)
        assert geometry.spacing is CaseGeometry.load(tmp_path / "a.npz").spacing is None

    @pytest.mark.parametrize("size", [(40, 46), (150, 60), (57, 56)])
    def test_patch_is_foreground_if_its_centre_is(self, size, fitted_network):
        rows, columns = np.meshgrid(*map(np.arange, size), indexing="ij")
        left = torch.from_numpy((columns < size[1] / 2).astype(np.float32))[None] + 0.1 * (rows > 0)
        left[left < 0.5] = 0
        geometry = CaseGeometry.of(left, DPMMInferer())
        grid = [-(-length // 14) for length in fitted_network.resized(*size)]
        selected = geometry.patch_foreground(fitted_network).reshape(grid)
        centres = (np.arange(grid[1]) + 0.5) * 14 * size[1] / fitted_network.resized(*size)[1]
        np.testing.assert_array_equal(selected[1], centres < np.ceil(size[1] / 2))


class TestHeldOutScores:
    def test_maps_are_those_of_inference(self, embedded):
        network, dataset, images = embedded
        scores = HeldOutScores(network, [HeldOut(network.mixture, dataset)])
        peaks = scores.region_peaks(0)[network.score]
        median, threshold = map(float, network.score_range())
        assert sum(map(len, peaks)) > 0
        for image, of_case in zip(images, peaks, strict=True):
            anomaly_map = DPMMInferer(2, 2)(image[None], network)[0, 0].numpy()
            expected = regions_of(image, anomaly_map).peaks
            found = (of_case - median) / (threshold - median)
            np.testing.assert_allclose(found, expected, atol=0.02)  # the cache holds half precision

    def test_patches_of_the_background_do_not_count(self, embedded):
        network, dataset, _ = embedded
        scores = HeldOutScores(network, [HeldOut(network.mixture, dataset)])
        inside = sum(int(dataset.geometry(i).patch_foreground(network).sum()) for i in range(dataset.n_used))
        assert all(len(values) == inside < dataset.n_patches for values in scores.patches.values())
        few = HeldOutScores(network, [HeldOut(network.mixture, dataset)], max_patches=inside // 3)
        assert len(few.patches[network.score]) < inside / 2


class TestCrossFit:
    def cross_fit(self, network, dataset, **arguments):
        return CrossFit(
            network, Tracker, dataset.select([0, 1, 2, 3]), dataset.select([4, 5]), batch_slices=2, **arguments
        )

    def test_every_case_is_held_out_once(self, embedded):
        network, dataset, _ = embedded
        folds = self.cross_fit(network, dataset, n_folds=3).folds()
        assert sorted(file for fold, _ in folds for file in fold.files) == sorted(dataset.files)
        for fold, rest in folds:
            assert not set(fold.files) & set(rest.files) and len(fold.files) + len(rest.files) == dataset.n_used

    def test_held_out_case_does_not_change_its_mixture(self, embedded):
        network, dataset, _ = embedded
        first, *_ = self.cross_fit(network, dataset, n_folds=6).held_out()
        others = sorted(set(range(6)) - {dataset.files.index(first.embeddings.files[0])})
        again = self.cross_fit(network, dataset, n_folds=6).fit(
            dataset.select([index for index in others if index < 4]) + dataset.select([i for i in others if i >= 4])
        )
        torch.testing.assert_close(first.mixture.means, again.means)

    def test_model_is_fitted_on_all_cases(self, embedded):
        network, dataset, _ = embedded
        before = network.mixture.means.clone()
        cross_fit = self.cross_fit(network, dataset, n_folds=2)
        cross_fit.refit()
        torch.testing.assert_close(network.mixture.means, cross_fit.fit(dataset).means)
        assert not torch.allclose(before, network.mixture.means)

    @pytest.mark.parametrize(("n_folds", "needed"), [(None, False), (2, True), (50, True)])
    def test_needed_with_few_held_out_cases(self, n_folds, needed, embedded):
        network, dataset, _ = embedded
        assert self.cross_fit(network, dataset, n_folds=n_folds).is_needed is needed

    def test_too_few_patches_for_the_components(self, make_network, embedded):
        _, dataset, _ = embedded
        few = dataset.select([5])
        network = make_network(n_components=4)
        network.mixture.n_components = few.n_patches + 1
        assert not CrossFit(network, Tracker, few, few).is_needed

    def test_one_fold_is_refused(self, embedded):
        network, dataset, _ = embedded
        with pytest.raises(InputError, match="calibration_folds"):
            self.cross_fit(network, dataset, n_folds=1)


class TestThresholdCalibrator:
    def test_limits_hold_on_the_held_out_cases(self, embedded):
        network, dataset, images = embedded
        calibrator = ThresholdCalibrator(network, dataset)
        calibrator.calibrate(calibrator.scores())
        limits = network.calibration.detection_limits(network.score_index, network.target_fpr)
        assert limits.n_cases == calibrator.report["held_out_cases"] == len(images)
        for rate in (0.5, 1):
            found = 0
            for image in images:
                anomaly_map = DPMMInferer(2, 2)(image[None], network)[0, 0].numpy()
                found += int((regions_of(image, anomaly_map).peaks >= limits.peak_limit(rate)).sum())
            assert found <= rate * len(images) + 1  # the cache holds half precision
        low, peak, high = (calibrator.report["peak_limits"]["0.5"][name] for name in ("low", "peak", "high"))
        assert low <= peak <= high


class TestFit:
    def test_limits_come_from_all_normals(self, tmp_path):
        for seed in range(6):
            save(tmp_path / "normals" / f"{seed}.nii.gz", brain(seed))
        save(tmp_path / "cases" / "ill.nii.gz", brain(20, lesion=(slice(10, 24), slice(10, 24), slice(1, 4))))
        fit = {"dataset_dir": str(tmp_path / "normals"), "output_dir": str(tmp_path / "fit")}
        run_bundle("training", ckpt_path=str(tmp_path / "model.pt"), **fit)
        report = json.loads((tmp_path / "fit" / "fit_report.json").read_text())
        assert report["detection"]["held_out_cases"] == 6 and report["detection"]["folds"] == 5
        assert load_detection_limits(tmp_path / "model.pt", "negative_log_likelihood", 0.01).n_cases == 6
        run_bundle(
            "inference",
            ckpt_path=str(tmp_path / "model.pt"),
            dataset_dir=str(tmp_path / "cases"),
            output_dir=str(tmp_path / "out"),
        )
        (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())["cases"]
        assert entry["held_out_cases"] == 6 and entry["flagged"] is None
        assert entry["p_value"] == (entry["regions"][0]["p_value"] if entry["regions"] else 1)
