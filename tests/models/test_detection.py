"""Detection limits and conformal p-values from the peaks of held-out normal cases."""

import copy

import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.models.checkpoint import load_detection_limits, save_network
from scripts.models.detection import DetectionLimits, RegionCalibration
from scripts.models.mixture import SCORE_KINDS

COSINE = SCORE_KINDS.index("cosine")


def limits(cases):
    peaks = np.sort([peak for case in cases for peak in case])[::-1]
    return DetectionLimits(np.sort([max([0.0, *case]) for case in cases])[::-1], peaks)


def random_cases(seed, n_cases=40):
    generator = np.random.default_rng(seed)
    return [1 + generator.exponential(0.3, generator.poisson(5)) for _ in range(n_cases)]


class TestPeakLimit:
    @pytest.mark.parametrize("rate", [0.025, 0.1, 0.5, 1, 2, 3.9])
    def test_leaves_the_given_rate_on_the_held_out_cases(self, rate):
        cases = random_cases(0)
        limit = limits(cases).peak_limit(rate)
        assert sum((case >= limit).sum() for case in cases) == int(rate * len(cases))

    def test_no_false_region_is_above_all_peaks(self):
        cases = random_cases(1)
        assert limits(cases).peak_limit(0) > max(case.max() for case in cases if len(case))

    def test_falls_as_the_rate_rises(self):
        values = [limits(random_cases(2)).peak_limit(rate) for rate in np.linspace(0, 16, 100)]
        assert (np.diff(values) <= 0).all() and values[-1] == 0

    def test_holds_on_new_cases_on_average(self):
        rates = []
        for seed in range(200):
            limit = limits(random_cases(seed, 30)).peak_limit(0.5)
            rates.append(np.mean([(case >= limit).sum() for case in random_cases(1000 + seed, 30)]))
        assert np.mean(rates) == pytest.approx(0.5, abs=0.05)

    def test_equal_peaks_count_as_one_limit(self):
        assert limits([[2.0, 2.0], [2.0, 1.5]]).peak_limit(0.5) > 2
        assert limits([]).peak_limit(0.5) == 0


class TestPValues:
    def test_counts_normal_cases_at_least_as_high(self):
        given = limits([[3.0], [2.0, 1.1], [2.0], []])
        np.testing.assert_allclose(given.p_values([3.5, 3.0, 2.0, 1.5, 0.0]), np.array([1, 2, 4, 4, 5]) / 5)

    def test_valid_for_exchangeable_cases(self):
        flagged = []
        for seed in range(300):
            *normals, new = [max([0.0, *case]) for case in random_cases(seed, 40)]
            flagged.append(limits([[peak] for peak in normals]).p_values(new) <= 0.05)
        assert np.mean(flagged) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)

    @pytest.mark.parametrize(("n_cases", "possible"), [(18, False), (19, True)])
    def test_5_percent_needs_19_cases(self, n_cases, possible):
        assert limits([[2.0]] * n_cases).can_flag(0.05) is possible


class TestRegionCalibration:
    def fitted(self):
        calibration = RegionCalibration()
        calibration.fit({"cosine": [np.array([0.4, 0.9]), np.array([]), np.array([0.6])]}, {"cosine": 0.1})
        return calibration

    def test_limits_are_calibrated(self):
        found = self.fitted().limits(COSINE, 0.1, 0.3)
        np.testing.assert_allclose(found.case_peaks, [4, 2.5, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.region_peaks, [4, 2.5, 1.5], rtol=1e-5)

    def test_other_kinds_have_none(self):
        assert self.fitted().limits(SCORE_KINDS.index("euclidean"), 0.1, 0.3) is None
        assert RegionCalibration().limits(COSINE, 0.1, 0.3) is None

    def test_state_of_any_number_of_cases_loads(self):
        calibration = RegionCalibration()
        calibration.load_state_dict(self.fitted().state_dict())
        assert calibration.case_local_peaks.shape == (len(SCORE_KINDS), 3)
        calibration.load_state_dict({})  # of 0.5
        assert calibration.limits(COSINE, 0.1, 0.3) is None

    def test_only_the_highest_regions_are_stored(self):
        calibration = RegionCalibration()
        calibration.fit({"cosine": [np.arange(1, 100.0), np.arange(1, 200.0)]}, {"cosine": 0.0})
        assert calibration.region_local_peaks.shape[1] == 32 and calibration.region_local_peaks[COSINE].min() > 100


class TestLoadDetectionLimits:
    def save(self, network, path):
        calibration, kind = network.calibration, network.score_index
        median, threshold = map(float, calibration.score_range(kind, network.target_fpr))
        calibration.regions.fit({network.score: [np.array([threshold + 1.0]), np.array([])]}, {network.score: median})
        save_network(network, path)

    def test_of_a_network(self, fitted_network, tmp_path):
        self.save(fitted_network, tmp_path / "model.pt")
        median, threshold = map(float, fitted_network.score_range())
        found = load_detection_limits(tmp_path / "model.pt", fitted_network.score, fitted_network.target_fpr)
        np.testing.assert_allclose(found.case_peaks, [1 + 1 / (threshold - median), 0], rtol=1e-4, atol=1e-4)

    def test_model_without_regions_has_none(self, fitted_network, tmp_path, caplog):
        save_network(fitted_network, tmp_path / "model.pt")
        assert load_detection_limits(tmp_path / "model.pt", fitted_network.score, 0.01) is None
        assert "no detection limits" in caplog.text

    def test_missing_file_has_none(self, tmp_path, caplog):
        assert load_detection_limits(tmp_path / "model.pt", "cosine", 0.01) is None
        assert "detection limits" in caplog.text

    @pytest.mark.parametrize(
        "damage",
        [
            lambda peaks: peaks.flip(1),
            lambda peaks: peaks.double(),
            lambda peaks: peaks[:-1],
            lambda peaks: torch.full_like(peaks, torch.inf),
        ],
    )
    def test_damaged_peaks_are_refused(self, damage, fitted_network, tmp_path):
        self.save(fitted_network, tmp_path / "model.pt")
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        state["_extra_state"].pop("digest")
        name = "calibration.regions.case_local_peaks"
        state[name] = damage(state[name])
        with pytest.raises(InputError):
            copy.deepcopy(fitted_network).load_state_dict(state)

    def test_other_state_replaces_the_peaks(self, fitted_network, tmp_path):
        old = fitted_network.state_dict()
        old["_extra_state"].pop("digest")
        for name in [name for name in old if "regions" in name]:
            del old[name]
        self.save(fitted_network, tmp_path / "model.pt")
        fitted_network.load_state_dict(old)
        assert fitted_network.calibration.regions.case_local_peaks.shape[1] == 0

    def test_peaks_of_0_6_are_not_taken_for_local_means(self, fitted_network, tmp_path, caplog):
        self.save(fitted_network, tmp_path / "model.pt")
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        for name in [name for name in state if "local_peaks" in name]:
            state[name.replace("local_", "")] = state.pop(name)
        state["_extra_state"].pop("digest")
        fitted_network.load_state_dict(state)
        assert fitted_network.calibration.regions.case_local_peaks.shape[1] == 0
        torch.save(state, tmp_path / "model.pt")
        assert load_detection_limits(tmp_path / "model.pt", fitted_network.score, fitted_network.target_fpr) is None
        assert "version 0.6 or earlier" in caplog.text
