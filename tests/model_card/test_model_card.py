"""The card of a model has the figures of its file, names nobody, and never replaces a file of somebody else."""

import json
import re

import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.files import file_sha256, is_sealed
from scripts.model_card import write_model_card
from scripts.models.checkpoint import save_network
from scripts.models.mixture import SCORE_KINDS
from scripts.models.provenance import NOTE, provenance
from tests.tiny_bundle import ROOT, run_bundle
from tests.tiny_cases import brain, save

COSINE = {"score": "cosine"}


def calibrate(network, n_cases, seed=0):
    """Give a network the peaks of held-out cases: case i has i % 3 regions."""
    median, threshold = map(float, network.score_range())
    generator = np.random.default_rng(seed)
    peaks = [median + (threshold - median) * generator.uniform(0.1, 2, i % 3) for i in range(n_cases)]
    network.calibration.regions.fit({network.score: peaks}, dict.fromkeys(SCORE_KINDS, median))
    return peaks


def report_of(network, **others):
    """Return the fit report of a network, as `FitReporter` writes it."""
    mixture = network.mixture
    counts = {"cases": 17, "failed_cases": 2, "slices": 171, "patches": 1717}
    return {
        "data": {"train": counts, "validation": {**counts, "cases": 5, "failed_cases": 0}},
        "best_epoch": 7,
        "converged": True,
        "concentration": float(mixture.weight_concentration),
        "component_weights": mixture.log_weights()[mixture.active()].exp().sort(descending=True).values.tolist(),
        "score_quantiles": {"cosine": network.calibration.table(0)},
        "detection": {"held_out_cases": 22, "folds": 5, "peak_limits": {}},
        **provenance(network, {"seed": 11, "max_epochs": 13}),
        **others,
    }


@pytest.fixture
def model(fitted_network, tmp_path):
    calibrate(fitted_network, 40)
    save_network(fitted_network, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def write(model, tmp_path):
    """Return a function that writes the card and returns its text."""

    def card(**settings):
        write_model_card(model, tmp_path / "card.md", **{**COSINE, **settings})
        return (tmp_path / "card.md").read_text()

    return card


def rows(text):
    """Return the rows of two cells of the card's tables as a dict."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", text, re.MULTILINE))


class TestFigures:
    def test_identity(self, write, model):
        found = rows(write())
        assert found["SHA-256 of the file"] == f"`{file_sha256(model)}`"
        extra = torch.load(model, weights_only=True)["_extra_state"]
        assert found["digest of the fitted state"] == f"`{extra['digest']}`"
        version = json.loads((ROOT / "configs" / "metadata.json").read_text())["version"]
        assert found["version of the bundle that wrote this card"] == version

    def test_purpose_comes_first(self, write):
        assert write().splitlines()[2] == f"**{NOTE}**"

    def test_encoder_has_its_licence(self, write):
        found = rows(write())
        assert found["encoder"] == r"dinov2\_vits14"
        assert found["licence of the weights published under this name"] == "Apache-2.0"
        assert "random" in found["digest of the weights"]

    def test_thresholds_are_those_of_the_network(self, write, fitted_network):
        found = rows(write())
        median, threshold = map(float, fitted_network.score_range())
        assert float(found["raw score of a typical normal patch, 0 in the maps"]) == pytest.approx(median, rel=1e-5)
        assert float(found["decision threshold, 1 in the maps"]) == pytest.approx(threshold, rel=1e-5)

    @pytest.mark.parametrize("rate", [0.1, 0.25, 1])
    def test_false_regions_are_counted_in_the_held_out_cases(self, write, fitted_network, rate):
        limits = fitted_network.calibration.detection_limits(0, 0.01)
        peak, n = limits.peak_limit(rate), limits.n_cases
        text = write(false_regions=rate)
        counts = dict(re.findall(r"^\| (cases with a false region|false regions) \| (\d+) \|", text, re.MULTILINE))
        assert int(counts["false regions"]) == (limits.region_peaks >= peak).sum() <= rate * n
        assert int(counts["cases with a false region"]) <= int(counts["false regions"])
        assert f"In the {n} held-out normal cases" in text

    def test_intervals_hold_the_estimate_and_are_wider_for_fewer_cases(self, make_network, tmp_path):
        widths = []
        for n_cases in (200, 40, 8):
            network = make_network()
            calibrate(network, n_cases)
            save_network(network, tmp_path / "model.pt")
            write_model_card(tmp_path / "model.pt", tmp_path / "card.md", **COSINE)
            row = re.search(
                r"^\| false regions \| \d+ \| (\S+) \| (\S+) to (\S+) \|", (tmp_path / "card.md").read_text(), re.M
            )
            rate, low, high = map(float, row.groups())
            assert low <= rate <= high
            widths.append(high - low)
        assert widths == sorted(widths)

    def test_few_cases_cannot_flag(self, make_network, tmp_path):
        for n_cases, is_able in ((18, False), (19, True)):
            network = make_network()
            calibrate(network, n_cases)
            save_network(network, tmp_path / "model.pt")
            write_model_card(tmp_path / "model.pt", tmp_path / "card.md", **COSINE)
            text = (tmp_path / "card.md").read_text()
            assert ("A case is flagged if" in text) == is_able
            assert ("`case_alpha` 0.05 takes 19 held-out normal cases" in text) != is_able

    def test_flagging_peak_separates_p_values(self, write, fitted_network):
        limits = fitted_network.calibration.detection_limits(0, 0.01)
        peak = float(re.search(r"flagged if its highest detected peak is above (\S+)\.", write())[1])
        assert limits.p_values(peak * 1.01) <= 0.05 < limits.p_values(peak * 0.99)

    def test_models_without_limits_say_so(self, make_network, tmp_path):
        save_network(make_network(), tmp_path / "model.pt")
        write_model_card(tmp_path / "model.pt", tmp_path / "card.md", **COSINE)
        assert "The model has no detection limits" in (tmp_path / "card.md").read_text()

    def test_models_of_0_4(self, tmp_path):
        write_model_card(ROOT / "tests" / "fixtures" / "model_0.4.pt", tmp_path / "card.md", target_fpr=0.05)
        assert (
            "(computed; the file, of version 0.4 or earlier, does not state it)" in (tmp_path / "card.md").read_text()
        )

    def test_acquisition_is_text_and_no_markup(self, fitted_network, model, write):
        times = {"EchoTime": [80.0, 90.5]}
        fitted_network.acquisition = {
            "modalities": ["MR"],
            "descriptions": ["t2 | <b>x</b>\n# y"],
            "times": times,
            "inversion": False,
            "agent": None,
        }
        save_network(fitted_network, model)
        text = write()
        assert r"t2 \| \<b\>x\</b\> \# y" in text and "\n# y" not in text
        found = rows(text)
        assert found["EchoTime"] == "80 to 90.5 ms" and found["inversion recovery"] == "no"
        assert found["contrast agent"] == "some or unknown"


class TestReport:
    @pytest.fixture
    def with_report(self, write, tmp_path):
        def card(report):
            (tmp_path / "fit_report.json").write_text(json.dumps(report))
            return write(fit_report=tmp_path / "fit_report.json")

        return card

    def test_population_of_a_cross_fit_has_the_held_out_cases(self, with_report, fitted_network):
        found = rows(with_report(report_of(fitted_network)))
        assert found["normal cases fitted on"] == "22" and found["cases that could not be read"] == "2"
        assert found["`seed`"] == "11" and found["`max_epochs`"] == "13"

    def test_population_of_held_out_cases(self, with_report, fitted_network):
        detection = {"held_out_cases": 5, "folds": 0, "peak_limits": {}}
        assert rows(with_report(report_of(fitted_network, detection=detection)))["normal cases fitted on"] == "17"

    def test_later_calibration_is_noticed(self, with_report, fitted_network):
        quantiles = {"cosine": {name: 2 * value for name, value in fitted_network.calibration.table(0).items()}}
        text = with_report(report_of(fitted_network, score_quantiles=quantiles))
        assert "from a calibration after the fit" in text

    def test_free_text_of_the_report_stays_out(self, with_report, fitted_network):
        report = report_of(fitted_network)
        report["settings"].update({"dataset_dir": "/home/mueller", "seed": {"patient": "mueller"}, "mueller": 1})
        assert "mueller" not in with_report(report).lower()

    @pytest.mark.parametrize(
        "wrong",
        [{"concentration": 3.21}, {"component_weights": [1.0]}, {"settings": {"image_size": 57}}],
        ids=lambda wrong: next(iter(wrong)),
    )
    def test_report_of_another_fit_is_refused(self, with_report, fitted_network, wrong):
        with pytest.raises(InputError, match="another fit"):
            with_report(report_of(fitted_network, **wrong))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": 1}', "\x00"])
    def test_other_files_are_refused(self, write, tmp_path, text):
        (tmp_path / "fit_report.json").write_text(text)
        with pytest.raises(InputError, match="is not the report of a fit"):
            write(fit_report=tmp_path / "fit_report.json")

    def test_missing_report_is_refused(self, write, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            write(fit_report=tmp_path / "none.json")

    @pytest.mark.slow
    def test_a_fit_and_its_report(self, tmp_path):
        folder = tmp_path / "somewhere"
        for seed in range(5):
            save(folder / "normals" / f"normal-{seed}.nii.gz", brain(seed))
        fit = {"output_dir": str(folder / "fit"), "ckpt_path": str(folder / "model.pt")}
        run_bundle("training", dataset_dir=str(folder / "normals"), **fit)
        write_model_card(folder / "model.pt", tmp_path / "card.md", folder / "fit" / "fit_report.json")
        text = (tmp_path / "card.md").read_text()
        report = json.loads((folder / "fit" / "fit_report.json").read_text())
        low, high = (report["detection"]["peak_limits"]["0.25"][end] for end in ("low", "high"))
        assert f"| {low:.3g} to {high:.3g} |" in text
        assert rows(text)["normal cases fitted on"] == "5"
        assert f"shows {report['settings']['field_of_view_mm']:g} mm" in text
        assert str(folder) not in text and "normal-" not in text


class TestFile:
    def test_same_model_gives_the_same_card(self, write):
        assert write() == write()

    def test_no_path_and_no_name_of_a_file_is_in_it(self, write, tmp_path):
        assert str(tmp_path) not in write()

    def test_unchanged_card_is_replaced(self, write, tmp_path):
        first = write()
        assert is_sealed(tmp_path / "card.md") and write(false_regions=4) != first
        assert sorted(path.name for path in tmp_path.iterdir()) == ["card.md", "model.pt"]

    @pytest.mark.parametrize("change", [lambda text: "notes", lambda text: text.replace("#", "##", 1), lambda text: ""])
    def test_other_files_are_left_alone(self, write, tmp_path, change):
        changed = change(write())
        (tmp_path / "card.md").write_text(changed)
        with pytest.raises(InputError, match="left alone"):
            write()
        assert (tmp_path / "card.md").read_text() == changed

    def test_model_is_never_replaced(self, model):
        before = model.read_bytes()
        with pytest.raises(InputError, match="left alone"):
            write_model_card(model, model, **COSINE)
        assert model.read_bytes() == before

    def test_links_and_folders_are_left_alone(self, write, model, tmp_path):
        write()
        (tmp_path / "link.md").symlink_to(tmp_path / "card.md")
        for target in (tmp_path / "link.md", tmp_path):
            with pytest.raises(InputError, match=r"left alone|is a directory"):
                write_model_card(model, target, **COSINE)

    def test_empty_name_is_refused(self, model):
        with pytest.raises(InputError, match="must name a file"):
            write_model_card(model, "", **COSINE)

    def test_changed_model_is_refused(self, model, write):
        state_dict = torch.load(model, weights_only=True)
        state_dict["mixture.stick_fractions"] *= 0.5
        torch.save(state_dict, model)
        with pytest.raises(InputError, match="digest differs"):
            write()

    def test_incomplete_model_is_refused(self, model, write):
        state_dict = torch.load(model, weights_only=True)
        del state_dict["calibration.rates"], state_dict["_extra_state"]["digest"]
        torch.save(state_dict, model)
        with pytest.raises(InputError, match="not a complete fitted model"):
            write()

    def test_wrong_settings_are_refused(self, write):
        with pytest.raises(InputError, match="target_fpr must be"):
            write(target_fpr=0.7)
        with pytest.raises(InputError, match="did you mean 'false_regions'"):
            write(false_region=1)
        with pytest.raises(InputError, match="not calibrated for the score 'subspace'"):
            write(score="subspace")
