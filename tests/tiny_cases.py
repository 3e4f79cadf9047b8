"""Small cases as files: NIfTI volumes and DICOM series."""

import nibabel as nib
import numpy as np

from demo.dicom_series import write_series

PATIENT = "Doe Jane"


def brain(seed, shape=(40, 46, 5), lesion=None):
    """Return a smooth blob ``[H,W,D]`` with texture on a background of zeros."""
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
    """Write a series of one file per slice that names a patient."""
    write_series(folder, volume, np.diag([-0.9, -1.1, 4.0, 1]), PatientName=PATIENT, PatientID="4711")


def at_slice(volume, data):
    """Return the values ``[H,W]`` of a volume at the pixels of a slice, by their patient coordinates."""
    columns, rows = np.meshgrid(np.arange(data.Columns), np.arange(data.Rows))
    along_row, down = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
    lps = np.array(data.ImagePositionPatient, float)[:, None, None]
    lps = (
        lps
        + along_row[:, None, None] * columns * data.PixelSpacing[1]
        + down[:, None, None] * rows * data.PixelSpacing[0]
    )
    ras = np.concatenate([-lps[:2], lps[2:], np.ones_like(lps[:1])])
    voxels = np.einsum("ij,jhw->ihw", np.linalg.inv(volume.affine), ras)[:3]
    np.testing.assert_allclose(voxels, voxels.round(), atol=0.02)
    return np.asarray(volume.dataobj)[tuple(voxels.round().astype(int))]
