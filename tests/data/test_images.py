"""Image files: their geometry, and the errors for files that cannot be read."""

import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged
from PIL import Image

from demo.dicom_series import write_series
from scripts.data.cases import CaseDataset, find_cases
from scripts.data.dicom import HeaderError, read_header, validate_series
from scripts.data.images import ImageFileReader, LoadImageFiled
from scripts.errors import InputError
from tests.tiny_bundle import ROOT, TINY, inference_config, run_bundle
from tests.tiny_cases import AFFINE, brain, save, save_dicom_series

BRAIN = brain(0)
PICTURE = np.arange(30 * 40, dtype=np.uint8).reshape(30, 40)


def turned(degrees, axes=(0, 1)):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[np.ix_(axes, axes)] = [[c, -s], [s, c]]
    return turn @ AFFINE


def sheared():
    affine = AFFINE.copy()
    affine[0, 1] += 0.5
    return affine


def read(path):
    return ImageFileReader().read(path)


def sentence_of(path):
    """Return the error that the preprocessing of the configs reports for a file."""
    (case,) = find_cases(path)
    error = CaseDataset([case], inference_config().get_parsed_content("preprocessing"))[0]["error"]
    assert "\n" not in error and str(path.parent) not in error
    return error


def write_nifti(path, values=BRAIN, sform=None, qform=None, edit=lambda header: None):
    """Write a NIfTI-1 file with an sform and a qform, then edit raw fields of its header."""
    image = nib.Nifti1Image(values, None)
    image.header.set_zooms([1.5, 1, 2, 1][: values.ndim])
    image.set_sform(None, 0)
    image.set_qform(qform, 1 if qform is not None else 0)
    header = nib.Nifti1Header(image.to_bytes()[:348])
    if sform is not None:
        header["sform_code"] = 2
        for name, row in zip(("srow_x", "srow_y", "srow_z"), sform[:3], strict=True):
            header[name] = row
    edit(header)
    path.write_bytes(header.binaryblock + image.to_bytes()[348:])


def zero_pixdim(header):
    header["pixdim"][1:4] = 0


GEOMETRIES = {
    "oblique": {"sform": turned(20)},
    "permuted": {"sform": AFFINE[:, [1, 2, 0, 3]], "values": BRAIN.transpose(1, 2, 0)},
    "flipped": {"sform": AFFINE @ np.diag([-1, 1, -1, 1])},
    "sheared": {"sform": sheared()},
    "qform only": {"qform": turned(-30, (1, 2))},
    "neither": {},
    "registered": {"sform": turned(20) * 1.7, "qform": np.diag([1.0, 2, 3, 1])},
    "sform and zero pixdim": {"sform": turned(20), "edit": zero_pixdim},
}


def bad_affine(**cells):
    affine = turned(20)
    for place, value in cells.items():
        affine[int(place[1]), int(place[2])] = value
    return affine


def nan_pixdim(header):
    header["pixdim"][2] = np.nan


def bad_quaternion(header):
    header["quatern_b"], header["quatern_c"] = 0.9, 0.9


SINGULAR = "affine in the header is singular or not finite"


class TestNifti:
    @pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
    def test_affine_equals_nibabel(self, tmp_path, geometry):
        write_nifti(tmp_path / "a.nii", **geometry)
        values, meta = read(tmp_path / "a.nii")
        expected = nib.load(tmp_path / "a.nii")
        assert np.array_equal(meta["affine"], expected.affine) and np.array_equal(
            meta["original_affine"], expected.affine
        )
        assert np.array_equal(values, np.asarray(expected.dataobj))

    def test_results_keep_the_affine(self, tmp_path, shipped):
        images = tmp_path / "images"
        images.mkdir()
        for name, geometry in GEOMETRIES.items():
            write_nifti(images / f"{name}.nii", **geometry)
        write_nifti(images / "flat.nii", BRAIN[:, :, 2], turned(20))
        write_nifti(images / "one volume.nii", BRAIN[..., None], turned(20))
        run_bundle(
            "inference",
            dataset_dir=str(images),
            output_dir=str(tmp_path / "results"),
            ckpt_path=str(shipped / "models" / "model.pt"),
            threshold=0.01,  # so that no mask is empty
            report=False,
        )
        cases = {
            case["case"]: case for case in json.loads((tmp_path / "results" / "summary.json").read_text())["cases"]
        }
        assert len(cases) == len(GEOMETRIES) + 2
        for name, case in cases.items():
            source = nib.load(images / f"{name}.nii")
            for kind in ("mask", "map"):
                result = nib.load(tmp_path / "results" / name / f"{name}_{kind}.nii.gz")
                np.testing.assert_allclose(result.affine, source.affine, rtol=1e-6, atol=1e-6)
                assert result.shape == source.shape[:3]
            if name != "flat":
                mask = np.asarray(nib.load(tmp_path / "results" / name / f"{name}_mask.nii.gz").dataobj)
                volume = mask.sum() * abs(np.linalg.det(source.affine[:3, :3])) / 1000
                assert mask.any() and case["anomalous_volume_ml"] == pytest.approx(volume, rel=1e-6)

    @pytest.mark.parametrize(
        ("geometry", "expected"),
        [
            ({"sform": np.diag([0.0, 0, 0, 1])}, SINGULAR),
            ({"sform": np.diag([1.0, 1, 0, 1])}, SINGULAR),
            ({"sform": bad_affine(_01=np.nan)}, SINGULAR),
            ({"sform": bad_affine(_03=np.inf)}, SINGULAR),
            ({"sform": AFFINE[:, [0, 0, 2, 3]]}, SINGULAR),
            ({"edit": nan_pixdim}, SINGULAR),
            ({"edit": zero_pixdim}, "size of a voxel in the NIfTI header is 0"),
            ({"qform": turned(20), "edit": zero_pixdim}, "size of a voxel in the NIfTI header is 0"),
            ({"qform": turned(20), "edit": bad_quaternion}, "the file is damaged"),
            ({"values": BRAIN[:, :, 2], "sform": np.eye(4)[[2, 0, 1, 3]]}, SINGULAR),
        ],
    )
    def test_undefined_geometry_is_refused(self, tmp_path, geometry, expected):
        write_nifti(tmp_path / "a.nii", **geometry)
        assert expected in sentence_of(tmp_path / "a.nii")

    def test_values_that_are_no_image_are_refused(self, tmp_path):
        colours = np.zeros((20, 20, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        for values, expected in (
            (BRAIN.astype(np.complex64), "holds complex numbers"),
            (colours, "holds colours"),
            (np.stack([BRAIN] * 6, -1), "has 6 volumes"),
            (BRAIN[:, 0, 0], "has 1 dimension"),
            (np.full(BRAIN.shape, np.nan, np.float32), "voxels are NaN"),
            (np.full(BRAIN.shape, np.inf, np.float32), "voxels are NaN or infinite"),
            (np.zeros(BRAIN.shape, np.float32), "every voxel is 0"),
        ):
            nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "a.nii")
            assert expected in sentence_of(tmp_path / "a.nii")

    @pytest.mark.parametrize(("slope", "factor"), [(np.nan, 1), (0, 1), (2, 2)])
    def test_slope(self, tmp_path, slope, factor):
        write_nifti(tmp_path / "plain.nii", sform=AFFINE)
        raw = bytearray((tmp_path / "plain.nii").read_bytes())
        raw[112:120] = struct.pack("<2f", slope, 0)
        (tmp_path / "a.nii").write_bytes(raw)
        assert np.array_equal(read(tmp_path / "a.nii")[0], BRAIN * factor)
        raw[112:120] = struct.pack("<2f", 1, np.nan)
        (tmp_path / "a.nii").write_bytes(raw)
        assert "header is not valid" in sentence_of(tmp_path / "a.nii")

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
    def test_truncated_file_is_refused(self, tmp_path, suffix, share):
        save(tmp_path / f"whole{suffix}", BRAIN)
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"a{suffix}").write_bytes(whole[: int(share * len(whole))])
        assert "damaged" in sentence_of(tmp_path / f"a{suffix}")

    def test_checksum_is_verified(self, tmp_path):
        save(tmp_path / "a.nii", BRAIN)
        stored = bytearray(gzip.compress((tmp_path / "a.nii").read_bytes(), compresslevel=0))
        (tmp_path / "a.nii.gz").write_bytes(stored)
        assert np.array_equal(read(tmp_path / "a.nii.gz")[0], BRAIN)
        stored[len(stored) // 2] ^= 1  # one voxel, which still decompresses
        (tmp_path / "a.nii.gz").write_bytes(stored)
        assert "damaged" in sentence_of(tmp_path / "a.nii.gz")


def save_picture(path, kind):
    colours = np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE], -1)
    if kind == "16 bit":
        Image.fromarray(PICTURE.astype(np.uint16) * 200).save(path)
    elif kind in ("L", "LA", "1"):
        Image.fromarray(PICTURE).convert(kind).save(path)
    else:
        Image.fromarray(colours).convert(kind).save(path)


class TestPictures:
    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    @pytest.mark.parametrize("missing", [0.002, 0.05, 0.5, 0.95])
    def test_truncated_file_is_refused(self, tmp_path, suffix, missing):
        noise = np.random.default_rng(0).integers(0, 255, (200, 300), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"a{suffix}").write_bytes(whole[: -int(missing * len(whole))])
        assert "damaged" in sentence_of(tmp_path / f"a{suffix}") or "neither PNG nor JPEG" in sentence_of(
            tmp_path / f"a{suffix}"
        )

    def test_unsupported_files_are_refused(self, tmp_path):
        frames = [Image.fromarray(PICTURE + n) for n in range(3)]
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        assert "animation of 3 frames" in sentence_of(tmp_path / "a.png")
        frames[0].save(tmp_path / "gif.gif")
        (tmp_path / "b.png").write_bytes((tmp_path / "gif.gif").read_bytes())
        assert "neither PNG nor JPEG" in sentence_of(tmp_path / "b.png")
        frames[0].save(tmp_path / "c.png")
        huge = bytearray((tmp_path / "c.png").read_bytes())
        huge[16:24] = struct.pack(">2I", 100_000, 100_000)
        huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
        (tmp_path / "c.png").write_bytes(huge)
        assert "too many pixels" in sentence_of(tmp_path / "c.png")
        (tmp_path / "d.png").write_bytes(b"")
        assert "neither PNG nor JPEG" in sentence_of(tmp_path / "d.png")

    @pytest.mark.parametrize(
        ("kind", "suffix"),
        [(kind, ".png") for kind in ("L", "LA", "1", "P", "RGB", "RGBA", "16 bit")] + [("L", ".jpg"), ("RGB", ".jpg")],
    )
    def test_equal_to_version_0_4(self, tmp_path, kind, suffix):
        path = str(tmp_path / f"a{suffix}")
        save_picture(path, kind)
        ours = LoadImageFiled("image")({"image": path})["image"]
        before = LoadImaged("image", reader=["ITKReader", "NibabelReader"])({"image": path})["image"]
        assert np.array_equal(ours, before) and np.array_equal(ours.affine, before.affine)
        assert ours.max() > 255 if kind == "16 bit" else ours.max() <= 255

    def test_exif_orientation_is_ignored(self, tmp_path):
        exif = Image.Exif()
        exif[274] = 6  # rotated by 90 degrees
        Image.fromarray(PICTURE).save(tmp_path / "a.jpg", exif=exif)
        assert read(tmp_path / "a.jpg")[0].shape == (40, 30)


def write_by_itk(path, **arguments):
    image = itk.image_from_array(np.ascontiguousarray(BRAIN.T))
    image.SetSpacing([0.9, 1.1, 4.0])
    image.SetOrigin([1.0, 2.0, 3.0])
    image.SetDirection(itk.matrix_from_array(turned(20)[:3, :3] / np.linalg.norm(turned(20)[:3, :3], axis=0)))
    itk.imwrite(image, str(path), **arguments)


MHA = b"NDims = 3\nDimSize = 20 20 4\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"
NRRD = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 20 20 4\nencoding: raw\nspacings: 1 1 1\n"
OTHER = "names other files as its data"
NOT_PLAIN = "lines that are not plain or come twice"


class TestOtherVolumes:
    """MetaImage, NRRD and DICOM written by ITK."""

    @pytest.mark.parametrize("compression", [False, True])
    @pytest.mark.parametrize("suffix", [".mha", ".nrrd", " dicom"])
    def test_equal_to_version_0_4(self, tmp_path, suffix, compression):
        path = tmp_path / f"a{suffix}"
        if suffix == " dicom":
            save_dicom_series(path, BRAIN)
        else:
            write_by_itk(path, compression=compression)
        ours = LoadImageFiled("image")({"image": str(path)})["image"]
        before = LoadImaged("image", reader=["ITKReader", "NibabelReader"])({"image": str(path)})["image"]
        assert np.array_equal(ours, BRAIN) and np.array_equal(ours, before)
        assert np.array_equal(ours.affine, before.affine) and np.array_equal(
            ours.meta["original_affine"], before.meta["original_affine"]
        )

    @pytest.mark.parametrize(
        ("name", "header", "expected"),
        [
            ("a.mha", MHA + b"ElementDataFile = secret.raw\n", OTHER),
            ("a.mha", MHA + b"ElementDataFile = LIST\nsecret.raw\n", OTHER),
            ("a.mha", MHA + b"elementdatafile = LOCAL\nElementDataFile = secret.raw\n", NOT_PLAIN),
            ("a.mha", MHA + b"ElementDataFile  = secret.raw\n", NOT_PLAIN),
            ("a.mha", b"\xef\xbb\xbf" + MHA + b"ElementDataFile = secret.raw\n", "header is not plain text"),
            ("a.mha", MHA + b"Offset = 1 2\nElementDataFile = LOCAL\nElementDataFile = secret.raw\n", OTHER),
            ("a.mha", MHA, NOT_PLAIN),
            ("a.mha", NRRD + b"data file: secret.raw\n\n", NOT_PLAIN),
            ("a.mha", MHA.replace(b"ElementSpacing = 1 1 1\n", b"") + b"ElementDataFile = LOCAL\n", "size of a voxel"),
            ("a.mha", MHA.replace(b"1 1 1", b"1 0 1") + b"ElementDataFile = LOCAL\n", "size of a voxel"),
            ("a.nrrd", NRRD + b"data file: secret.raw\n\n", OTHER),
            ("a.nrrd", NRRD + b"datafile: secret.raw\n\n", OTHER),
            ("a.nrrd", NRRD + b"Data File: LIST\nsecret.raw\n\n", NOT_PLAIN),
            ("a.nrrd", NRRD + b" data file: secret.raw\n\n", NOT_PLAIN),
            ("a.nrrd", NRRD + b"DATA  FILE: secret.raw\r\n\r\n", OTHER),
            ("a.nrrd", NRRD[:-1], "header has no end"),
            (
                "a.nrrd",
                NRRD + b"kinds: " + b"9" * 2000 + b"\n\n",
                "a line of 2007 characters",
            ),  # ends the process in ITK
            ("a.nrrd", MHA + b"ElementDataFile = secret.raw\n\n", "is not NRRD"),
            ("a.nrrd", NRRD.replace(b"spacings: 1 1 1\n", b"") + b"\n", "size of a voxel"),
            ("a.nrrd", NRRD.replace(b"1 1 1", b"1 nan 1") + b"\n", "no size of its voxels"),
            (
                "a.nrrd",
                NRRD.replace(b"spacings: 1 1 1", b"space directions: (1,0,0) (0,0,0) (0,0,1)") + b"\n",
                "size of a",
            ),
        ],
    )
    def test_detached_data_is_refused(self, tmp_path, name, header, expected):
        values = np.arange(1600, dtype=np.uint8).tobytes()
        (tmp_path / "secret.raw").write_bytes(values)
        (tmp_path / name).write_bytes(header + values * ("size" in expected))
        assert expected in sentence_of(tmp_path / name)

    def test_dicom_with_nrrd_preamble(self, tmp_path):
        (tmp_path / "secret.raw").write_bytes(bytes(1600))
        (slice_,) = write_series(tmp_path / "series", BRAIN[..., :1], AFFINE)
        slice_.preamble = (NRRD + f"data file: {tmp_path}/secret.raw\n\n".encode())[:128].ljust(128)
        slice_.save_as(tmp_path / "series" / "000.dcm")
        assert np.array_equal(read(tmp_path / "series")[0].squeeze(), BRAIN[..., 0])


def write_edited(folder, edit, n_slices=3):
    """Write a series, and edit the header of its first slice."""
    first, *_ = write_series(folder, BRAIN[..., :n_slices], np.diag([-0.9, -1.1, 4.0, 1]))
    edit(first)
    first.save_as(folder / "000.dcm", enforce_file_format=False)


def setting(keyword, value):
    def edit(header):
        element = header[keyword]
        element._value = value

    return edit


def without(keyword):
    return lambda header: delattr(header, keyword)


def to_all(folder, edit):
    for path in sorted(folder.iterdir()):
        header = pydicom.dcmread(path)
        edit(header)
        header.save_as(path)


class TestDicomHeaders:
    @pytest.mark.parametrize(
        ("edit", "expected"),
        [
            (setting("ImagePositionPatient", ["1", "2"]), "ImagePositionPatient in a DICOM header is not 3 numbers"),
            (setting("ImageOrientationPatient", ["1", "0", "0"]), "ImageOrientationPatient in a DICOM header is not 6"),
            (
                setting("ImagePositionPatient", ["1", "2", "nan"]),
                "ImagePositionPatient in a DICOM header is not 3 numbers",
            ),
            (setting("PixelSpacing", ["0", "0"]), "PixelSpacing in a DICOM header is not positive"),
            (setting("PixelSpacing", ["1", "1", "1"]), "PixelSpacing in a DICOM header is not 2 numbers"),
            (setting("PixelSpacing", ["2", "1"]), "differ in PixelSpacing"),
            (without("PixelSpacing"), "lacks PixelSpacing"),
            (without("ImagePositionPatient"), "lack ImagePositionPatient"),
            (without("SeriesInstanceUID"), "header of the DICOM file '000.dcm' is damaged"),
            (setting("PhotometricInterpretation", "PALETTE COLOR"), "palette colours"),
            (setting("PixelData", bytes(20)), "less pixel data than its header says"),
            (setting("SamplesPerPixel", 3), "less pixel data than its header says"),
            (setting("Rows", 60000), "less pixel data than its header says"),
        ],
    )
    def test_bad_slice_fails_its_series_only(self, tmp_path, edit, expected):
        write_edited(tmp_path / "bad", edit)
        save_dicom_series(tmp_path / "good", BRAIN)
        cases = {case["case"]: case for case in find_cases(tmp_path)}
        assert expected in cases["bad"]["error"]
        assert "image" in cases["good"]

    @pytest.mark.parametrize("values", [["0"] * 6, ["1", "0", "0", ".1", "1", "0"], ["1", "0", "0", "1", "0", "0"]])
    def test_invalid_orientation_is_refused(self, tmp_path, values):
        save_dicom_series(tmp_path / "series", BRAIN)
        to_all(tmp_path / "series", lambda header: setattr(header, "ImageOrientationPatient", values))
        assert "two directions at right angles" in find_cases(tmp_path)[0]["error"]

    def test_text_for_numbers_is_refused(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN)
        path = tmp_path / "series" / "000.dcm"
        raw = path.read_bytes()
        place = raw.index(struct.pack("<HH", 0x20, 0x32)) + 8
        path.write_bytes(raw[:place] + b"abc" + raw[place + 3 :])
        assert "ImagePositionPatient in a DICOM header" in find_cases(tmp_path)[0]["error"]

    def test_truncated_slice_is_refused(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN)
        last = sorted((tmp_path / "series").iterdir())[-1]
        whole = last.read_bytes()
        for length in (len(whole) - 10, 400, 200):
            last.write_bytes(whole[:length])
            (case,) = find_cases(tmp_path)
            assert "error" in case and str(tmp_path) not in case["error"]

    def test_damaged_header_raises_one_sentence(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN[..., :1])
        whole = (tmp_path / "series" / "000.dcm").read_bytes()
        paths = [path for path in (Path(pydicom.__file__).parent / "data" / "test_files").rglob("*") if path.is_file()]
        assert len(paths) > 50
        generator = np.random.default_rng(0)
        for turn in range(300):
            damaged = np.frombuffer(whole, np.uint8).copy()
            places = generator.integers(132, len(whole) - BRAIN[..., 0].nbytes, size=1 + turn % 8)
            damaged[places] = generator.integers(0, 256, size=len(places))
            paths.append(tmp_path / f"{turn}.dcm")
            paths[-1].write_bytes(damaged.tobytes())
        for path in paths:
            try:
                header = read_header(path)
            except HeaderError as error:
                assert "\n" not in str(error) and str(path.parent) not in str(error)
            else:
                assert header is None or "\n" not in validate_series([header])

    def test_missing_preamble_is_refused(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN)
        for path in sorted((tmp_path / "series").iterdir())[1::2]:
            path.write_bytes(path.read_bytes()[132:])
        assert "expected one of each" in sentence_of(tmp_path)

    def test_big_endian(self):
        files = Path(pydicom.__file__).parent / "data" / "test_files"
        with pytest.raises(HeaderError, match="big-endian numbers of 32 bits"):
            read_header(files / "rtdose_expb.dcm")
        voxels, _ = read(files / "MR_small_bigendian.dcm")
        np.testing.assert_array_equal(voxels.squeeze().T, pydicom.dcmread(files / "MR_small_bigendian.dcm").pixel_array)


def write_frames(path, order, slopes=None):
    """Write an enhanced multi-frame file whose slices, 4 mm apart, are stored in a given order."""
    first, *_ = write_series(path.parent, BRAIN[..., :1], np.diag([-0.9, -1.1, 4.0, 1]))
    (path.parent / "000.dcm").unlink()
    frames = []
    for index, slope in zip(order, slopes or [2.0] * len(order), strict=True):
        frame = {
            "PlanePositionSequence": {"ImagePositionPatient": [1, 2, 4.0 * index]},
            "PixelValueTransformationSequence": {"RescaleSlope": slope, "RescaleIntercept": 0, "RescaleType": "US"},
        }
        frames.append(as_dicom(frame))
    shared = {
        "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        "PixelMeasuresSequence": {"PixelSpacing": [1.1, 0.9], "SliceThickness": 4},
    }
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    first.SharedFunctionalGroupsSequence = [as_dicom(shared)]
    first.PerFrameFunctionalGroupsSequence = frames
    first.NumberOfFrames = len(frames)
    first.PixelData = b"".join(BRAIN[..., index % BRAIN.shape[-1]].T.astype("<u2").tobytes() for index in order)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(first, keyword)
    first.save_as(path)


def as_dicom(groups):
    """Return a data set of sequences with one item each."""
    whole = pydicom.Dataset()
    for group, values in groups.items():
        item = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        setattr(whole, group, [item])
    return whole


class TestDicomSeries:
    def test_slope_per_slice(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN)
        for index, path in enumerate(sorted((tmp_path / "series").iterdir())):
            header = pydicom.dcmread(path)
            header.RescaleSlope, header.RescaleIntercept = [str(1 / (1 + index)), "0"]
            header.save_as(path)
        expected = BRAIN / np.arange(1, BRAIN.shape[2] + 1)
        np.testing.assert_allclose(read(tmp_path / "series")[0], expected, rtol=1e-6)

    def test_tilted_gantry(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN)
        cosine, sine = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
        for index, path in enumerate(sorted((tmp_path / "series").iterdir())):
            header = pydicom.dcmread(path)
            header.ImageOrientationPatient = [1, 0, 0, 0, float(cosine), float(sine)]
            header.ImagePositionPatient = [3, 5, 7 + 4 * index]
            header.save_as(path)
        affine = read(tmp_path / "series")[1]["affine"]
        expected = [[-0.9, 0, 0, -3], [0, -1.1 * cosine, 0, -5], [0, 1.1 * sine, 4, 7], [0, 0, 0, 1]]
        np.testing.assert_allclose(affine, expected, atol=1e-5)

    def test_positions_win_over_gaps(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN)
        before = read(tmp_path / "series")
        to_all(tmp_path / "series", lambda header: setattr(header, "SpacingBetweenSlices", "-4"))
        after = read(tmp_path / "series")
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_allclose(before[1]["affine"], after[1]["affine"], atol=1e-6)

    @pytest.mark.parametrize("keyword", ["SeriesDate", "SeriesNumber", "SequenceName", "SliceThickness"])
    def test_irrelevant_keywords_may_differ(self, tmp_path, keyword):
        save_dicom_series(tmp_path / "series", BRAIN)
        before = read(tmp_path / "series")[0]
        for index, path in enumerate(sorted((tmp_path / "series").iterdir())):
            header = pydicom.dcmread(path)
            values = {"SeriesDate": f"2026010{index + 1}", "SequenceName": f"ep{index}"}
            setattr(header, keyword, values.get(keyword, str(4 + index)))
            header.save_as(path)
        np.testing.assert_array_equal(read(tmp_path / "series")[0], before)
        (item,) = CaseDataset(find_cases(tmp_path), LoadImageFiled("image"))
        assert "error" not in item

    def test_enhanced_multi_frame(self, tmp_path):
        write_frames(tmp_path / "enhanced" / "x.dcm", [0, 1, 2])
        (case,) = find_cases(tmp_path)
        voxels, meta = read(case["image"])
        np.testing.assert_allclose(voxels.squeeze(), 2.0 * BRAIN[..., :3])
        np.testing.assert_allclose(np.diag(meta["affine"]), [-0.9, -1.1, 4, 1], atol=1e-6)

    @pytest.mark.parametrize(
        ("order", "slopes", "expected"),
        [
            ([0, 1, 2, 0, 1, 2], None, "several slices of the series lie at one position"),
            ([0, 1, 3], None, "4 to 8 mm apart"),
            ([1, 0, 2], None, "not stored in order"),
            ([0, 1, 2], [1.0, 2.0, 1.0], "differ in RescaleSlope"),
        ],
    )
    def test_frames_that_make_no_volume_are_refused(self, tmp_path, order, slopes, expected):
        write_frames(tmp_path / "enhanced" / "x.dcm", order, slopes)
        assert expected in find_cases(tmp_path)[0]["error"]

    def test_single_file(self, tmp_path):
        save_dicom_series(tmp_path / "series", BRAIN)
        assert read(tmp_path / "series" / "001.dcm")[0].squeeze().shape == BRAIN.shape[:2]
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(InputError, match="of a kind that is not supported"):
            read(tmp_path / "notes.txt")


class TestRuns:
    @pytest.mark.slow
    def test_relative_paths_of_all_formats(self, tmp_path, shipped):
        for seed in range(4):
            save(tmp_path / "in" / f"nifti-{seed}.nii.gz", brain(seed))
        Image.fromarray(brain(9)[..., 2].astype(np.uint16)).save(tmp_path / "in" / "picture.png")
        (tmp_path / "in" / "cut-off.png").write_bytes((tmp_path / "in" / "picture.png").read_bytes()[:200])
        save_dicom_series(tmp_path / "in" / "dicom", brain(10))
        code = (
            "import json, os, sys; from tests.tiny_bundle import run_bundle; before = os.getcwd()\n"
            "try: run_bundle('inference', **json.loads(sys.argv[1]))\n"
            "finally: assert os.getcwd() == before; print('same')"
        )
        arguments = {
            **TINY,
            "dataset_dir": "in",
            "output_dir": "out",
            "ckpt_path": str(shipped / "models" / "model.pt"),
        }
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "same" in done.stdout, done.stderr
        assert "1 of 7 cases failed" in done.stderr and "cut-off: the picture is damaged" in done.stderr
        names = {"nifti-0", "nifti-1", "nifti-2", "nifti-3", "picture", "dicom"}
        assert {path.parent.name for path in (tmp_path / "out").rglob("*_mask.nii.gz")} == names
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert {case["case"] for case in summary["cases"]} == names

    @pytest.mark.slow
    def test_reader_threads_load_no_modules(self, tmp_path):
        save_picture(tmp_path / "picture.png", "RGB")
        write_by_itk(tmp_path / "volume.nrrd")
        save_dicom_series(tmp_path / "series", BRAIN)
        code = (
            "import os, sys\n"
            "from scripts.data.cases import CaseDataset, find_cases\n"
            "from scripts.data.images import LoadImageFiled\n"
            "dataset = CaseDataset(find_cases(sys.argv[1]), LoadImageFiled('image'))\n"
            "def chdir(folder): raise AssertionError(folder)\n"
            "os.chdir = chdir\n"
            "assert len(dataset) == 3 and all('error' not in case for case in dataset)"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=300)

    def test_configs_use_this_reader(self):
        for name in ("inference", "train"):
            config = ConfigParser()
            config.read_config(str(ROOT / "configs" / f"{name}.json"))
            config["field_of_view"] = None  # there are no images to choose it from
            preprocessing = config.get_parsed_content("preprocessing")
            assert isinstance(preprocessing, Compose)
            assert type(preprocessing.transforms[0]).__name__ == "LoadImageFiled"
