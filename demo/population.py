"""Synthetic population of brains from one template, some of them with lesions.

The bundle cannot include data of patients. So each subject is the MNI152 T1 template of nilearn under random anatomy
(affine and elastic), acquisition (bias field, contrast) and Rician noise, with its own seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.transforms import (
    Compose,
    GaussianSmooth,
    Rand3DElastic,
    RandAdjustContrast,
    RandBiasField,
    RandRicianNoise,
)
from nilearn.datasets import load_mni152_template

SLAB = slice(40, 52, 2)  # six axial slices through the ventricles, 4 mm apart
N_HEALTHY, N_LESIONED = 3, 5
SUBJECTS = (  # folder, name and numbers; 20 held-out normals suffice to flag a case, at least 19 do
    ("normal", "normal", range(1, 21)),
    ("validation", "validation", range(1, 7)),
    ("unseen", "healthy", range(1, N_HEALTHY + 1)),
    ("unseen", "lesion", range(1, N_LESIONED + 1)),
    ("validation", "validation", range(7, 21)),
)


def write_population(folder: Path) -> None:
    """Write normal, validation and unseen subjects and the masks of the lesions, as NIfTI.

    Args:
        folder: gets ``normal/``, ``validation/``, ``unseen/`` with ``healthy-*`` and ``lesion-*``, and ``masks/``.
    """
    template = load_mni152_template(resolution=2)
    affine = template.affine.copy()
    affine[:, 3] += affine[:, 2] * SLAB.start
    affine[:, 2] *= SLAB.step
    brain = torch.from_numpy(template.get_fdata(dtype=np.float32))
    brain = (brain / brain.max()).clamp(min=0)
    for group, name, seed, with_lesion in _subjects():
        image, mask = subject(brain, seed, with_lesion)
        for kind, data in ((group, (1000 * image).round().to(torch.int16)), ("masks", mask.to(torch.uint8))):
            if kind != "masks" or with_lesion:
                (folder / kind).mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(data.numpy()[..., SLAB], affine), folder / kind / f"{name}.nii.gz")


def subject(brain: torch.Tensor, seed: int, with_lesion: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one subject.

    Args:
        brain: the template ``[X,Y,Z]`` in [0,1], 0 outside.
        seed: seed of all random choices.
        with_lesion: whether to insert a lesion.

    Returns:
        Image ``[X,Y,Z]`` from 0 upwards, and lesion mask of the same shape.
    """
    anatomy = Rand3DElastic(
        sigma_range=(5, 7),
        magnitude_range=(40, 90),
        prob=1,
        rotate_range=(0.03, 0.03, 0.08),
        translate_range=(2, 2, 0.5),
        scale_range=(0.06, 0.06, 0.06),
        padding_mode="zeros",
    ).set_random_state(seed)
    image = torch.Tensor(anatomy(brain.unsqueeze(0)))
    inside = image > 0.05
    mask = torch.zeros_like(image)
    if with_lesion:
        mask = lesion(inside[0], np.random.default_rng(seed)).unsqueeze(0)
        bright = seed % 2 == 0
        image = torch.lerp(image, torch.full_like(image, 1.4 if bright else 0.12), 0.85 * GaussianSmooth(0.7)(mask))
    acquisition = Compose(
        [
            RandBiasField(prob=1, coeff_range=(0.0, 0.15)),
            RandAdjustContrast(prob=1, gamma=(0.85, 1.2)),
            RandRicianNoise(prob=1, std=0.02, sample_std=True),
        ]
    ).set_random_state(seed)
    image = torch.as_tensor(acquisition(image)).clamp(min=0) * inside
    return image[0], (mask[0] > 0.5) & inside[0]


def lesion(inside: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Make a ball of 10 to 14 mm radius with an irregular surface, inside the brain and the slab.

    Args:
        inside: brain mask ``[X,Y,Z]`` at 2 mm.
        generator: random generator.

    Returns:
        ``[X,Y,Z]``, 1 inside the lesion and 0 outside.
    """
    depth = torch.nn.functional.avg_pool3d(inside.float()[None, None], 9, stride=1, padding=4)[0, 0]
    centres = torch.nonzero((depth > 0.95)[..., SLAB.start + 3 : SLAB.stop - 3])
    centre = centres[generator.integers(len(centres))] + torch.tensor([0, 0, SLAB.start + 3])
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in inside.shape), indexing="ij"), dim=-1)
    distance = (grid - centre).float().norm(dim=-1)
    bumps = torch.from_numpy(generator.standard_normal(inside.shape).astype(np.float32))
    bumps = GaussianSmooth(2.0)(bumps.unsqueeze(0))[0] * 20
    return ((distance + bumps.clamp(-1.5, 1.5) < generator.uniform(5.0, 7.0)) & inside).float()


def _subjects() -> Iterator[tuple[str, str, int, bool]]:
    subjects = ((group, f"{name}-{number:02d}") for group, name, numbers in SUBJECTS for number in numbers)
    for seed, (group, name) in enumerate(subjects):
        yield group, name, seed, name.startswith("lesion")
