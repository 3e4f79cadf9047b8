"""The images that are measured on."""

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
    """Where images are, and their name for a reader."""

    normals: Path
    held_out: Path
    cases: Path
    labels: Path
    healthy: str | None
    volume: Path
    name: str
    volume_name: str


def find_images(data: Path, output: Path) -> Images:
    """Real images where they are at hand, otherwise the demo's population and nilearn's template.

    Args:
        data: a folder with ``brain_t1`` (``normal``, ``validation``, ``anomalous/images``, ``anomalous/labels``) and
            ``ms_flair/patient07/FLAIR.nii.gz``.
        output: gets what has to be made.
    """
    volume, volume_name = (
        data / "ms_flair" / "patient07" / "FLAIR.nii.gz",
        "A FLAIR volume, another contrast than the model's: its mask means nothing here",
    )
    if not volume.is_file():
        volume, volume_name = output / "template.nii.gz", "The MNI152 template of nilearn"
        if not volume.is_file():
            brain = load_mni152_template(resolution=1)
            corner = [(have - want) // 2 for have, want in zip(brain.shape, (182, 218, 182), strict=True)]
            save(brain.slicer[tuple(slice(s, s + n) for s, n in zip(corner, (182, 218, 182), strict=True))], volume)
    t1, made = data / "brain_t1", output / "population"
    if t1.is_dir():
        inside = (t1 / "normal", t1 / "validation", t1 / "anomalous" / "images", t1 / "anomalous" / "labels")
        return Images(*inside, None, volume, "T1 slabs with inserted lesions", volume_name)
    if not (made / "masks").is_dir():
        write_population(made)
    inside = (made / "normal", made / "validation", made / "unseen", made / "masks")
    return Images(*inside, "healthy-*", volume, "The demo's population", volume_name)


def save(image: nib.Nifti1Image, path: Path) -> None:
    """Write a ``.nii.gz`` file; see `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6))


def cut(images: Images, n_slices: int, output: Path) -> Path:
    """The middle slices of the volume, as a file."""
    path = output / "volumes" / f"{n_slices}_slices.nii.gz"
    if not path.is_file():
        volume = nib.as_closest_canonical(nib.load(images.volume))
        start = (volume.shape[2] - n_slices) // 2
        save(volume.slicer[:, :, max(start, 0) : start + n_slices], path)
    return path


def without_background(images: Images, output: Path) -> Path:
    """The volume with faint noise wherever it is 0: no slice is empty, and none can be cropped."""
    path = output / "volumes" / "no_background.nii.gz"
    if not path.is_file():
        volume = nib.as_closest_canonical(nib.load(images.volume))
        values = volume.get_fdata(dtype=np.float32)
        noise = np.random.default_rng(0).integers(1, 5, values.shape) * values.max() / 1000
        save(nib.Nifti1Image(np.where(values == 0, noise, values).astype(np.float32), volume.affine), path)
    return path
