"""Order of the cases of a report, and what it says of p-values and flags."""

import numpy as np
import pytest

from scripts.report.suspicion import flagging, p_value_text, suspicion

CUT = {"threshold": 1.5}
REGIONS = {"threshold": None, "case_alpha": 0.05}


def entries_of(p_values, flags):
    return [{"image_score": 1.0, "p_value": p, "flagged": flag} for p, flag in zip(p_values, flags, strict=True)]


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
    def test_frequency_equals_p_value(self, n_normals):
        for n_higher in range(n_normals):
            p_value = (1 + n_higher) / (1 + n_normals)
            numbers = [int(word) for word in p_value_text(p_value).split() if word.isdigit()]
            assert numbers[0] / numbers[1] == p_value and numbers[1] <= 1 + n_normals

    def test_rarest_and_usual(self):
        assert p_value_text(1 / 40) == "a peak as high as in 1 of 40 healthy cases"
        assert p_value_text(1.0) == "nothing higher than in healthy cases"


class TestFlagging:
    def test_flagged_cases_are_counted(self):
        entries = [*entries_of([0.02, 0.02, 0.8], [True, True, False]), {"image_score": 1.0}]
        assert flagging(entries, REGIONS)["flagged"] == "2 of 3"

    @pytest.mark.parametrize(
        ("p_values", "settings", "reason"),
        [
            ([0.2, 1.0], REGIONS, "19 held-out normal cases"),
            ([0.2, 1.0], {**REGIONS, "case_alpha": 0.01}, "99 held-out normal cases"),
            ([None, None], CUT, "cut of the map at a threshold"),
            ([None, None], REGIONS, "calibrate it or fit it anew"),
        ],
    )
    def test_reason_why_no_case_is_flagged(self, p_values, settings, reason):
        flags = flagging(entries_of(p_values, [None, None]), settings)
        assert flags["flagged"] is None and reason in flags["why_not"]
        assert flags["case_alpha"] == settings.get("case_alpha", 0.05)

    def test_entries_of_earlier_versions(self):
        assert flagging([{"image_score": 1.0}], {"threshold": 1.0})["flagged"] is None
