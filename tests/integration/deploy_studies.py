"""DICOM studies for the app, good and bad."""

import copy
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import itk
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from demo.dicom_series import write_series
from tests.tiny_cases import PATIENT, brain

HTJ2K = Path(__file__).parents[1] / "fixtures" / "htj2k.npz"  # the slices of `lesioned`, encoded by OpenJPH
T1 = {"EchoTime": 3, "RepetitionTime": 2000, "InversionTime": 900}
T2 = {"EchoTime": 100, "RepetitionTime": 5000}
FLAIR = {"EchoTime": 110, "RepetitionTime": 9000, "InversionTime": 2500}
SCALE = {"RescaleSlope": 1, "RescaleIntercept": 0}
AXIAL = np.diag([-0.9, -1.1, 4.0, 1])
# An identity, and text that would leave the folder as part of a file name.
IDENTITY = {
    "PatientName": PATIENT,
    "PatientID": "../../4711",
    "SeriesDescription": "../../../up",
    "PatientSex": "0000",
    "PatientBirthDate": "1970-4711",
    "InstitutionName": "Sample Hospital",
}


def lesioned():
    """Return a brain with a lesion that is not symmetric in any axis."""
    image = brain(60, (40, 46, 6))
    image[10:18, 26:36, 1:3] = 1500
    image[10:13, 26:36, 3] = 1500
    return image


def oblique(affine=AXIAL):
    """Return an affine rotated about all axes."""
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [17, -9, 28], degrees=True).as_matrix() @ affine[:3, :3]
    turned[:3, 3] = 12, -7.5, 33
    return turned


def good_studies(folder):
    """Write good series, one per study, and return their slices by name."""
    image = lesioned()
    series = {
        "axial": write_series(folder / "axial", image, AXIAL, **IDENTITY),
        "oblique": write_series(folder / "oblique", image, oblique(), **IDENTITY),
        # rows upwards, columns to the front, slices to the left
        "sagittal": write_series(
            folder / "sagittal",
            np.tile(brain(61, (40, 46, 1)), (1, 1, 24)) + lesion_of_a_side(),
            sagittal(),
            **IDENTITY,
        ),
        # stored values are not Hounsfield units
        "ct": write_series(
            folder / "ct",
            image // 2 + 1024,
            AXIAL,
            SOPClassUID=CTImageStorage,
            Modality="CT",
            RescaleSlope=2,
            RescaleIntercept=-2048,
            **IDENTITY,
        ),
        "downwards": write_series(folder / "downwards", image, AXIAL @ np.diag([1, 1, -1, 1]), **IDENTITY),
    }
    for name in ("oblique", "downwards"):  # file names and numbers in random order
        shuffled = np.random.default_rng(0).permutation(len(series[name]))
        for data, index in zip(series[name], shuffled, strict=True):
            data.InstanceNumber = int(index) + 1
            data.save_as(folder / name / f"{index}-shuffled.dcm")
        for path in (folder / name).glob("00?.dcm"):
            path.unlink()
    return series


def sagittal():
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -1.0, -1.2, -3.0, 1
    return affine


def lesion_of_a_side():
    lesion = np.zeros((40, 46, 24), np.int16)
    lesion[8:16, 26:34, 3:9] = 700
    return lesion


def compressed_studies(folder, series):
    """Write a series in several encodings, and return their names."""
    encoded = {
        "rle": lambda data: data.compress(RLELossless, generate_instance_uid=False),
        "jpeg-ls": lambda data: data.compress(JPEGLSLossless, generate_instance_uid=False),
        "jpeg-lossless": lambda data: by_itk(data, "JPEG"),
        "jpeg-2000": lambda data: by_itk(data, "JPEG2000"),
        "htj2k": in_htj2k,
    }
    for name, encode in encoded.items():
        (folder / name).mkdir()
        for index, data in enumerate(series):
            encoded_slice = pydicom.dcmread(data.filename)
            encode(encoded_slice)
            assert encoded_slice.file_meta.TransferSyntaxUID.is_compressed
            encoded_slice.save_as(folder / name / f"{index}.dcm")
    return list(encoded)


def in_htj2k(data):
    """Take the encoded pixels of a slice of `lesioned`, as nothing here encodes them."""
    data.PixelData = encapsulate([np.load(HTJ2K)[str(data.InstanceNumber - 1)].tobytes()])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = HTJ2KLossless


def write_enhanced(path, series, sop_class, seed):
    """Write a series as one multi-frame image: frames in random order, every other one with a scale of its own."""
    first = series[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    groups = {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope"}
    for element in first:
        if element.keyword not in groups | {"RescaleIntercept", "EchoTime", "RepetitionTime", "PixelData"}:
            data.add(copy.deepcopy(element))
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.NumberOfFrames = len(series)
    data.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
            PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)],
        )
    ]
    pixels, frames = [], []
    for number, index in enumerate(np.random.default_rng(seed).permutation(len(series)), 1):
        shift = 100 * (number % 2)
        pixels.append((series[index].pixel_array + shift).astype("<u2").tobytes())
        slope, intercept = (float(series[index].get(name, default)) for name, default in SCALE.items())
        scale = item(RescaleSlope=slope, RescaleIntercept=intercept - slope * shift, RescaleType="US")
        place = item(ImagePositionPatient=series[index].ImagePositionPatient)
        frames.append(item(PlanePositionSequence=[place], PixelValueTransformationSequence=[scale]))
        frames[-1].FrameContentSequence = [item(DimensionIndexValues=[int(index) + 1])]
    data.PerFrameFunctionalGroupsSequence = frames
    data.PixelData = b"".join(pixels)
    path.parent.mkdir(parents=True)
    data.save_as(path, enforce_file_format=True)


def item(**attributes):
    data = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    return data


def by_itk(data, compression):
    """Encode the pixels of a slice by ITK."""
    writer = itk.GDCMImageIO.New()
    writer.SetUseCompression(True)
    writer.SetCompressionType(getattr(itk.GDCMImageIOEnums, f"Compression_{compression}"))
    with TemporaryDirectory() as folder:
        path = f"{folder}/slice.dcm"
        itk.imwrite(itk.image_from_array(data.pixel_array), path, compression=True, imageio=writer)
        written = pydicom.dcmread(path)
    data.PixelData = written.PixelData
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = written.file_meta.TransferSyntaxUID


def enhanced_studies(folder, series):
    """Write series as multi-frame images."""
    write_enhanced(folder / "enhanced-mr" / "image.dcm", series["oblique"], EnhancedMRImageStorage, 0)
    write_enhanced(folder / "enhanced-ct" / "image.dcm", series["ct"], EnhancedCTImageStorage, 1)


def study_of_contrasts(folder, *contrasts):
    """Write series of equal length and other contrasts as one study; return their UIDs."""
    study = {"StudyInstanceUID": generate_uid()}
    return [
        write_series(folder / str(number), lesioned(), AXIAL, SeriesNumber=number, **contrast, **study, **IDENTITY)[
            0
        ].SeriesInstanceUID
        for number, contrast in enumerate(contrasts, 1)
    ]


def study_with_copy_and_damage(folder, series):
    """Write a series with a copy of one of its files, and elsewhere a damaged file with a line break in its name."""
    shutil.copytree(series, folder / "series")
    shutil.copyfile(sorted((folder / "series").iterdir())[2], folder / "series" / "copy.dcm")
    (folder / "other").mkdir()
    (folder / "other" / "cut\noff.dcm").write_bytes((series / "000.dcm").read_bytes()[:500])


def study_of_several_series(folder, series):
    """Write a study of the series, localizers, a shorter series, an ultrasound image and other files."""
    shutil.copytree(series, folder / "deep" / "down")
    small = lesioned()[..., :3]
    uid = pydicom.dcmread(next((folder / "deep" / "down").iterdir())).StudyInstanceUID
    study = {**IDENTITY, "StudyInstanceUID": uid}
    for turn in (np.eye(4), sagittal(), oblique()):
        write_series(
            folder / f"localizer-{turn[0, 0]}",
            brain(63, (40, 46, 9)),
            turn,
            ImageType=["ORIGINAL", "LOCALIZER"],
            **study,
        )
    write_series(folder / "short", small, AXIAL, **{**study, "SeriesDescription": "T1, the short one"})
    write_series(folder / "us", small, AXIAL, SOPClassUID=UltrasoundImageStorage, Modality="US", **study)
    (folder / "notes.txt").write_text("not DICOM")


def edit(data, **attributes):
    """Change attributes of a slice in its file."""
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    data.save_as(data.filename)


def bad_studies(folder):
    """Write bad studies, and return the expected error of the app by name."""
    image = lesioned()

    def study(name, volume=image, affine=AXIAL, **attributes):
        return write_series(folder / name, volume, affine, **IDENTITY, **attributes)

    def files(name):
        return sorted((folder / name).iterdir())

    (folder / "empty").mkdir(parents=True)
    study("ultrasound", SOPClassUID=UltrasoundImageStorage, Modality="US")
    write_enhanced(folder / "enhanced" / "0.dcm", study("plain"), EnhancedMRImageStorage, 0)
    shutil.copyfile(folder / "enhanced" / "0.dcm", folder / "enhanced" / "1.dcm")
    shutil.rmtree(folder / "plain")
    anew = pydicom.dcmread(folder / "enhanced" / "1.dcm")
    anew.SOPInstanceUID = anew.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    anew.save_as(folder / "enhanced" / "1.dcm")
    tilted = AXIAL.copy()
    tilted[1, 2] = 1.5
    study("tilted", affine=tilted)
    study("localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    study("single-slice", volume=image[..., 2:3])
    study("two-studies/first")
    study("two-studies/second")
    study("missing-slice")
    files("missing-slice")[2].unlink()
    uids = {
        "SeriesInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
    }
    study("mixed-orientations", **uids)
    for path in files("mixed-orientations"):
        path.rename(path.with_name(f"first-{path.name}"))
    study("mixed-orientations", affine=oblique(), **uids)
    doubled = study("two-volumes")
    for data in doubled:
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.save_as(f"{data.filename}.again.dcm")
    for data in study("colour"):
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
        data.PixelData = bytes(3 * data.Rows * data.Columns)
        data.save_as(data.filename)
    study("truncated")
    whole = files("truncated")[3].read_bytes()
    files("truncated")[3].write_bytes(whole[: len(whole) - 1000])
    for data in study("no-uids"):
        edit(data, SOPInstanceUID="")
    study("garbage")
    files("garbage")[3].write_bytes(np.random.default_rng(0).bytes(3000))
    edit(study("frames-of-reference")[2], FrameOfReferenceUID=generate_uid())
    edit(study("no-frame-of-reference")[2], FrameOfReferenceUID="")
    edit(study("another-patient-in-series")[3], PatientID="4712")
    edit(study("patient-missing")[3], PatientBirthDate="", PatientName="")
    study_of_contrasts(folder / "two-patients", {}, {})
    for path in files("two-patients/2"):
        edit(pydicom.dcmread(path), PatientName="Doe^John")
    changed, original = study("same-uid")[0], files("same-uid")[0]
    shutil.copyfile(original, original.with_name("changed.dcm"))
    changed.filename = str(original.with_name("changed.dcm"))
    edit(changed, PixelData=changed.PixelData[:-2] + b"\1\1")
    study_of_contrasts(folder / "ambiguous", {}, {})
    study_of_contrasts(folder / "t2-and-flair", T2, FLAIR)
    for data in study("nowhere"):
        del data.ImagePositionPatient
        data.save_as(data.filename)
    study("flat", volume=np.full_like(image, 5))
    study("tiny", volume=image[14:24, 20:30])
    return {
        "frames-of-reference": "several frames of reference",
        "no-frame-of-reference": "1 slices of the series have no FrameOfReferenceUID",
        "another-patient-in-series": "differ in PatientID; expected those of one patient",
        "patient-missing": "differ in PatientName; expected those of one patient",
        "two-patients": "differ in PatientName; expected those of one patient",
        "same-uid": "the files '000.dcm' and 'changed.dcm' are different images with one SOPInstanceUID",
        "ambiguous": "2 series could be taken (series 1 (",
        "t2-and-flair": "EchoTime 100 ms, fitted on 3 to 3",
        "no-uids": "the study has 6 DICOM files, all of them damaged or without the UIDs",
        "empty": "None of the 0 series",
        "single-slice": "the series has a single slice",
        "two-studies": "the input holds 2 studies",
        "ultrasound": "None of the 1 series can be taken (0 are MR or CT",
        "enhanced": "the series has 2 files, one or more of them of several slices",
        "tilted": "do not make one volume",
        "localizer": "1 are MR or CT, 0 of them no localizer",
        "missing-slice": "4 to 8 mm apart; expected even gaps",
        "mixed-orientations": "differ in orientation",
        "two-volumes": "several slices of the series lie at one position",
        "colour": "pixels of the kind RGB; expected grey values",
        "truncated": "the file '003.dcm' cannot be decoded (Explicit VR Little Endian)",
        "garbage": "the file '003.dcm' of the study is damaged or no DICOM, and may be a slice of the series",
        "nowhere": "6 slices of the series have no ImagePositionPatient",
        "flat": "every voxel is 5",
        "tiny": "10 x 10 pixels; expected at least 14 x 14",
    }
