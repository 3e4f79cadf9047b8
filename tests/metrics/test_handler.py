"""Evaluations of maps against labels: metrics, intervals, and errors of single labels."""

import csv
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from scripts.data.foreground import foreground_mask
from scripts.data.labels import GroundTruth
from scripts.errors import InputError, cause_of
from scripts.inference import ResultsDirectory
from scripts.inference.regions import find_regions, outlined
from scripts.metrics.bootstrap import case_weights, interval
from scripts.metrics.handler import MapEvaluation, patch_threshold
from tests.tiny_bundle import ROOT, run_configs
from tests.tiny_cases import AFFINE, brain, save


class TestBootstrap:
    def test_weights(self):
        assert np.array_equal(case_weights("a", 50, 0), case_weights("a", 50, 0))
        assert not np.array_equal(case_weights("a", 50, 0), case_weights("a", 50, 1))
        weights = np.array([case_weights(f"case-{index}", 400, 0) for index in range(400)])
        assert (weights[:, 0] == 1).all()
        drawn = weights[:, 1:]
        assert drawn.mean() == pytest.approx(1, abs=0.02) and drawn.var() == pytest.approx(1, abs=0.03)
        assert np.abs(np.corrcoef(drawn)[np.triu_indices(400, 1)]).mean() < 0.05

    def test_coverage_of_intervals(self):
        generator = np.random.default_rng(0)
        n_cases, n_trials, covered = 60, 300, 0
        for trial in range(n_trials):
            values = generator.exponential(2, n_cases)
            weights = np.array([case_weights(f"{trial}-{index}", 300, 0) for index in range(n_cases)])
            low, high = interval(values @ weights[:, 1:] / weights[:, 1:].sum(0))
            covered += low <= 2 <= high
        assert 0.88 <= covered / n_trials <= 0.98

    def test_interval_ignores_nan(self):
        assert interval(np.array([np.nan, *np.linspace(0, 1, 201)])) == pytest.approx((0.025, 0.975))
        assert np.isnan(interval(np.full(3, np.nan))).all() and np.isnan(interval(np.empty(0))).all()


def make_cases(n_cases, seed=0):
    """Return maps and labels by name; every third case is normal."""
    generator = np.random.default_rng(seed)
    maps, masks = {}, {}
    for index in range(n_cases):
        mask = np.zeros((24, 24), bool)
        if index % 3:
            row, column = generator.integers(2, 18, 2)
            mask[row : row + 4, column : column + 4] = True
        masks[f"case-{index}"] = mask
        maps[f"case-{index}"] = (generator.normal(0, 0.5, mask.shape) + mask).astype(np.float32)
    return maps, masks


PEAK_LIMIT = 1.4


def output_of(scores, truth):
    """Return what postprocessing leaves of a picture without background."""
    anomaly_map = MetaTensor(torch.from_numpy(scores)[None])
    image = torch.ones_like(anomaly_map)
    regions = outlined(scores, find_regions(scores), 0.65)
    return {
        "image": image,
        "foreground": foreground_mask(image.numpy()),
        "map": anomaly_map,
        "pred": MetaTensor(torch.from_numpy(regions.reaching(PEAK_LIMIT).labels > 0)[None]).byte(),
        "regions": regions,
        "peak_limit": PEAK_LIMIT,
        "truth": truth,
    }


def evaluation(folder, network, maps, masks, **arguments):
    """Return an evaluation of the maps of some cases."""
    directory = ResultsDirectory(folder)
    directory.open()
    evaluation_ = MapEvaluation(network, directory, {}, **{"n_resamplings": 40, **arguments})
    evaluation_.start(None)
    for case, scores in maps.items():
        truth = GroundTruth(bool(masks[case].any()), masks[case]) if case in masks else GroundTruth(None, None)
        evaluation_.add(*evaluation_.compare(case, output_of(scores, truth)))
    return evaluation_


def finish(evaluation_):
    evaluation_.finish(SimpleNamespace(failed={}))
    return json.loads((evaluation_.directory.path / "metrics.json").read_text())


class TestMapEvaluation:
    def test_pooled_metrics(self, tmp_path, fitted_network):
        maps, masks = make_cases(12)
        report = finish(evaluation(tmp_path, fitted_network, maps, masks))
        truth, scores = (np.concatenate([*map(np.ravel, arrays.values())]) for arrays in (masks, maps))
        for name, function in (("pixel_auroc", roc_auc_score), ("pixel_ap", average_precision_score)):
            entry = report["pooled"][name]
            assert abs(entry["value"] - function(truth, scores)) <= entry["binning_error"] <= 2e-4
            assert entry["low"] < entry["value"] < entry["high"]
        mask = np.concatenate([(output_of(case, None)["pred"] > 0).numpy().ravel() for case in maps.values()])
        assert 0 < mask.sum() < (scores >= 1).sum()
        assert report["pooled"]["dice_of_mask"]["value"] == pytest.approx(
            2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        )
        assert report["pooled"]["precision_of_mask"]["value"] == pytest.approx(truth[mask].mean())
        rows = report["cases"]
        assert [row["is_anomalous"] for row in rows] == [masks[row["case"]].any() for row in rows]
        highest = [np.sort(maps[row["case"]], axis=None)[-6:].mean() for row in rows]
        assert [row["image_score"] for row in rows] == pytest.approx(highest)
        assert report["pooled"]["image_auroc"]["value"] == roc_auc_score([row["is_anomalous"] for row in rows], highest)
        assert sum(row["lesions"] for row in rows) == 8
        assert all((row["pixel_auroc"] is None) == (not row["is_anomalous"]) for row in rows)

    def test_metrics_of_regions(self, tmp_path, fitted_network):
        maps, masks = make_cases(12)
        report = finish(evaluation(tmp_path, fitted_network, maps, masks))
        rows, pooled = report["cases"], {name: entry["value"] for name, entry in report["pooled"].items()}
        n_regions = [len(output_of(scores, None)["regions"].reaching(PEAK_LIMIT).peaks) for scores in maps.values()]
        assert sum(row["regions"] for row in rows) == sum(n_regions)
        false, missed = (sum(row[name] for row in rows) for name in ("false_regions", "missed_lesions"))
        assert pooled["false_regions_per_case"] == false / 12 and pooled["lesion_sensitivity"] == 1 - missed / 8
        assert 0 < pooled["region_precision"] < 1
        assert pooled["region_precision"] == pytest.approx(1 - false / sum(n_regions))
        dice = [row["dice_of_mask"] for row in rows if row["lesions"]]
        assert pooled["mean_dice_of_mask"] == pytest.approx(np.mean(dice))
        assert pooled["median_dice_of_mask"] == pytest.approx(np.median(dice))
        curve = report["curves"]["froc"]
        assert curve["false_regions_per_case"][-1] == sum(len(row["false_peaks"]) for row in rows) / 12
        at_rates = [pooled[f"lesion_sensitivity_at_{rate}"] for rate in (0.125, 0.25, 0.5, 1, 2, 4, 8)]
        assert at_rates == sorted(at_rates) and at_rates[-1] == curve["lesion_sensitivity"][-1]
        assert pooled["froc_score"] == pytest.approx(np.mean(at_rates))
        for name in ("froc_score", "region_precision"):
            assert report["pooled"][name]["low"] <= pooled[name] <= report["pooled"][name]["high"]
        assert report["pooled"]["region_precision"]["low"] < report["pooled"]["region_precision"]["high"]
        assert report["lesion_size_limits"] == {"pixels": [16, 16]}
        assert pooled["lesion_sensitivity_small"] == pooled["lesion_sensitivity"]
        assert report["pooled"]["lesion_sensitivity_large"]["reason"] == "no lesion is of this size"
        with (tmp_path / "metrics_per_case.csv").open() as file:
            assert not {"false_peaks", "lesion_peaks"} & set(next(csv.reader(file)))

    def test_sizes_of_volumes_are_in_ml(self, tmp_path, fitted_network):
        mask = np.zeros((8, 8, 4), bool)
        mask[2:4, 2:5, 1] = True
        evaluation_ = evaluation(tmp_path, fitted_network, {}, {})
        output = output_of(mask.astype(np.float32) * 2, GroundTruth(True, mask))
        output["image"] = MetaTensor(torch.ones(1, 8, 8, 4), affine=np.diag([2.0, -2, 5, 1]))
        row, _ = evaluation_.compare("a", output)
        assert row["size_unit"] == "mL" and row["lesion_sizes"] == [pytest.approx(0.12)]

    def test_background_is_left_out(self, tmp_path, fitted_network):
        maps, masks = make_cases(2)
        output = output_of(maps["case-1"], GroundTruth(True, masks["case-1"]))
        output["image"] = output["image"] + torch.arange(24)
        output["image"][:, :16] = 0
        output["foreground"] = foreground_mask(output["image"].numpy())
        _, counts = evaluation(tmp_path, fitted_network, {}, {}).compare("case-1", output)
        assert counts[3].sum() == (~masks["case-1"][16:]).sum() and counts[0].sum() == 24 * 24 - 16

    def test_memory_does_not_grow_with_pixels(self, tmp_path, fitted_network):
        maps, masks = make_cases(9)
        few = evaluation(tmp_path, fitted_network, dict([*maps.items()][:2]), masks)
        many = evaluation(tmp_path, fitted_network, maps, masks)
        assert few.counts.shape == many.counts.shape and few.resampled.shape == many.resampled.shape
        assert not any(isinstance(value, np.ndarray) for row in many.rows for value in row.values())

    def test_image_score_and_fpr_limit(self, tmp_path, fitted_network):
        maps, masks = make_cases(6)
        report = finish(evaluation(tmp_path, fitted_network, maps, masks, image_score="maximum", fpr_limit=0.05))
        assert all(row["image_score"] == pytest.approx(maps[row["case"]].max()) for row in report["cases"])
        assert report["pooled"]["aupro_0.05"]["value"] > 0

    def test_order_of_cases_does_not_matter(self, tmp_path, fitted_network):
        maps, masks = make_cases(9)
        first = finish(evaluation(tmp_path / "a", fitted_network, maps, masks))
        again = finish(evaluation(tmp_path / "b", fitted_network, dict(reversed(maps.items())), masks))
        other = finish(evaluation(tmp_path / "c", fitted_network, maps, masks, seed=1))
        assert [row["case"] for row in first["cases"]] == sorted(maps)
        for name, entry in first["pooled"].items():
            assert again["pooled"][name] == pytest.approx(entry), name
        assert other["pooled"]["pixel_ap"]["value"] == first["pooled"]["pixel_ap"]["value"]
        assert other["pooled"]["pixel_ap"]["low"] != first["pooled"]["pixel_ap"]["low"]

    def test_resampling_is_an_evaluation_of_its_cases(self, tmp_path, fitted_network):
        maps, masks = make_cases(9)
        evaluation_ = evaluation(tmp_path, fitted_network, maps, masks, n_resamplings=3)
        for resampling in (1, 2, 3):
            drawn = {
                f"{case}+{copy}": case
                for case in maps
                for copy in range(case_weights(case, 3, evaluation_.seed)[resampling])
            }
            repeated = evaluation(
                tmp_path,
                fitted_network,
                {copy: maps[case] for copy, case in drawn.items()},
                {copy: masks[case] for copy, case in drawn.items()},
                n_resamplings=0,
            )
            coarse = np.add.reduceat(repeated.counts, evaluation_.coarse, axis=1)
            np.testing.assert_allclose(evaluation_.resampled[resampling - 1], coarse)

    @pytest.mark.parametrize(("n_cases", "n_resamplings"), [(6, 0), (1, 40)])
    def test_no_intervals(self, tmp_path, fitted_network, n_cases, n_resamplings):
        maps, masks = make_cases(6)
        evaluated = dict([*maps.items()][-n_cases:])
        report = finish(evaluation(tmp_path, fitted_network, evaluated, masks, n_resamplings=n_resamplings))
        assert report["pooled"]["pixel_ap"]["value"] > 0
        assert all(entry["low"] is None and entry["high"] is None for entry in report["pooled"].values())

    @pytest.mark.parametrize("score", ["cosine", "negative_log_likelihood"])
    def test_patch_threshold(self, make_network, score):
        network = make_network(score)
        median, at_10 = network.calibration.quantiles[network.score_index, [0, 2]].tolist()
        threshold = float(network.calibration.decision_threshold(network.score_index, 0.01))
        assert patch_threshold(network, 0.1) == pytest.approx((at_10 - median) / (threshold - median), rel=1e-4)
        assert patch_threshold(network, 0.01) == 1.0
        assert patch_threshold(network, 0.1) < patch_threshold(network, 0.05) < 1
        with pytest.raises(InputError, match=r"evaluate with model\.pt"):
            patch_threshold(torch.jit.script(network), 0.1)

    @pytest.mark.parametrize(
        ("selection", "pixels", "images"),
        [
            (slice(0, None, 3), "no labelled case has an anomalous pixel", "there are 0 anomalous and 3 normal cases"),
            (slice(1, None, 3), None, "there are 3 anomalous and 0 normal cases"),
            (slice(0), "no case has a label of its pixels", "there are 0 anomalous and 0 normal cases"),
        ],
    )
    def test_undefined_metric_is_null_with_reason(self, tmp_path, fitted_network, selection, pixels, images):
        maps, masks = make_cases(9)
        evaluated = dict([*maps.items()][selection])
        report = finish(evaluation(tmp_path, fitted_network, evaluated, masks))
        for name, reason in (
            ("pixel_auroc", pixels),
            ("aupro_0.3", pixels),
            ("max_dice", pixels),
            ("froc_score", pixels),
            ("panoptic_quality", pixels),
            ("image_auroc", images),
        ):
            entry = report["pooled"][name]
            if reason is None:
                assert entry["value"] >= 0 and "reason" not in entry
            else:
                assert entry == {"value": None, "low": None, "high": None, "reason": reason}
        if evaluated:
            assert report["pooled"]["false_positive_rate_of_mask"]["value"] >= 0
            assert report["pooled"]["false_regions_per_case"]["value"] >= 0

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"image_score": "mean"}, "image_score must be one of top_1_percent_mean, maximum"),
            ({"fpr_limit": 0.0}, "fpr_limit must be above 0"),
            ({"n_resamplings": -1}, "n_resamplings must be 0 or more"),
        ],
    )
    def test_wrong_settings_raise(self, tmp_path, fitted_network, arguments, expected):
        with pytest.raises(InputError, match=expected):
            evaluation(tmp_path, fitted_network, {}, {}, **arguments)


@pytest.fixture
def model(shipped):
    return shipped / "models" / "model.pt"


def run_evaluation(model, cases, output, **overrides):
    """Run `python -m monai.bundle run evaluation` in this process; return its error, or an empty string."""
    run = {"dataset_dir": str(cases), "output_dir": str(output), "ckpt_path": str(model), "n_resamplings": 50}
    try:
        run_configs("evaluation", ["inference", "evaluate"], **{**run, **overrides})
    except Exception as error:
        assert isinstance(cause_of(error), InputError), repr(error)
        return str(cause_of(error))
    return ""


LESION = (slice(14, 22), slice(24, 32), slice(1, 3))


def save_cases(folder):
    """Write two anomalous and two normal cases, with labels for the former; return the label."""
    label = np.zeros((40, 46, 5), np.uint8)
    label[LESION] = 1
    for seed in (60, 61):
        save(folder / "images" / f"ill-{seed}.nii.gz", brain(seed, lesion=LESION))
        save(folder / "labels" / f"ill-{seed}.nii.gz", label)
    for seed in (62, 63):
        save(folder / "images" / f"well-{seed}.nii.gz", brain(seed))
    return label


class TestEvaluation:
    def test_volumes(self, model, tmp_path):
        label = save_cases(tmp_path)
        settings = {"label_dir": str(tmp_path / "labels"), "normal_pattern": "well-*"}
        assert run_evaluation(model, tmp_path / "images", tmp_path / "out", **settings) == ""
        report = json.loads((tmp_path / "out" / "metrics.json").read_text())
        names = ["ill-60", "ill-61", "well-62", "well-63"]
        assert [row["case"] for row in report["cases"]] == names
        maps = [nib.load(tmp_path / "out" / name / f"{name}_map.nii.gz").get_fdata() for name in names]
        truth = np.stack([label > 0, label > 0, label < 0, label < 0]).ravel()
        pooled = report["pooled"]
        assert pooled["pixel_auroc"]["value"] == pytest.approx(roc_auc_score(truth, np.ravel(maps)), abs=1e-3)
        assert pooled["pixel_auroc"]["value"] > 0.9 and pooled["image_auroc"]["value"] == 1
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert [row["image_score"] for row in report["cases"]] == [case["image_score"] for case in summary["cases"]]
        assert [row["lesions"] for row in report["cases"]] == [1, 1, 0, 0]
        assert report["note"] and report["unlabelled"] == report["failed"] == {} and report["versions"]["torch"]
        assert report["thresholds"]["at_fpr_0.01"] == 1.0 and len(report["thresholds"]) == 3
        with (tmp_path / "out" / "metrics.csv").open() as file:
            table = {row["metric"]: row for row in csv.DictReader(file)}
        assert set(table) == set(pooled)
        assert float(table["pixel_ap"]["low"]) == pooled["pixel_ap"]["low"]
        with (tmp_path / "out" / "metrics_per_case.csv").open() as file:
            rows = [*csv.DictReader(file)]
        assert [row["case"] for row in rows] == names and rows[2]["pixel_ap"] == ""

    def test_bad_and_missing_labels(self, model, tmp_path):
        label = save_cases(tmp_path)
        for name, values, affine in (
            ("bad-shape", label[:, :, :4], AFFINE),
            ("bad-values", label * np.uint8(3), AFFINE),
            ("bad-affine", label, AFFINE + np.outer([5, 0, 0, 0], [0, 0, 0, 1])),
        ):
            save(tmp_path / "images" / f"{name}.nii.gz", brain(70, lesion=LESION))
            save(tmp_path / "labels" / f"{name}.nii.gz", values, affine)
        message = run_evaluation(model, tmp_path / "images", tmp_path / "out", label_dir=str(tmp_path / "labels"))
        assert "3 of 7 cases failed (the others are finished)" in message
        report = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert set(report["failed"]) == {"bad-shape", "bad-values", "bad-affine"}
        assert report["failed"]["bad-values"].startswith("the label has values other than 0 and 1 (3)")
        assert set(report["unlabelled"]) == {"well-62", "well-63"}
        assert {row["case"]: row["is_anomalous"] for row in report["cases"]} == {
            "ill-60": True,
            "ill-61": True,
            "well-62": None,
            "well-63": None,
        }
        assert report["pooled"]["pixel_auroc"]["value"] > 0.9
        assert report["pooled"]["image_auroc"]["reason"] == "there are 2 anomalous and 0 normal cases"
        assert (tmp_path / "out" / "well-62" / "well-62_mask.nii.gz").is_file()
        assert not any((tmp_path / "out" / case).exists() for case in report["failed"])

    def test_image_labels_only(self, model, tmp_path):
        for seed in range(3):
            for kind in ("normal", "tumour"):
                grey = np.clip(brain(seed, lesion=LESION if kind == "tumour" else None)[..., 1] / 6, 0, 255)
                (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "in" / kind / f"{seed}.png")
        assert run_evaluation(model, tmp_path / "in", tmp_path / "out", normal_pattern="normal_*") == ""
        report = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert [row["is_anomalous"] for row in report["cases"]] == [False] * 3 + [True] * 3
        assert 0 <= report["pooled"]["image_auroc"]["value"] <= 1
        assert report["pooled"]["pixel_auroc"]["reason"] == "no case has a label of its pixels"
        assert report["pooled"]["lesion_sensitivity"]["reason"] == "no case has a label of its pixels"
        assert report["curves"]["roc"] == {"fpr": [], "tpr": []} and report["unlabelled"] == {}

    def test_without_labels_raises_before_scoring(self, model, tmp_path):
        save_cases(tmp_path)
        assert "give label_dir" in run_evaluation(model, tmp_path / "images", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_config_is_formatted(self):
        text = (ROOT / "configs" / "evaluate.json").read_text()
        assert text == json.dumps(json.loads(text), indent=4) + "\n"
