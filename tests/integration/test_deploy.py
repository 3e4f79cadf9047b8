"""The MONAI Deploy app in its own environment, compared with the bundle's inference on the same series."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.sr.codedict import codes

from scripts.data.acquisition import Acquisition, fitted_acquisition
from tests.integration.deploy_studies import (
    FLAIR,
    T1,
    T2,
    bad_studies,
    compressed_studies,
    enhanced_studies,
    good_studies,
    item,
    study_of_contrasts,
    study_of_several_series,
    study_with_copy_and_damage,
)
from tests.tiny_bundle import ROOT, run_bundle
from tests.tiny_cases import PATIENT, at_slice

PYTHON = ROOT / ".venv-deploy" / "bin" / "python"
pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"NOT TESTED: no {PYTHON}; `make test-deploy` makes it"),
]
GOOD = ["axial", "oblique", "sagittal", "downwards", "ct"]
KINDS = ["segmentation", "parametric_map", "measurements"]
COMPRESSED = ["rle", "jpeg-ls", "jpeg-lossless", "jpeg-2000", "htj2k"]
ENHANCED = {"enhanced-mr": "oblique", "enhanced-ct": "ct"}  # the series that they hold
SELECTIONS = {"several": "*UP", "contrasts-all": "ALL", "broken-all": "all"}
BAD = {}
UIDS = {}  # of the series of studies


@dataclass
class Run:
    """Results and log of the app for a study."""

    status: int
    log: str
    study: Path
    output: Path

    def results(self) -> Path:
        (folder,) = self.output.iterdir()
        return folder

    def dicom(self, kind):
        (path,) = (self.results() / kind).glob("*.dcm")
        assert re.fullmatch(r"[\d.]+\.dcm", path.name)
        return path


def run_app(*command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run([PYTHON, *map(str, command)], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def bundles(shipped, tmp_path_factory):
    """Return a folder with the exported bundle, one with an empty mask, and one without calibration."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("anomaly", "nothing-found", "unfitted"):
        shutil.copytree(shipped, folder / name)
    config = folder / "nothing-found" / "configs" / "inference.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "threshold": 1e6}))
    model = folder / "unfitted" / "models" / "model.pt"
    state = torch.load(model, weights_only=True)
    state["calibration.quantiles"] = torch.full_like(state["calibration.quantiles"], torch.nan)
    del state["_extra_state"]["digest"]  # of the calibration before
    torch.save(state, model)
    for name in ("contrasts", "contrasts-all", "t2-and-flair"):
        shutil.copytree(shipped, folder / name)
        model = folder / name / "models" / "model.pt"
        state = torch.load(model, weights_only=True)
        t1 = Acquisition.of(item(Modality="MR", **T1))
        state["_extra_state"]["acquisition"] = fitted_acquisition([(t1, "somebody")])
        del state["_extra_state"]["digest"]  # of the state before
        torch.save(state, model)
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Return the slices of the good series by name."""
    return good_studies(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def runs(bundles, series, tmp_path_factory):
    """Run the app on all studies in one process."""
    folder = tmp_path_factory.mktemp("runs")
    studies = folder / "studies"
    for name in GOOD:
        shutil.copytree(Path(series[name][0].filename).parent, studies / name)
    compressed_studies(studies, series["axial"])
    enhanced_studies(studies, series)
    study_of_several_series(studies / "several", studies / "axial")
    shutil.copytree(studies / "several" / "short", studies / "short")
    study_with_copy_and_damage(studies / "copy-and-damage", studies / "axial")
    UIDS.update(
        {
            "contrasts": study_of_contrasts(studies / "contrasts", T2, T1, FLAIR),
            "contrasts-all": study_of_contrasts(studies / "contrasts-all", T1, T2, T1),
            "broken-all": study_of_contrasts(studies / "broken-all", T1, T2),
        }
    )
    (studies / "broken-all" / "1" / "003.dcm").unlink()
    shutil.copytree(studies / "axial", studies / "no-output")
    (folder / "output").mkdir()
    (folder / "output" / "no-output").touch()
    BAD.update(bad_studies(studies), unfitted="is not calibrated")
    for name in ("nothing-found", "unfitted"):
        shutil.copytree(studies / "axial", studies / name)
    done = run_app(
        ROOT / "tests" / "integration" / "run_deploy_app.py",
        bundles,
        studies,
        folder / "output",
        json.dumps(SELECTIONS),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logs = dict(re.findall(r"^=== (.*?)\n(.*?\nstatus \d)$", done.stderr, re.DOTALL | re.MULTILINE))
    return {name: Run(int(log[-1]), log, studies / name, folder / "output" / name) for name, log in logs.items()}


@pytest.fixture(scope="module")
def expected(shipped, series, tmp_path_factory):
    """Run the bundle's inference on the good series; return the results directory."""
    folder = tmp_path_factory.mktemp("expected")
    for name in GOOD:
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / name).symlink_to(Path(series[name][0].filename).parent)
    run_bundle(
        "inference",
        dataset_dir=str(folder / "in"),
        output_dir=str(folder / "out"),
        ckpt_path=str(shipped / "models" / "model.pt"),
        report=False,
    )
    return folder / "out"


def frames_by_source(dataset):
    """Return frames ``[H,W]`` and their positions by the UID of the source slice, or its number in one image."""
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    frames = {}
    for frame, groups in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        (derivation,) = groups.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        frames[source.get("ReferencedFrameNumber", source.ReferencedSOPInstanceUID)] = frame, position
    assert len(frames) == len(pixels)
    return frames


class TestObjects:
    @pytest.mark.parametrize("name", [*GOOD, *COMPRESSED, "several", "copy-and-damage"])
    def test_segmentation_is_the_mask_of_the_bundle(self, runs, series, expected, name):
        case = name if name in GOOD else "axial"
        assert runs[name].status == 0, runs[name].log
        segmentation = pydicom.dcmread(runs[name].dicom("segmentation"))
        frames = frames_by_source(segmentation)
        mask = nib.load(expected / case / f"{case}_mask.nii.gz")
        flipped = [np.flip(np.asarray(mask.dataobj), axis) for axis in range(3)]
        assert not any(np.array_equal(np.asarray(mask.dataobj), other) for other in flipped)  # mirrors must differ
        n_frames = 0
        for data in series[case]:
            expected_frame = at_slice(mask, data)
            if expected_frame.any():
                frame, position = frames.pop(data.SOPInstanceUID)
                np.testing.assert_array_equal(frame, expected_frame)
                np.testing.assert_allclose(position, np.array(data.ImagePositionPatient, float), atol=1e-4)
                n_frames += 1
        assert n_frames and not frames

    @pytest.mark.parametrize("name", [*GOOD, *COMPRESSED, "several", "copy-and-damage"])
    def test_parametric_map_has_the_values_of_the_map(self, runs, series, expected, name):
        case = name if name in GOOD else "axial"
        written = pydicom.dcmread(runs[name].dicom("parametric_map"))
        assert "FloatPixelData" in written
        frames = frames_by_source(written)
        scores = nib.load(expected / case / f"{case}_map.nii.gz")
        assert len(frames) == len(series[case])
        for data in series[case]:
            frame, position = frames[data.SOPInstanceUID]
            np.testing.assert_allclose(frame, at_slice(scores, data), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(position, np.array(data.ImagePositionPatient, float), atol=1e-4)

    @pytest.mark.parametrize("name", ENHANCED)
    def test_results_of_a_multi_frame_image_refer_to_its_frames(self, runs, series, expected, name):
        assert runs[name].status == 0, runs[name].log
        case = ENHANCED[name]
        source = pydicom.dcmread(next(runs[name].study.iterdir()))
        places = [group.PlanePositionSequence[0] for group in source.PerFrameFunctionalGroupsSequence]
        for kind, suffix in (("segmentation", "mask"), ("parametric_map", "map")):
            written = pydicom.dcmread(runs[name].dicom(kind))
            (instance,) = written.ReferencedSeriesSequence[0].ReferencedInstanceSequence
            assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
            frames = frames_by_source(written)
            values = nib.load(expected / case / f"{case}_{suffix}.nii.gz")
            for number, place in enumerate(places, 1):
                (data,) = (d for d in series[case] if d.ImagePositionPatient == place.ImagePositionPatient)
                expected_frame = at_slice(values, data)
                if kind == "parametric_map" or expected_frame.any():
                    frame, position = frames.pop(number)
                    np.testing.assert_allclose(frame, expected_frame, rtol=1e-4, atol=1e-5)
                    np.testing.assert_allclose(position, np.array(place.ImagePositionPatient, float), atol=1e-4)
            assert not frames

    def test_dciodvfy_finds_no_error(self, runs):
        if shutil.which("dciodvfy") is None:
            pytest.skip("NOT TESTED: no dciodvfy; Debian's dicom3tools has it")
        for name in ("axial", "nothing-found", *ENHANCED):
            for kind in KINDS:
                done = subprocess.run(["dciodvfy", runs[name].dicom(kind)], capture_output=True, text=True, check=False)
                errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
                assert not errors, (name, kind, errors)

    @pytest.mark.parametrize("name", GOOD)
    def test_references_to_series_and_study(self, runs, series, name):
        source = series[name][0]
        instances = {data.SOPInstanceUID for data in series[name]}
        objects = [pydicom.dcmread(runs[name].dicom(kind)) for kind in KINDS]
        for written in objects:
            assert written.StudyInstanceUID == source.StudyInstanceUID
            assert written.PatientName == PATIENT and written.PatientID == source.PatientID
            assert "not for diagnosis" in written.SeriesDescription
        uids = [uid for written in objects for uid in (written.SOPInstanceUID, written.SeriesInstanceUID)]
        assert len({*uids, source.SeriesInstanceUID}) == 7
        for written in objects[:2]:
            assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
            (referenced,) = written.ReferencedSeriesSequence
            assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
            assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} <= instances
            (shared,) = written.SharedFunctionalGroupsSequence
            orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
            np.testing.assert_allclose(orientation, np.array(source.ImageOrientationPatient, float), atol=1e-6)
            np.testing.assert_allclose(shared.PixelMeasuresSequence[0].PixelSpacing, source.PixelSpacing, atol=1e-6)
        (evidence,) = objects[2].CurrentRequestedProcedureEvidenceSequence
        (referenced,) = evidence.ReferencedSeriesSequence
        assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedSOPSequence} == instances

    def test_results_of_a_series_have_numbers_dates_and_institution(self, runs, series):
        for name in GOOD:
            written = [pydicom.dcmread(runs[name].dicom(kind)) for kind in KINDS]
            assert [data.SeriesNumber for data in written] == [191, 192, 193]
            for data in written:
                assert data.InstitutionName == series[name][0].InstitutionName
                moments = [f"{data[kind + 'Date'].value}{data[kind + 'Time'].value}" for kind in ("Series", "Content")]
                assert re.fullmatch(r"\d{14}\.?\d*", moments[0]) and moments[0] == moments[1]

    def test_descriptions_name_the_bundle(self, runs):
        metadata = json.loads((ROOT / "configs" / "metadata.json").read_text())
        segmentation = hd.seg.segread(runs["axial"].dicom("segmentation"))
        segment = segmentation.get_segment_description(1)
        assert segment.segmented_property_category == codes.SCT.MorphologicallyAbnormalStructure
        assert segment.segmented_property_type == codes.SCT.Lesion
        (algorithm,) = segment.algorithm_identification
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (metadata["name"], metadata["version"])
        assert segmentation.ContributingEquipmentSequence[0].SoftwareVersions == metadata["version"]

        written = hd.imread(runs["axial"].dicom("parametric_map"))
        (meaning,) = written.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
        assert (meaning.RealWorldValueSlope, meaning.RealWorldValueIntercept) == (1, 0)
        assert "1: decision threshold" in meaning.LUTExplanation
        assert meaning.MeasurementUnitsCodeSequence[0].CodeValue == "1"
        assert written.ContentQualification == "RESEARCH"

    @pytest.mark.parametrize("name", GOOD)
    def test_measurements_are_those_of_the_bundle(self, runs, expected, name):
        summary = json.loads((expected / "summary.json").read_text())
        (entry,) = (entry for entry in summary["cases"] if entry["case"] == name)
        measurements = json.loads((runs[name].results() / "measurements" / "measurements.json").read_text())
        for key in (
            "image_score",
            "anomalous_volume_ml",
            "fraction_beyond_limit",
            "outside_fitted_range",
            "n_regions",
            "p_value",
            "slices",
        ):
            assert measurements[key] == pytest.approx(entry[key], rel=1e-4), key
        assert "not for diagnosis" in measurements["note"] and measurements["settings"]["n_components"] == 8

        report = hd.sr.srread(runs[name].dicom("measurements"))
        (group,) = report.content.get_image_measurement_groups()
        numbers = {item.name.meaning: item.value for item in group.get_measurements()}
        assert numbers == {
            "Anomaly score in units of the decision threshold": pytest.approx(measurements["image_score"]),
            "Volume": pytest.approx(measurements["anomalous_volume_ml"]),
            "Share of the foreground beyond the decision threshold": pytest.approx(
                100 * measurements["fraction_beyond_limit"]
            ),
            "Number of connected anomalous regions": measurements["n_regions"],
            "Conformal p-value of the case among normal cases": pytest.approx(measurements["p_value"]),
        }
        outside = next(i for i in group.get_qualitative_evaluations() if "outside" in i.name.meaning)
        assert outside.value.meaning == ("Yes" if measurements["outside_fitted_range"] else "No")

    def test_preview(self, runs):
        assert min(Image.open(runs["axial"].results() / "preview.png").size) > 100

    def test_empty_mask(self, runs):
        run = runs["nothing-found"]
        assert run.status == 0, run.log
        segmentation = hd.seg.segread(run.dicom("segmentation"))
        assert segmentation.number_of_segments == 1 and not segmentation.pixel_array.any()
        measurements = json.loads((run.results() / "measurements" / "measurements.json").read_text())
        assert (measurements["anomalous_volume_ml"], measurements["n_regions"], measurements["slices"]) == (0, 0, [])


def scored(run):
    """Return the UIDs of the series with results."""
    reports = run.output.glob("*/measurements/measurements.json")
    return {json.loads(path.read_text())["series_instance_uid"] for path in reports}


class TestApp:
    def test_series_of_the_pattern_is_taken(self, runs, series):
        uid = series["axial"][0].SeriesInstanceUID
        assert (
            f"series 1 ({uid}) with 6 files is taken, out of 1 that could be and 6 in the input" in runs["several"].log
        )

    def test_series_like_those_of_the_fit_is_taken(self, runs):
        _, t1, _ = UIDS["contrasts"]
        assert runs["contrasts"].status == 0, runs["contrasts"].log
        assert scored(runs["contrasts"]) == {t1}

    def test_all_series_like_those_of_the_fit(self, runs):
        first, _, third = UIDS["contrasts-all"]
        assert runs["contrasts-all"].status == 0, runs["contrasts-all"].log
        assert scored(runs["contrasts-all"]) == {first, third}
        numbers = [pydicom.dcmread(path).SeriesNumber for path in runs["contrasts-all"].output.rglob("*.dcm")]
        assert sorted(numbers) == [191, 192, 193, 391, 392, 393]

    def test_a_bad_series_of_all_does_not_stop_the_others(self, runs):
        broken, good = UIDS["broken-all"]
        assert runs["broken-all"].status == 1 and scored(runs["broken-all"]) == {good}
        assert f"series 1 ({broken}): the slices of the series lie 4 to 8 mm apart" in runs["broken-all"].log

    def test_copies_and_damaged_files_of_no_scored_series_are_logged(self, runs):
        log = runs["copy-and-damage"].log
        assert "the files 'series/002.dcm' and 'series/copy.dcm' hold the same image: the second is dropped" in log
        assert "the file 'other/cut_off.dcm' of the study is damaged or no DICOM: skipped" in log

    def test_output_that_cannot_be_made(self, runs):
        run = runs["no-output"]
        assert run.status == 1 and "no-output cannot be written (File exists); give another place" in run.log
        assert "Traceback" not in run.log and run.output.is_file()

    def test_no_identity_leaks_and_no_stray_files(self, runs):
        def without_uids(text):  # the digits of which may be those of the patient by chance
            return re.sub(r"[\d.]{20,}", "UID", text)

        logs = without_uids("".join(run.log for run in runs.values()))
        assert "Doe" not in logs and "4711" not in logs
        for name in GOOD:
            files = {
                path.relative_to(runs[name].results()).as_posix()
                for path in runs[name].output.rglob("*")
                if path.is_file()
            }
            shapes = sorted(re.sub(r"[\d.]+\.dcm", "UID.dcm", file) for file in files)
            assert shapes == [
                "measurements/UID.dcm",
                "measurements/measurements.json",
                "parametric_map/UID.dcm",
                "preview.png",
                "segmentation/UID.dcm",
            ]
            readable = without_uids((runs[name].results() / "measurements" / "measurements.json").read_text())
            assert "Doe" not in readable and "4711" not in readable
        assert {path.name for path in (runs["axial"].output.parent).iterdir()} <= set(runs)

    def test_bad_study_ends_with_one_sentence(self, runs):
        assert len(BAD) > 10
        for name, sentence in BAD.items():
            run = runs[name]
            errors = [line for line in run.log.splitlines() if "[ERROR] (anomaly_app)" in line]
            assert run.status == 1 and len(errors) == 1 and sentence in errors[0], (name, run.log)
            assert not run.output.exists() or not list(run.output.iterdir()), name

    def test_without_bundle(self, series, tmp_path):
        study = Path(series["axial"][0].filename).parent
        (tmp_path / "models").mkdir()
        done = run_app(ROOT / "deploy" / "app", "-i", study, "-o", tmp_path / "out", "-m", tmp_path / "models")
        assert done.returncode == 1
        assert "holds 0 bundles; expected one" in done.stderr and "Traceback" not in done.stderr
