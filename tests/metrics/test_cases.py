"""Metrics over cases: weights, thirds of the lesions, and masks."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from scripts.inference.measurements import image_score
from scripts.metrics.cases import COUNTS, LISTS, CaseTable, case_metrics, count_metrics, lesion_thirds
from scripts.metrics.matching import count_mask
from tests.oracles import load_oracle

UNKNOWN = {"is_anomalous": None, "size_unit": "mL", **dict.fromkeys([*COUNTS, *LISTS])}


def random_rows(generator, n_cases):
    """Return numbers of cases: every third is healthy, the last but one has no label, the last no outline."""
    rows = []
    for index in range(n_cases):
        n_lesions = index % 3 and int(generator.integers(1, 4))
        peaks = [float(peak) if peak > 2 else None for peak in generator.integers(0, 9, n_lesions)]
        detected = [peak is not None and peak >= 4 for peak in peaks]
        false_peaks = sorted(generator.integers(1, 7, generator.integers(0, 4)).astype(float).tolist(), reverse=True)
        n_false = sum(peak >= 4 for peak in false_peaks)
        counts = generator.integers(10, 40, 4) * [n_lesions > 0, 1, n_lesions > 0, 1]
        lists = [generator.exponential(2, n_lesions).tolist(), peaks, detected, false_peaks]
        regions = [n_lesions, n_lesions - sum(detected), n_false + sum(detected), n_false, 0.7 * sum(detected)]
        rows.append(
            {
                **{"image_score": generator.normal(), "is_anomalous": n_lesions > 0, "size_unit": "mL"},
                **dict(zip(COUNTS, [*counts.tolist(), *regions], strict=True)),
                **dict(zip(LISTS, lists, strict=True)),
            }
        )
    return [*rows, {**UNKNOWN, "image_score": 9.0}, {**UNKNOWN, "image_score": 1.0, "is_anomalous": True}]


class TestCaseMetrics:
    def test_weights_act_as_repetitions(self):
        generator = np.random.default_rng(3)
        rows = random_rows(generator, 15)
        weights = generator.integers(0, 4, len(rows))
        repeated = [row for row, times in zip(rows, weights, strict=True) for _ in range(times)]
        thirds = ("lesion_sensitivity_small", "lesion_sensitivity_medium", "lesion_sensitivity_large")
        result = case_metrics(CaseTable.of(rows), weights)
        expected = case_metrics(CaseTable.of(repeated), np.ones(len(repeated), int))
        for name in set(result) - set(thirds):  # the limits of the thirds are those of the cases without weights
            assert result[name] == pytest.approx(expected[name]), name
        known = [row for row in repeated if row["is_anomalous"] is not None]
        truth, scores = [row["is_anomalous"] for row in known], [row["image_score"] for row in known]
        assert result["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))
        assert result["image_ap"] == pytest.approx(average_precision_score(truth, scores))

    def test_sums_over_cases(self):
        rows = random_rows(np.random.default_rng(4), 12)
        result = case_metrics(CaseTable.of(rows), np.ones(len(rows), int))
        outlined = [row for row in rows if row["lesions"] is not None]
        lesions, missed, regions, false = (
            sum(row[name] for row in outlined) for name in ("lesions", "missed_lesions", "regions", "false_regions")
        )
        recall, precision = 1 - missed / lesions, 1 - false / regions
        assert result["lesion_sensitivity"] == pytest.approx(recall)
        assert result["region_precision"] == pytest.approx(precision)
        assert result["region_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
        assert result["false_regions_per_case"] == pytest.approx(false / len(outlined))
        dice = [count_metrics(np.array([row[name] for name in COUNTS]))["dice_of_mask"] for row in outlined]
        assert np.isnan(dice).sum() == 4
        assert result["mean_dice_of_mask"] == pytest.approx(np.nanmean(dice))
        assert result["median_dice_of_mask"] == pytest.approx(np.nanmedian(dice))

    def test_curve_passes_the_operating_point(self):
        rows = random_rows(np.random.default_rng(5), 12)
        table = CaseTable.of(rows)
        result = case_metrics(table, np.ones(len(rows), int))
        rates, found = table.froc(np.ones(len(rows)))
        point = np.column_stack([rates, found]) - [result["false_regions_per_case"], result["lesion_sensitivity"]]
        assert np.abs(point).sum(1).min() == pytest.approx(0, abs=1e-12)
        assert result["froc_score"] == pytest.approx(
            np.mean([value for name, value in result.items() if name.startswith("lesion_sensitivity_at_")])
        )

    def test_no_cases_leave_all_undefined(self):
        assert np.isnan([*case_metrics(CaseTable.of([]), np.ones(0, int)).values()]).all()
        rows = [{**UNKNOWN, "image_score": 1.0}]
        assert np.isnan([*case_metrics(CaseTable.of(rows), np.ones(1, int)).values()]).all()

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("maximum", "image_auroc_max"),
            ("top_1_percent_mean", "image_auroc_top1pct"),
            ("top_hundredth", "image_auroc_top1pct"),
        ],
    )
    def test_image_scores_of_the_oracle(self, kind, name):
        oracle = load_oracle("metrics")
        rows = [
            {**UNKNOWN, "image_score": image_score(score, np.ones_like(label), kind), "is_anomalous": label.any()}
            for score, label in zip(oracle["score"], oracle["mask"], strict=True)
        ]
        assert case_metrics(CaseTable.of(rows), np.ones(len(rows), int))["image_auroc"] == float(oracle[name])


class TestLesionThirds:
    def test_thirds_hold_as_many_lesions(self):
        sizes = np.random.default_rng(6).exponential(2, 99)
        thirds, limits = lesion_thirds(sizes, np.full(99, "mL"))
        assert np.bincount(thirds).tolist() == [33, 33, 33]
        small, medium = limits["mL"]
        assert sizes[thirds == 0].max() == small and sizes[thirds == 1].max() == medium

    def test_each_unit_by_itself(self):
        sizes, units = np.array([1, 2, 3, 100, 200, 300.0]), np.array(["mL"] * 3 + ["pixels"] * 3)
        thirds, limits = lesion_thirds(sizes, units)
        assert thirds.tolist() == [0, 1, 2, 0, 1, 2] and limits == {"mL": [1, 2], "pixels": [100, 200]}

    def test_lesions_of_one_size_are_in_one_third(self):
        assert lesion_thirds(np.full(5, 2.0), np.full(5, "mL"))[0].tolist() == [0] * 5


class TestCountMetrics:
    def test_mask_against_sklearn(self):
        label, mask = np.random.default_rng(7).random((2, 400)) < 0.3
        counts = {**count_mask(label, mask), "lesions": 1}
        result = count_metrics(np.array([counts.get(name, 0) for name in COUNTS]))
        for name, function in (("dice", f1_score), ("precision", precision_score), ("sensitivity", recall_score)):
            assert result[f"{name}_of_mask"] == pytest.approx(function(label, mask)), name
        assert result["false_positive_rate_of_mask"] == pytest.approx(mask[~label].mean())

    def test_healthy_case_and_empty_mask(self):
        healthy = dict.fromkeys(COUNTS, 0) | {"normal_pixels": 90, "false_pixels": 9, "regions": 1, "false_regions": 1}
        result = count_metrics(np.array([*healthy.values()]))
        assert result.pop("false_positive_rate_of_mask") == pytest.approx(0.1) and np.isnan([*result.values()]).all()
        missed = dict.fromkeys(COUNTS, 0) | {
            "anomalous_pixels": 5,
            "normal_pixels": 5,
            "lesions": 2,
            "missed_lesions": 2,
        }
        result = count_metrics(np.array([*missed.values()]))
        assert np.isnan([result.pop("region_precision"), result.pop("precision_of_mask")]).all()
        assert set(result.values()) == {0}
