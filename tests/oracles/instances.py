"""`python -m tests.oracles.instances`: make ``instances.npz``, the panoptic quality of random regions by panoptica.

panoptica (panoptica==2.1.7) needs an older NumPy than the bundle, so it is in no list of requirements: run this in an
environment of its own, which needs nothing else.
"""

from __future__ import annotations

import numpy as np
from panoptica import InputType, NaiveThresholdMatching, Panoptica_Evaluator
from scipy.ndimage import label

from . import FOLDER

N_CASES, SHAPE = 12, (30, 30, 8)
ABOVE_HALF = 0.5 + 1e-9  # panoptica matches at the threshold, the definition of the panoptic quality above 0.5


def random_boxes(generator: np.random.Generator, n_boxes: int) -> np.ndarray:
    """Number boxes of random sizes, a later one on top of the earlier ones."""
    numbers = np.zeros(SHAPE, np.uint8)
    for number in range(1, n_boxes + 1):
        low = [generator.integers(0, size - 3) for size in SHAPE]
        numbers[tuple(slice(start, start + generator.integers(3, 8)) for start in low)] = number
    return numbers


def perturbed(generator: np.random.Generator, numbers: np.ndarray) -> np.ndarray:
    """Shift the numbers by up to a voxel along an axis, lose one, and add a box."""
    shifted = np.roll(numbers, generator.integers(-1, 2), generator.integers(3))
    shifted[shifted == generator.integers(1, 6)] = 0
    return np.where((random_boxes(generator, 1) > 0) & (shifted == 0), 9, shifted).astype(np.uint8)


def main() -> None:
    """Write references, predictions and figures of all cases into this folder."""
    generator = np.random.default_rng(0)
    boxes = [random_boxes(generator, 7) for _ in range(N_CASES)]
    references = np.stack([label(each, np.ones((3, 3, 3)))[0].astype(np.uint8) for each in boxes])
    predictions = np.stack([perturbed(generator, reference) for reference in references])
    evaluator = Panoptica_Evaluator(
        InputType.UNMATCHED_INSTANCE, instance_matcher=NaiveThresholdMatching(matching_threshold=ABOVE_HALF)
    )
    figures = []
    for reference, prediction in zip(references, predictions, strict=True):
        result = evaluator.evaluate(prediction, reference)["ungrouped"]
        figures.append([result.tp, result.fp, result.fn, result.sq, result.pq])
    names = ("true", "false", "missed", "segmentation_quality", "panoptic_quality")
    columns = dict(zip(names, np.array(figures, float).T, strict=True))
    np.savez_compressed(FOLDER / "instances.npz", references=references, predictions=predictions, **columns)


if __name__ == "__main__":
    main()
