"""What a model keeps of the DICOM series that it was fitted on, and which other series contradict it."""

import json

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import ExplicitVRLittleEndian

from demo.dicom_series import write_series
from scripts.data.acquisition import Acquisition, fitted_acquisition, is_fitted_acquisition, read_acquisitions
from scripts.errors import InputError
from scripts.models.checkpoint import load_network, save_network
from tests.tiny_bundle import run_bundle
from tests.tiny_cases import PATIENT, brain

AXIAL = np.diag([-0.9, -1.1, 4.0, 1])
MPRAGE = {"EchoTime": 3.0, "RepetitionTime": 2000.0, "InversionTime": 900.0}
T2 = {"EchoTime": 100.0, "RepetitionTime": 5000.0}
FLAIR = {"EchoTime": 110.0, "RepetitionTime": 9000.0, "InversionTime": 2500.0}


def header(**attributes):
    data = pydicom.Dataset()
    for keyword, value in {"Modality": "MR", **attributes}.items():
        setattr(data, keyword, value)
    return data


def fitted(*headers):
    return fitted_acquisition([(Acquisition.of(data), str(number)) for number, data in enumerate(headers)])


def contradicts(candidate, *headers):
    return bool(Acquisition.of(candidate).contradictions(fitted(*headers)))


class TestContradictions:
    @pytest.mark.parametrize("on", [MPRAGE, T2, FLAIR])
    @pytest.mark.parametrize("candidate", [MPRAGE, T2, FLAIR])
    def test_other_contrasts_contradict(self, on, candidate):
        assert contradicts(header(**candidate), header(**on)) == (on is not candidate)

    def test_protocols_of_another_scanner_do_not(self):
        other = {"EchoTime": 2.2, "RepetitionTime": 2400.0, "InversionTime": 1000.0}
        assert not contradicts(header(**other, MagneticFieldStrength=1.5), header(**MPRAGE))

    def test_other_modality_and_contrast_agent_contradict(self):
        assert contradicts(header(Modality="CT"), header())
        assert contradicts(header(ContrastBolusAgent="Gd"), header())
        assert contradicts(header(), header(ContrastBolusAgent="Gd"))
        assert not contradicts(header(), header(), header(ContrastBolusAgent="Gd"))

    def test_a_header_without_times_contradicts_only_inversion(self):
        assert not contradicts(header(), header(**T2)) and contradicts(header(), header(**MPRAGE))

    def test_enhanced_images_have_times_in_groups(self):
        enhanced = header(
            SharedFunctionalGroupsSequence=[
                header(MRTimingAndRelatedParametersSequence=[header(RepetitionTime=5000.0)])
            ],
            PerFrameFunctionalGroupsSequence=[header(MREchoSequence=[header(EffectiveEchoTime=100.0)])],
        )
        assert not contradicts(enhanced, header(**T2)) and contradicts(enhanced, header(**FLAIR))

    @pytest.mark.parametrize("value", ["", None, -1.0, 0.0])
    def test_impossible_times_count_as_missing(self, value):
        assert not contradicts(header(EchoTime=value), header(**T2))

    def test_phrases_have_no_text_of_the_header(self):
        candidate = Acquisition.of(header(Modality="PT", SeriesDescription=PATIENT, ContrastBolusAgent=PATIENT))
        phrases = candidate.contradictions(fitted(header(**MPRAGE)))
        assert len(phrases) == 3 and "Doe" not in "".join(phrases)


class TestFitted:
    def test_descriptions_of_a_single_patient_are_left_out(self):
        series = [
            (Acquisition.of(header(SeriesDescription=text)), patient)
            for text, patient in [("T1  MPRAGE", "a"), ("t1 mprage", "b"), ("Doe Jane", "c"), ("Doe Jane", "c")]
        ]
        assert fitted_acquisition(series)["descriptions"] == ["t1 mprage"]

    def test_a_fit_on_series_is_recorded_without_patients(self, tmp_path, make_network):
        for seed in range(3):
            attributes = {"EchoTime": 2.0 + seed, "PatientName": PATIENT, "PatientID": f"id-{seed}"}
            write_series(tmp_path / "normals" / f"{seed}", brain(seed), AXIAL, **attributes)
        run_bundle(
            "training",
            dataset_dir=str(tmp_path / "normals"),
            output_dir=str(tmp_path / "fit"),
            ckpt_path=str(tmp_path / "model.pt"),
            validation_fraction=0.3,
        )
        report = (tmp_path / "fit" / "fit_report.json").read_text()
        acquisition = json.loads(report)["acquisition"]
        assert acquisition["modalities"] == ["MR"] and acquisition["descriptions"] == ["synthetic t1"]
        assert acquisition["times"]["RepetitionTime"] == [8.0, 8.0] and acquisition["agent"] is False
        assert set(acquisition["times"]["EchoTime"]) <= {2.0, 3.0, 4.0}
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        assert state["_extra_state"]["acquisition"] == acquisition
        assert "Doe" not in report and "id-" not in report

    def test_images_without_headers_are_not_known(self, tmp_path):
        write_series(tmp_path / "series", brain(0), AXIAL)
        (tmp_path / "image.nii.gz").touch()
        (tmp_path / "empty").mkdir()
        assert len(read_acquisitions([tmp_path / "series"])) == 1
        for other in ("image.nii.gz", "empty"):
            assert read_acquisitions([tmp_path / "series", tmp_path / other]) is None

    def test_a_damaged_file_in_a_folder_is_passed_over(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "0.dcm").write_bytes(b"\0" * 128 + b"DICM" + np.random.default_rng(0).bytes(500))
        data = pydicom.dcmread(write_series(tmp_path / "b", brain(0), AXIAL)[0].filename)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(tmp_path / "a" / "1.dcm")
        ((acquisition, _),) = read_acquisitions([tmp_path / "a"])
        assert acquisition.times["EchoTime"] == 3


class TestCheckpoint:
    def test_loads_with_and_without(self, tmp_path, make_network):
        network, other = make_network(), make_network()
        save_network(network, tmp_path / "unknown.pt")
        network.acquisition = fitted(header(**MPRAGE), header(**FLAIR))
        save_network(network, tmp_path / "known.pt")
        assert load_network(other, tmp_path / "known.pt").acquisition == network.acquisition
        assert load_network(other, tmp_path / "unknown.pt").acquisition is None

    def test_a_changed_acquisition_is_refused(self, tmp_path, make_network):
        network = make_network()
        network.acquisition = fitted(header(**MPRAGE))
        save_network(network, tmp_path / "model.pt")
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        state["_extra_state"]["acquisition"]["times"]["EchoTime"] = [1.0, 500.0]
        with pytest.raises(InputError, match="its digest differs"):
            make_network().load_state_dict(state)
        del state["_extra_state"]["acquisition"]
        with pytest.raises(InputError, match="its digest differs"):
            make_network().load_state_dict(state)

    @pytest.mark.parametrize(
        "change",
        [
            {"times": {"EchoTime": [1.0, float("nan")]}},
            {"times": {"EchoTime": [1.0]}},
            {"times": {"PatientName": [1.0, 2.0]}},
            {"modalities": [1]},
            {"agent": "yes"},
            {"more": 1},
        ],
    )
    def test_other_content_is_no_acquisition(self, change):
        good = fitted(header(**MPRAGE))
        assert is_fitted_acquisition(good) and not is_fitted_acquisition({**good, **change})
