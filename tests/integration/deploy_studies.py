"""DICOM studies for the app, good and bad."""

import shutil
from tempfile import TemporaryDirectory

import itk
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    HTJ2KLossless,
    RLELossless,
    UltrasoundImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from demo.dicom_series import write_series
from tests.tiny_cases import PATIENT, brain

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
        "jpeg-lossless": lambda data: by_itk(data, "JPEG"),
        "jpeg-2000": lambda data: by_itk(data, "JPEG2000"),
    }
    for name, encode in encoded.items():
        (folder / name).mkdir()
        for index, data in enumerate(series):
            copy = pydicom.dcmread(data.filename)
            encode(copy)
            assert copy.file_meta.TransferSyntaxUID.is_compressed
            copy.save_as(folder / name / f"{index}.dcm")
    return list(encoded)


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


def study_of_several_series(folder, series):
    """Write a study of the series, localizers, a shorter series, an ultrasound image and other files."""
    shutil.copytree(series, folder / "deep" / "down")
    small = lesioned()[..., :3]
    study = {"StudyInstanceUID": pydicom.dcmread(next((folder / "deep" / "down").iterdir())).StudyInstanceUID}
    for turn in (np.eye(4), sagittal(), oblique()):
        write_series(
            folder / f"localizer-{turn[0, 0]}",
            brain(63, (40, 46, 9)),
            turn,
            ImageType=["ORIGINAL", "LOCALIZER"],
            **study,
        )
    write_series(folder / "short", small, AXIAL, SeriesDescription="T1, the short one", **study)
    write_series(folder / "us", small, AXIAL, SOPClassUID=UltrasoundImageStorage, Modality="US", **study)
    (folder / "notes.txt").write_text("not DICOM")


def bad_studies(folder):
    """Write bad studies, and return the expected error of the app by name."""
    image = lesioned()

    def study(name, volume=image, affine=AXIAL, **attributes):
        return write_series(folder / name, volume, affine, **IDENTITY, **attributes)

    def files(name):
        return sorted((folder / name).iterdir())

    (folder / "empty").mkdir(parents=True)
    study("ultrasound", SOPClassUID=UltrasoundImageStorage, Modality="US")
    study("enhanced", SOPClassUID=EnhancedMRImageStorage)
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
    for data in study("high-throughput-jpeg-2000"):
        data.file_meta.TransferSyntaxUID = HTJ2KLossless
        data.PixelData = encapsulate([data.PixelData])
        data["PixelData"].is_undefined_length = True
        data.save_as(data.filename)
    study("truncated")
    whole = files("truncated")[3].read_bytes()
    files("truncated")[3].write_bytes(whole[: len(whole) - 1000])
    study("garbage")
    files("garbage")[3].write_bytes(np.random.default_rng(0).bytes(3000))
    for data in study("nowhere"):
        del data.ImagePositionPatient
        data.save_as(data.filename)
    study("flat", volume=np.full_like(image, 5))
    study("tiny", volume=image[14:24, 20:30])
    return {
        "empty": "None of the 0 series",
        "single-slice": "the series has a single slice",
        "two-studies": "the input holds 2 studies",
        "ultrasound": "None of the 1 series can be taken (0 are MR or CT",
        "enhanced": "so convert the enhanced multi-frame objects",
        "tilted": "do not make one volume",
        "localizer": "1 are MR or CT, 0 of them no localizer",
        "missing-slice": "4 to 8 mm apart; expected even gaps",
        "mixed-orientations": "differ in orientation",
        "two-volumes": "several slices of the series lie at one position",
        "colour": "pixels of the kind RGB; expected grey values",
        "high-throughput-jpeg-2000": "cannot be decoded (High-Throughput JPEG 2000",
        "truncated": "slice 4 of 6, in the order of their paths, cannot",
        "garbage": "file 4 of the 6 of the input",
        "nowhere": "6 slices of the series have no ImagePositionPatient",
        "flat": "every voxel is 5",
        "tiny": "10 x 10 pixels; expected at least 14 x 14",
    }
