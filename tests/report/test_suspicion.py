"""Order of the cases of a report, and what it says of p-values and flags."""

import numpy as np
import pytest

from scripts.report.suspicion import flagging, p_value_text, suspicion


def entry_of(flagged, n_cases):
    return {"image_score": 1.0, "p_value": 0.1, "flagged": flagged, "held_out_cases": n_cases}


class TestSuspicion:
    def test_p_value_before_image_score(self):
        entries = [
            {"image_score": 1.0, "p_value": 0.025},
            {"image_score": 3.0, "p_value": 0.5},
            {"image_score": 2.0, "p_value": 0.5},
            {"image_score": 9.0, "p_value": None},
            {"image_score": 8.0},  # of an earlier version
        ]
        shuffled = [entries[index] for index in np.random.default_rng(0).permutation(5)]
        assert sorted(shuffled, key=suspicion, reverse=True) == entries


class TestPValueText:
    @pytest.mark.parametrize("n_normals", [1, 19, 39, 999])
    def test_frequency_is_that_of_held_out_cases(self, n_normals):
        for n_higher in range(n_normals):
            p_value = (1 + n_higher) / (1 + n_normals)
            numbers = [int(word) for word in p_value_text(p_value, n_normals).split() if word.isdigit()]
            assert numbers == [n_higher, n_normals]

    def test_rarest_and_usual(self):
        assert p_value_text(1 / 40, 39) == "as high a peak in 0 of 39 held-out healthy cases"
        assert p_value_text(1.0, 39) == "as high a peak in 39 of 39 held-out healthy cases"


class TestFlagging:
    def test_flagged_cases_are_counted(self):
        entries = [*(entry_of(flagged, 39) for flagged in (True, False, True)), {"image_score": 1.0}]
        assert flagging(entries, {})["flagged"] == "2 of 3"

    @pytest.mark.parametrize("case_alpha", [0.05, 0.01, 0.3])
    def test_reason_counts_held_out_cases(self, case_alpha):
        n_needed = next(n for n in range(1, 1000) if 1 / (n + 1) <= case_alpha)
        flags = flagging([entry_of(None, n_needed - 1)] * 2, {"case_alpha": case_alpha})
        assert flags["flagged"] is None and flags["case_alpha"] == case_alpha
        assert f"takes {n_needed} held-out normal cases, and the model has {n_needed - 1}" in flags["why_not"]

    @pytest.mark.parametrize("entry", [entry_of(None, 0), {"image_score": 1.0}], ids=["no limits", "earlier version"])
    def test_model_without_held_out_regions(self, entry):
        flags = flagging([entry], {})
        assert flags["flagged"] is None and "calibrate it or fit it anew" in flags["why_not"]
