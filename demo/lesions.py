"""Lesions of known place, kind and size in healthy brains."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

DISTANCE_MM = 10.0  # between the surfaces of two lesions


class Lesion(NamedTuple):
    """A lesion to insert.

    Attributes:
        kind: ``"texture"``, tissue of ordinary grey values without its structure, or ``"oedema"``, a dark blur.
        diameter: in mm.
    """

    kind: str
    diameter: float


def insert_lesions(
    image: np.ndarray, spacing: np.ndarray, lesions: list[Lesion], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Insert lesions at random places of a skull-stripped brain, apart from one another.

    Args:
        image: ``[X,Y,Z]``, 0 outside the brain.
        spacing: distances of the voxels in mm ``[3]``.
        lesions: what to insert, the largest first.
        generator: of all random choices.

    Returns:
        The image with lesions, and the number of the lesion of each voxel, from 1.
    """
    brain = ndimage.binary_fill_holes(image > 0)
    depth = ndimage.distance_transform_edt(brain, spacing)
    inserted, labels = image.astype(np.float32), np.zeros(image.shape, np.uint8)
    for number, lesion in enumerate(lesions, 1):
        radius = lesion.diameter / 2
        free = ndimage.distance_transform_edt(labels == 0, spacing) if labels.any() else np.full(image.shape, np.inf)
        centres = np.argwhere(
            (depth > radius + 1) & (free > radius + DISTANCE_MM) & (image > np.median(image[brain]) / 2)
        )
        shape = ball(image.shape, spacing, generator.permutation(centres)[0], radius, generator) & brain
        inserted = KINDS[lesion.kind](inserted, shape, spacing, generator)
        labels[shape] = number
    return inserted * brain, labels


def ball(
    shape: tuple[int, ...], spacing: np.ndarray, centre: np.ndarray, radius: float, generator: np.random.Generator
) -> np.ndarray:
    """Make a ball with an irregular surface, ``shape``, of a radius in mm."""
    offsets = [(np.arange(n) - c) * mm for n, c, mm in zip(shape, centre, spacing, strict=True)]
    distance = np.sqrt(sum(np.square(axis) for axis in np.ix_(*offsets)))
    bumps = ndimage.gaussian_filter(generator.standard_normal(shape).astype(np.float32), radius / 2 / spacing)
    result: np.ndarray = distance < radius * (1 + 0.15 * np.clip(bumps / bumps.std(), -1.5, 1.5))
    return result


def texture(image: np.ndarray, shape: np.ndarray, spacing: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Replace the structure inside a shape by noise of the same mean and deviation, correlated over 1.5 mm."""
    noise = ndimage.gaussian_filter(generator.standard_normal(image.shape).astype(np.float32), 1.5 / spacing / 2)
    around = image[ndimage.binary_dilation(shape, iterations=4) & (image > 0)]
    return blended(image, around.mean() + around.std() * noise / noise.std(), shape, spacing, 0.5)


def oedema(image: np.ndarray, shape: np.ndarray, spacing: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Darken the tissue inside a shape to 65 %, with a soft border."""
    return blended(image, 0.65 * image, shape, spacing, 1.0)


def blended(image: np.ndarray, other: np.ndarray, shape: np.ndarray, spacing: np.ndarray, width: float) -> np.ndarray:
    """Replace an image inside a shape, with a border that is ``width`` mm wide."""
    weight = ndimage.gaussian_filter(shape.astype(np.float32), width / spacing)
    return image + weight * (other - image)


KINDS = {"texture": texture, "oedema": oedema}
