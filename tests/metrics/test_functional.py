"""Metrics of maps: agreement with maintained libraries within the stated error."""

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import auc, average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from scripts.metrics.functional import binning_errors, curves, pixel_metrics
from scripts.metrics.histograms import ANOMALOUS, NORMAL, REGIONS, bin_edges, coarse_bins, count_pixels
from tests.oracles import load_oracle

SHAPE = (9, 8)
FEW_EDGES = np.array([-1.0, -0.2, 0.1, 0.3, 0.5])
cases = st.tuples(
    npst.arrays(np.float64, SHAPE, elements=st.floats(-2, 2, width=16)),
    npst.arrays(np.bool_, SHAPE),
    st.floats(0.01, 1),
).filter(lambda case: 0 < case[1].sum() < case[1].size)


def metrics(scores, label, edges=None, thresholds=None, fpr_limit=0.3):
    """Compute pixel metrics, by default with a bin edge at every score."""
    edges = np.unique(scores) if edges is None else edges
    return pixel_metrics(count_pixels(scores, label, edges), edges, thresholds or {}, fpr_limit)


def summed(scores, labels, edges):
    return sum(count_pixels(score, label, edges) for score, label in zip(scores, labels, strict=True))


@pytest.fixture(scope="module")
def oracle():
    return load_oracle("metrics")


RATES = ("0.1", "0.05", "0.01")


class TestOracle:
    def test_exact_edges(self, oracle):
        scores, labels = oracle["score"].astype(float), oracle["mask"]
        thresholds = {f"at_fpr_{rate}": float(oracle[f"threshold_at_fpr_{rate}"]) for rate in RATES}
        edges = np.unique([*scores.ravel(), *thresholds.values()])
        counts = summed(scores, labels, edges)
        for fpr_limit in (0.3, 0.05, 1.0):
            result = pixel_metrics(counts, edges, thresholds, fpr_limit)
            assert result[f"aupro_{fpr_limit:g}"] == pytest.approx(oracle[f"aupro_{fpr_limit}"], abs=1e-7)
        for name in ("pixel_auroc", "pixel_ap", "max_dice", "max_dice_threshold"):
            assert result[name] == pytest.approx(float(oracle[name]), abs=1e-10), name
        for rate in RATES:
            assert result[f"dice_at_fpr_{rate}"] == pytest.approx(float(oracle[f"dice_at_fpr_{rate}"]), abs=1e-12)

    def test_default_bins_are_within_their_error(self, oracle):
        raw, labels = oracle["score"].astype(float), oracle["mask"]
        median, threshold = np.median(raw), float(oracle["threshold_at_fpr_0.01"])
        scores = (raw - median) / (threshold - median)
        thresholds = {
            f"at_fpr_{rate}": (oracle[f"threshold_at_fpr_{rate}"] - median) / (threshold - median) for rate in RATES
        }
        edges = bin_edges(thresholds.values())
        counts = summed(scores, labels, edges)
        result, errors = pixel_metrics(counts, edges, thresholds), binning_errors(counts)
        for name, error in errors.items():
            assert abs(result[name] - oracle[name.removesuffix("_foreground")]) <= error + 1e-7 <= 1e-4, name
        for rate in RATES:
            assert result[f"dice_at_fpr_{rate}"] == pytest.approx(float(oracle[f"dice_at_fpr_{rate}"]), abs=1e-12)


class TestBinning:
    @given(cases)
    @settings(max_examples=150, deadline=None)
    def test_error_bound_of_coarse_bins(self, case):
        scores, label, fpr_limit = case
        exact = metrics(scores, label, fpr_limit=fpr_limit)
        binned = metrics(scores, label, FEW_EDGES, fpr_limit=fpr_limit)
        errors = binning_errors(count_pixels(scores, label, FEW_EDGES), fpr_limit)
        assert len(errors) == 6
        for name, error in errors.items():
            assert abs(exact[name] - binned[name]) <= error + 1e-12, name

    @given(cases)
    @settings(max_examples=50, deadline=None)
    def test_exact_edges_leave_no_error(self, case):
        scores, label, fpr_limit = case
        result = metrics(scores, label, fpr_limit=fpr_limit)
        assert result["pixel_auroc"] == pytest.approx(roc_auc_score(label.ravel(), scores.ravel()), abs=1e-12)
        assert result["pixel_ap"] == pytest.approx(average_precision_score(label.ravel(), scores.ravel()), abs=1e-12)
        dice = {t: f1_score(label.ravel(), scores.ravel() >= t) for t in np.unique(scores)}
        assert result["max_dice"] == pytest.approx(max(dice.values()), abs=1e-12)
        assert dice[result["max_dice_threshold"]] == pytest.approx(max(dice.values()), abs=1e-12)

    def test_coarse_bins_keep_pixels_and_thresholds(self):
        generator = np.random.default_rng(4)
        label, scores, thresholds = generator.random((50, 50)) < 0.3, generator.normal(size=(50, 50)), {"here": 0.777}
        edges = bin_edges(thresholds.values())
        coarse = coarse_bins(edges, thresholds.values())
        assert len(coarse) < len(edges) / 15
        counts = count_pixels(scores, label, edges)
        fine = pixel_metrics(counts, edges, thresholds)
        result = pixel_metrics(np.add.reduceat(counts, coarse, axis=1), edges[coarse], thresholds)
        assert result["dice_here"] == fine["dice_here"] and result["precision_here"] == fine["precision_here"]
        assert result == pytest.approx(fine, abs=2e-2)

    def test_scores_beyond_all_bins(self):
        edges = bin_edges(limit=10)
        counts = count_pixels(np.array([[-1e9, 1e9, 1e8]]), np.array([[False, True, True]]), edges)
        assert counts[NORMAL, 0] == 1 and counts[ANOMALOUS, -1] == 2 and counts[:2].sum() == 3


class TestPixelMetrics:
    @given(cases, st.sampled_from([np.exp, np.arctan, lambda x: 3 * x + 7]))
    @settings(max_examples=50, deadline=None)
    def test_invariant_under_monotone_maps(self, case, monotone):
        scores, label, fpr_limit = case
        result, mapped = (
            metrics(scores, label, fpr_limit=fpr_limit),
            metrics(monotone(scores), label, fpr_limit=fpr_limit),
        )
        threshold = result.pop("max_dice_threshold")
        assert mapped.pop("max_dice_threshold") == monotone(threshold)
        assert mapped == pytest.approx(result, abs=1e-12)

    def test_perfect_reversed_constant_and_random_scores(self):
        generator = np.random.default_rng(0)
        label = generator.random((200, 200)) < 0.1
        edges = bin_edges()
        perfect = metrics(label * 3.0, label, edges)
        assert [perfect[name] for name in ("pixel_auroc", "pixel_ap", "max_dice", "aupro_0.3")] == pytest.approx(
            [1] * 4
        )
        assert metrics(label * -3.0, label, edges)["pixel_auroc"] == 0
        constant = metrics(np.full(label.shape, 0.7), label, edges)
        assert constant["pixel_auroc"] == 0.5 and constant["pixel_ap"] == pytest.approx(label.mean())
        assert constant["aupro_0.3"] == pytest.approx(0.15)
        chance = metrics(generator.normal(size=label.shape), label, edges)
        assert chance["pixel_auroc"] == pytest.approx(0.5, abs=0.02) and chance["pixel_ap"] == pytest.approx(
            0.1, abs=0.01
        )

    def test_exact_at_a_threshold(self):
        generator = np.random.default_rng(1)
        scores = generator.normal(size=(60, 60)).round(1).astype(np.float32)
        label = generator.random((60, 60)) < 0.2
        thresholds = {"here": float(np.float32(0.7)), "nowhere": 50.0}
        result = metrics(scores, label, bin_edges(thresholds.values()), thresholds)
        reaches = (scores >= np.float32(0.7)).ravel()
        assert result["dice_here"] == pytest.approx(f1_score(label.ravel(), reaches), abs=1e-14)
        assert result["precision_here"] == pytest.approx(precision_score(label.ravel(), reaches), abs=1e-14)
        assert result["sensitivity_here"] == pytest.approx(recall_score(label.ravel(), reaches), abs=1e-14)
        assert result["false_positive_rate_here"] == pytest.approx(reaches[~label.ravel()].mean(), abs=1e-14)
        assert result["dice_nowhere"] == result["sensitivity_nowhere"] == 0 and np.isnan(result["precision_nowhere"])

    def test_undefined_metrics_are_nan(self):
        scores, nothing = np.linspace(0, 2, 30).reshape(5, 6), np.zeros((5, 6), bool)
        result = metrics(scores, nothing, bin_edges([1.0]), {"here": 1.0})
        assert result["false_positive_rate_here"] == pytest.approx(0.5)
        assert np.isnan(
            [result[name] for name in ("pixel_auroc", "pixel_ap", "aupro_0.3", "max_dice", "dice_here")]
        ).all()
        result = metrics(scores, ~nothing, bin_edges([1.0]), {"here": 1.0})
        assert result["sensitivity_here"] == pytest.approx(0.5) and result["precision_here"] == 1
        assert np.isnan(result["pixel_auroc"]) and np.isnan(result["false_positive_rate_here"])
        assert binning_errors(count_pixels(scores, nothing, bin_edges())) == {}
        assert curves(count_pixels(scores, nothing, bin_edges()), bin_edges())["roc"] == {"fpr": [], "tpr": []}

    def test_curves_match_metrics(self):
        generator = np.random.default_rng(2)
        label = generator.random((300, 300)) < 0.05
        scores = generator.normal(size=label.shape) + 1.5 * label
        edges = bin_edges()
        counts = count_pixels(scores, label, edges)
        result, curve_points = pixel_metrics(counts, edges, {}, 1.0), curves(counts, edges)
        assert all(10 < len(points) <= 500 for curve in curve_points.values() for points in curve.values())
        assert auc(curve_points["roc"]["fpr"], curve_points["roc"]["tpr"]) == pytest.approx(
            result["pixel_auroc"], abs=1e-3
        )
        assert auc(curve_points["pr"]["recall"], curve_points["pr"]["precision"]) == pytest.approx(
            result["pixel_ap"], abs=5e-3
        )
        assert auc(curve_points["pro"]["fpr"], curve_points["pro"]["pro"]) == pytest.approx(result["aupro_1"], abs=1e-3)
        assert max(curve_points["dice"]["dice"]) == pytest.approx(result["max_dice"], abs=1e-3)
        assert np.all(np.diff(curve_points["dice"]["threshold"]) > 0)
        for curve in (curve_points["roc"], curve_points["pro"]):
            assert [points[0] for points in curve.values()] == [0, 0]
            assert [points[-1] for points in curve.values()] == pytest.approx([1, 1])


class TestRegions:
    def test_aupro_weighs_regions_equally(self):
        label = np.zeros((20, 20), bool)
        label[:10, :10], label[15, 15] = True, True
        scores = np.where(label, 2.0, 0.0)
        scores[15, 15] = -1
        assert metrics(scores, label, bin_edges())["aupro_0.3"] == pytest.approx(0.5)
        assert metrics(scores, label, bin_edges())["pixel_auroc"] == pytest.approx(100 / 101)
        assert count_pixels(scores, label, bin_edges())[REGIONS].sum() == pytest.approx(2)

    def test_regions_connect_across_slices(self):
        label = np.zeros((6, 6, 3), bool)
        label[2, 2, 0], label[3, 3, 1], label[5, 0, 2] = True, True, True
        assert count_pixels(label * 1.0, label, bin_edges())[REGIONS].sum() == pytest.approx(2)


class TestForeground:
    @given(cases, npst.arrays(np.bool_, SHAPE))
    @settings(max_examples=50, deadline=None)
    def test_equals_metrics_of_the_pixels_left(self, case, foreground):
        scores, label, _ = case
        counts = count_pixels(scores, label, np.unique(scores), foreground)
        result = pixel_metrics(counts, np.unique(scores), {})
        kept = foreground | label
        if label[kept].all():
            assert np.isnan([result["pixel_auroc_foreground"], result["pixel_ap_foreground"]]).all()
            return
        assert result["pixel_auroc_foreground"] == pytest.approx(roc_auc_score(label[kept], scores[kept]), abs=1e-12)
        expected = average_precision_score(label[kept], scores[kept])
        assert result["pixel_ap_foreground"] == pytest.approx(expected, abs=1e-12)

    def test_background_raises_the_auroc_of_all_pixels(self):
        generator = np.random.default_rng(5)
        foreground = np.zeros((60, 60), bool)
        foreground[20:40, 20:40] = True
        label = foreground & (generator.random(foreground.shape) < 0.1)
        scores = np.where(foreground, generator.normal(0, 1, label.shape) + label, -5)
        counts = count_pixels(scores, label, bin_edges(), foreground)
        result = pixel_metrics(counts, bin_edges(), {})
        assert result["pixel_auroc_foreground"] < 0.85 < 0.97 < result["pixel_auroc"]
        assert result["pixel_ap_foreground"] == pytest.approx(result["pixel_ap"], abs=1e-3)  # all scores below
        everywhere = pixel_metrics(count_pixels(scores, label, bin_edges()), bin_edges(), {})
        assert everywhere["pixel_auroc_foreground"] == everywhere["pixel_auroc"] == result["pixel_auroc"]
