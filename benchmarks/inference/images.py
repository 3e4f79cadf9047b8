"""The images of the benchmark."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_template

from demo.population import write_population
from scripts.files import atomic_write


class Images(NamedTuple):
    """Images as settings of a fit and of an evaluation, a volume, and names of the last two for a reader."""

    fit: dict[str, Path]
    evaluation: dict[str, Path | str]
    volume: Path
    evaluation_name: str
    volume_name: str


def find_images(data: Path, output: Path) -> Images:
    """Find real images, or make the demo's population and nilearn's template instead.

    Args:
        data: a folder with ``brain_t1`` (``normal``, ``validation``, ``anomalous/images``, ``anomalous/labels``) and
            ``ms_flair/patient07/FLAIR.nii.gz``.
        output: the folder of images that have to be made.
    """
    volume = data / "ms_flair" / "patient07" / "FLAIR.nii.gz"
    volume_name = "A FLAIR volume, whose mask means nothing: the model was fitted on T1"
    if not volume.is_file():
        volume, volume_name = output / "template.nii.gz", "The MNI152 template of nilearn"
        if not volume.is_file():
            save(load_mni152_template(resolution=1), volume)
    folder, name = data / "brain_t1", "T1 slabs with inserted lesions"
    evaluation: dict[str, Path | str] = {
        "dataset_dir": folder / "anomalous" / "images",
        "label_dir": folder / "anomalous" / "labels",
    }
    if not folder.is_dir():
        folder, name = output / "population", "The demo's population"
        if not (folder / "masks").is_dir():
            write_population(folder)
        evaluation = {
            "dataset_dir": folder / "unseen",
            "label_dir": folder / "masks",
            "normal_pattern": "healthy-*",
        }
    fit = {"dataset_dir": folder / "normal", "validation_dir": folder / "validation"}
    return Images(fit, evaluation, volume, name, volume_name)


def middle_slices(volume: Path, n_slices: int, folder: Path, fill_background: bool = False) -> Path:
    """Write the middle slices of a volume into a folder, and return the file.

    Args:
        volume: a NIfTI file.
        n_slices: number of slices.
        folder: the folder.
        fill_background: whether faint noise replaces zeros, so that no slice is empty and none can be cropped.
    """
    path = folder / f"{n_slices}_slices{'_no_background' if fill_background else ''}.nii.gz"
    if not path.is_file():
        image = nib.as_closest_canonical(nib.load(volume))
        start = max((image.shape[2] - n_slices) // 2, 0)
        image = image.slicer[:, :, start : start + n_slices]
        if fill_background:
            values = image.get_fdata(dtype=np.float32)
            noise = np.random.default_rng(0).integers(1, 5, values.shape) * values.max() / 1000
            image = nib.Nifti1Image(np.where(values == 0, noise, values).astype(np.float32), image.affine)
        save(image, path)
    return path


def save(image: nib.Nifti1Image, path: Path) -> None:
    """Write a ``.nii.gz`` file; see `atomic_write`."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6))
