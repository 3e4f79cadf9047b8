"""Small cases as files: NIfTI volumes and DICOM series."""

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = "Doe^Jane"


def brain(seed, shape=(40, 46, 5), lesion=None):
    """A smooth blob with texture on a background of zeros."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij"))
    inside = (np.square(grid).sum(0) < 0.7)[..., None]
    image = (600 + 80 * np.sin(9 * grid[0])[..., None] + generator.normal(0, 20, shape)) * inside
    if lesion is not None:
        image[lesion] = 1500
    return image.astype(np.int16)


AFFINE = np.array([[-0.9, 0.01, 0, 30], [0.02, 1.1, 0.03, -25], [0, -0.02, 4.0, 7], [0, 0, 0, 1]])


def save(path, image, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image, affine), path)


def save_dicom_series(folder, volume):
    """A series of one file per slice, with a patient's name in it."""
    folder.mkdir(parents=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(str(folder / f"{index}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = series, study, frame
        dataset.PatientName, dataset.PatientID, dataset.Modality = PATIENT, "4711", "MR"
        dataset.Rows, dataset.Columns = volume.shape[1], volume.shape[0]
        dataset.PixelSpacing, dataset.SliceThickness = [1.1, 0.9], 4.0
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4.0 * index]
        dataset.InstanceNumber = index + 1
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = volume[:, :, index].T.astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{index}.dcm", enforce_file_format=True)
