"""MONAI Label on series of a DICOMweb server: masks, DICOM SEG with its geometry, and errors for bad series."""

import json
import re

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless, generate_uid

from scripts.export_bundle import export_bundle
from tests.integration.label_server import label_server
from tests.integration.orthanc_server import orthanc_server, store
from tests.tiny_bundle import ROOT, TINY, run_bundle
from tests.tiny_cases import PATIENT, at_slice, brain, save_dicom_series

pytestmark = pytest.mark.label

LESION = (slice(16, 22), slice(20, 26), slice(1, 4))
SEGMENTS = [
    {"name": "anomaly", "description": "beyond the normal limit", "color": [255, 0, 0], "model_name": "anomaly"}
]
ALGORITHM = json.loads((ROOT / "configs" / "metadata.json").read_text())["name"]
THRESHOLD = 0.5  # so low that a tiny random encoder finds something anywhere


def headers_of(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def variant(folder, source, change):
    """Write a series whose slices are changed by a function of index and data set."""
    folder.mkdir()
    uid = generate_uid()
    for index, dataset in enumerate(headers_of(source)):
        dataset.SeriesInstanceUID = uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if change(index, dataset) is not False:
            dataset.save_as(folder / f"{index}.dcm")


def place_of(data):
    return tuple(round(float(each), 2) for each in data.ImagePositionPatient)


def to_colour(_, dataset):
    grey = (dataset.pixel_array // 8).astype(np.uint8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.stack([grey, grey // 2, grey], -1).tobytes()


def turn_the_last(index, dataset):
    if index == 4:
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def damage(_, dataset):
    dataset.compress(RLELossless)
    dataset.PixelData = encapsulate([bytes(1000)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write series into folders by name."""
    folder = tmp_path_factory.mktemp("dicomweb")
    save_dicom_series(folder / "plain", brain(30, lesion=LESION))
    variant(folder / "compressed", folder / "plain", lambda _, dataset: dataset.compress(RLELossless))
    variant(folder / "colour", folder / "plain", to_colour)
    variant(folder / "hole", folder / "plain", lambda index, _: index != 2)
    variant(folder / "localizer", folder / "plain", turn_the_last)
    variant(folder / "damaged", folder / "plain", damage)
    save_dicom_series(folder / "tiny", brain(31)[15:25, 15:25])
    return folder


@pytest.fixture(scope="module")
def server(folder, shipped):
    fit = {"output_dir": str(folder / "fit"), "ckpt_path": str(folder / "fit" / "model.pt")}
    # Without a field of view, as a real head is several times as large as the tiny brains
    run_bundle("training", dataset_dir=str(shipped.parent / "normals"), field_of_view_mm=None, **fit)
    export_bundle(fit["ckpt_path"], folder / "bundle" / "anomaly", **TINY)
    with orthanc_server(folder / "orthanc") as studies:
        store(file for series in folder.iterdir() for file in series.glob("*.dcm"))
        flags = ("--bundles", str(folder / "bundle" / "anomaly"), "--studies", studies, "--modality", "MR")
        with label_server(folder / "served", *flags) as running:
            yield running


@pytest.fixture
def series_of(folder, server, request):
    """Return a function that returns the folder and the UID of a series of the server."""

    def find(name):
        path = folder / name
        if name == "flair":
            path = request.getfixturevalue("shared") / "data" / "brainix" / "dicom"
            store(path.glob("*.dcm"))
        return path, str(headers_of(path)[0].SeriesInstanceUID)

    return find


def bundle_mask(series, bundle, tmp_path):
    """Return the mask of the bundle's inference on a folder."""
    ckpt = str(bundle / "models" / "model.pt")
    run_bundle(
        "inference", dataset_dir=str(series), output_dir=str(tmp_path / "own"), ckpt_path=ckpt, threshold=THRESHOLD
    )
    (path,) = (tmp_path / "own").glob("*/*_mask.nii.gz")
    return nib.load(path)


class TestDicomWeb:
    @pytest.mark.parametrize("name", ["plain", "compressed", "flair"])
    def test_segmentation_is_the_mask_of_the_bundle(self, server, folder, series_of, shipped, tmp_path, name):
        path, uid = series_of(name)
        answer = server.infer("anomaly", uid, "dicom_seg", threshold=THRESHOLD, label_info=SEGMENTS)
        assert answer.status_code == 200, answer.text
        (tmp_path / "seg.dcm").write_bytes(answer.content)
        segmentation = hd.seg.segread(tmp_path / "seg.dcm")
        headers = {str(header.SOPInstanceUID): header for header in headers_of(path)}
        first = next(iter(headers.values()))

        for name in ("FrameOfReferenceUID", "StudyInstanceUID", "PatientID", "Rows", "Columns"):
            assert segmentation.get(name) == first.get(name), name
        (referenced,) = segmentation.ReferencedSeriesSequence
        assert referenced.SeriesInstanceUID == uid
        assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} <= set(headers)
        (segment,) = segmentation.SegmentSequence
        assert segment.SegmentLabel == "Anomaly" and segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Lesion.value
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == ALGORITHM
        assert str(first.PatientName) and segmentation.PatientName == first.PatientName
        (common,) = segmentation.SharedFunctionalGroupsSequence
        orientation = common.PlaneOrientationSequence[0].ImageOrientationPatient
        np.testing.assert_allclose(orientation, first.ImageOrientationPatient, atol=1e-4)
        np.testing.assert_allclose(common.PixelMeasuresSequence[0].PixelSpacing, first.PixelSpacing, atol=1e-4)
        for frame in segmentation.PerFrameFunctionalGroupsSequence:
            source = headers[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(position, source.ImagePositionPatient, atol=1e-3)

        mask = bundle_mask(path, folder / "bundle" / "anomaly", tmp_path)
        pixels = segmentation.get_pixels_by_source_instance(
            list(headers), segment_numbers=[1], assert_missing_frames_are_empty=True, ignore_spatial_locations=True
        )
        expected = np.stack([at_slice(mask, header) for header in headers.values()])
        assert expected.any() and np.array_equal(pixels[..., 0], expected)

    def test_map_and_report_are_dicom_objects(self, server, series_of, tmp_path):
        path, uid = series_of("plain")
        headers = headers_of(path)
        for output in ("dicom_map", "dicom_sr"):
            answer = server.infer("anomaly", uid, output)
            assert answer.status_code == 200, answer.text
            (tmp_path / f"{output}.dcm").write_bytes(answer.content)
        scores = pydicom.dcmread(tmp_path / "dicom_map.dcm")
        answer = server.infer("anomaly", uid, "map")
        (tmp_path / "map.nii.gz").write_bytes(answer.content)
        image, by_place = nib.load(tmp_path / "map.nii.gz"), {place_of(header): header for header in headers}
        frames = np.frombuffer(scores.FloatPixelData, np.float32).reshape(-1, scores.Rows, scores.Columns)
        assert len(frames) == len(headers)
        for frame, pixels in zip(scores.PerFrameFunctionalGroupsSequence, frames, strict=True):
            source = by_place[place_of(frame.PlanePositionSequence[0])]
            np.testing.assert_allclose(pixels, at_slice(image, source), rtol=1e-6)
        report = pydicom.dcmread(tmp_path / "dicom_sr.dcm")
        assert report.Modality == "SR" and report.StudyInstanceUID == headers[0].StudyInstanceUID

    def test_final_label_is_stored_as_a_segmentation(self, server, series_of, tmp_path):
        path, uid = series_of("compressed")
        answer = server.infer("anomaly", uid, "image", threshold=THRESHOLD)
        assert answer.status_code == 200, answer.text
        url = {"image": uid, "tag": "final"}
        for content, status in ((b"text", 422), (answer.content, 200)):
            files = {"label": ("label.nii.gz", content)}
            saved = server.send("PUT", "datastore/label", params=url, files=files)
            assert saved.status_code == status, saved.text
        stored = server.get("proxy/dicom/qido/series").json()
        (series,) = [each for each in stored if each["00080060"]["Value"] == ["SEG"]]
        assert series["0020000D"]["Value"] == [str(headers_of(path)[0].StudyInstanceUID)]

    def test_label_is_the_mask_of_the_bundle(self, server, folder, series_of, tmp_path):
        path, uid = series_of("plain")
        answer = server.infer("anomaly", uid, "image", threshold=THRESHOLD)
        assert answer.status_code == 200, answer.text
        (tmp_path / "label.nii.gz").write_bytes(answer.content)
        label, mask = nib.load(tmp_path / "label.nii.gz"), bundle_mask(path, folder / "bundle" / "anomaly", tmp_path)
        for header in headers_of(path):
            assert np.array_equal(at_slice(label, header), at_slice(mask, header))

    @pytest.mark.parametrize(
        ("name", "status", "expected"),
        [
            ("colour", 422, "are in colour; expected grey values"),
            ("hole", 422, "lie 4 to 8 mm apart"),
            ("localizer", 422, "differ in orientation"),
            ("tiny", 422, "10 x 10 pixels"),
            ("damaged", 422, "does not deliver the series"),
        ],
    )
    def test_bad_series_is_answered_with_a_reason(self, server, series_of, name, status, expected):
        _, uid = series_of(name)
        for output in ("json", "dicom_seg"):
            answer = server.infer("anomaly", uid, output, label_info=SEGMENTS)
            assert answer.status_code == status and expected in answer.json()["detail"], answer.text
        assert server.infer("anomaly", series_of("plain")[1], "json").status_code == 200

    @pytest.mark.parametrize("uid", ["1.2.3.4", "*"])
    def test_unknown_series_is_answered_404(self, server, uid):
        answer = server.infer("anomaly", uid, "json")
        assert answer.status_code == 404 and "There is no image" in answer.json()["detail"]

    def test_series_are_read_only(self, server, series_of):
        _, uid = series_of("plain")
        image = {"file": ("x.nii.gz", b"")}
        for method, path, arguments, status in (
            ("PUT", "datastore/", {"params": {"image": uid}, "files": image}, 403),
            ("PUT", "datastore/image", {"params": {"image": "new"}, "files": image}, 403),
            ("DELETE", "datastore/", {"params": {"id": uid}}, 403),
            ("POST", "proxy/dicom/stow/studies", {"data": b"x"}, 403),
            ("POST", "proxy/dicom/..%2Fseries%2Fmodify", {"data": b"{}"}, 403),
            ("GET", "proxy/dicom/..%2Fseries", {}, 422),
            ("POST", "infer/anomaly", {"params": {"image": "../../etc"}}, 422),
        ):
            answer = server.send(method, path, **arguments)
            assert answer.status_code == status and answer.json()["detail"], (method, path)
        assert server.infer("anomaly", uid, "json").status_code == 200

    def test_empty_mask_is_no_segmentation(self, server, series_of):
        answer = server.infer("anomaly", series_of("plain")[1], "dicom_seg", threshold=1e6, label_info=SEGMENTS)
        assert answer.status_code == 422 and "the mask is empty" in answer.json()["detail"]

    def test_no_patient_is_named_in_logs(self, server, folder, series_of):
        _, uid = series_of("plain")
        assert server.infer("anomaly", uid, "dicom_seg", threshold=THRESHOLD, label_info=SEGMENTS).status_code == 200
        sample = server.send("POST", "activelearning/random", json={})
        assert sample.status_code == 200 and "PatientID" not in sample.text
        logs = [server.log, *(folder / "served" / "app" / "logs").iterdir()]
        text = "".join(log.read_text() for log in logs)
        identifier = str(headers_of(series_of("plain")[0])[0].PatientID)
        assert uid in text and not any(part in text for part in PATIENT.split("^"))
        assert not re.search(rf"\b{identifier}\b", text)
