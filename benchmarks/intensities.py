"""How far a lesion shifts the grey values of the tissue around it: `python -m benchmarks.intensities --data FOLDER`.

FOLDER holds healthy volumes with a background of zeros. Soft balls replace 1 to 20 % of the foreground: bright ones at
1.3 to 1.6 times its 95th percentile, dark ones at its 2nd and close to 0. The shift is the mean absolute difference of
scaled values over all other voxels, in the mean over volumes and grey values (and at most). The spread is the standard
deviation among healthy volumes of the scaled 5th, 25th, 50th, 75th and 95th percentile, in the mean. Every second
volume is held out; the choice was made on the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from scripts.data import CaseDataset, ScaleForegroundPercentilesd, ScaleTissued, find_cases

ROOT = Path(__file__).resolve().parent.parent
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
BRIGHT: tuple[float | None, ...] = (1.3, 1.45, 1.6)
DARK: tuple[float | None, ...] = (None, 0.02)  # in 95th percentiles; None for the 2nd percentile
HEADROOM = 0.3
N_VOXELS = 1 << 16  # larger volumes are thinned out to about that

Scaling = Callable[[np.ndarray], np.ndarray]  # image [X,Y,Z] -> the same in [0,1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intensities", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--half", choices=["chosen_on", "held_out"], default="held_out")
    options = parser.parse_args()
    volumes = read_volumes(options.data)[options.half == "held_out" :: 2]
    print(
        f"{len(volumes)} volumes\n\n| scaling | spread | {' | '.join(columns())} |\n|---|---|{'---|' * len(columns())}"
    )
    for name, shifts in measure(volumes, SCALINGS).items():
        cells = [f"{np.mean(values):.3f} ({np.max(values):.3f})" for values in shifts]
        print(f"| {name} | {spread(volumes, SCALINGS[name]):.4f} | {' | '.join(cells)} |")


def read_volumes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read volumes ``[X,Y,Z]`` as before scaling, and the sizes of their voxels ``[3]`` in mm."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "inference.json")
    parser.update({"intensities": {"_target_": "Identityd", "keys": "image"}, "field_of_view": None})
    cases = CaseDataset(find_cases(folder), parser.get_parsed_content("preprocessing"))
    volumes = []
    for index in range(len(cases)):
        image = cases[index]["image"]
        step = max(1, round((image.numel() / N_VOXELS) ** (1 / 3)))
        volumes.append((np.asarray(image[0, ::step, ::step, ::step]), step * np.asarray(image.pixdim)))
    return volumes


def with_lesion(
    image: np.ndarray, voxel_size: np.ndarray, share: float, level: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the tissue in a ball with an edge of 1 mm by another grey value with 5 % noise.

    Args:
        image: ``[X,Y,Z]``, 0 outside.
        voxel_size: ``[3]``, in mm.
        share: of the foreground that the ball holds.
        level: grey value.
        generator: random generator of the centre, in the inner half of the foreground, and the noise.

    Returns:
        The image, and a mask ``[X,Y,Z]`` of the untouched foreground.
    """
    foreground = image != 0
    places = np.argwhere(foreground) * voxel_size
    from_middle = np.linalg.norm((places - places.mean(0)) / places.std(0), axis=1)
    centre = generator.choice(places[from_middle <= np.median(from_middle)])
    distances = np.linalg.norm(places - centre, axis=1)
    inside = 1 / (1 + np.exp(np.clip(distances - np.quantile(distances, share), -50, 50)))
    noisy = level * (1 + 0.05 * generator.standard_normal(len(places)))
    untouched = inside < 0.01
    values = image[foreground]
    changed, rest = image.copy(), np.zeros_like(foreground)
    changed[foreground] = np.where(untouched, values, np.maximum(values + inside * (noisy - values), 1e-3 * level))
    rest[foreground] = untouched
    return changed, rest


def columns() -> list[str]:
    """Return the titles of the values of `measure`."""
    return [f"{kind} {share:.0%}" for kind in ("bright", "dark") for share in SHARES]


def measure(
    volumes: Sequence[tuple[np.ndarray, np.ndarray]], scalings: Mapping[str, Scaling]
) -> dict[str, list[list[float]]]:
    """Measure the shift of the untouched tissue, all scalings on the same lesions.

    Args:
        volumes: see `read_volumes`.
        scalings: by name.

    Returns:
        For each scaling and each of `columns` the shifts of all volumes and grey values.
    """
    kinds = [(factors, share) for factors in (BRIGHT, DARK) for share in SHARES]
    shifts: dict[str, list[list[float]]] = {name: [[] for _ in kinds] for name in scalings}
    for number, (image, voxel_size) in enumerate(volumes):
        generator = np.random.default_rng(number)
        healthy = {name: scaling(image) for name, scaling in scalings.items()}
        second, bright = np.percentile(image[image != 0], [2, 95])
        for column, (factors, share) in enumerate(kinds):
            for factor in factors:
                level = second if factor is None else factor * bright
                changed, untouched = with_lesion(image, voxel_size, share, level, generator)
                for name, scaling in scalings.items():
                    shift = np.abs(scaling(changed) - healthy[name])[untouched].mean()
                    shifts[name][column].append(float(shift))
    return shifts


def spread(volumes: Sequence[tuple[np.ndarray, np.ndarray]], scaling: Scaling) -> float:
    """Measure how different healthy volumes are after scaling."""
    landmarks = [np.percentile(scaling(image)[image != 0], [5, 25, 50, 75, 95]) for image, _ in volumes]
    return float(np.std(landmarks, axis=0).mean())


def of_transform(transform: Callable[[Any], dict[Any, Any]]) -> Scaling:
    """Return the function of a transform."""
    return lambda image: np.asarray(transform({"image": torch.from_numpy(image)})["image"])


def of_range(low_and_high: Callable[[np.ndarray], tuple[float, float]]) -> Scaling:
    """Return the function that scales by the values that become 0 and ``1 - HEADROOM``."""

    def scaled(image: np.ndarray) -> np.ndarray:
        low, high = low_and_high(np.sort(image[image != 0]))
        return np.clip((image - low) * (1 - HEADROOM) / (high - low), 0, 1)

    return scaled


def quantiles(lower: float, upper: float, below: float, above: float) -> Scaling:
    """Extrapolate from two percentiles, by shares of their distance."""

    def low_and_high(values: np.ndarray) -> tuple[float, float]:
        first, second = np.percentile(values, [lower, upper])
        return first - below * (second - first), second + above * (second - first)

    return of_range(low_and_high)


def fenced(values: np.ndarray) -> tuple[float, float]:
    """Bound the percentiles 0.5 and 99.5 by one interquartile range from the quartiles (Tukey's fences)."""
    low, first, third, high = np.percentile(values, [0.5, 25, 75, 99.5])
    return max(low, 2 * first - third), min(high, 2 * third - first)


def without_outliers(values: np.ndarray, width: float = 2.5) -> tuple[float, float]:
    """Compute the percentiles 0.5 and 99.5 of what lies within `width` robust deviations of the median, repeatedly."""
    n_before = 0
    while len(values) != n_before:
        n_before, median = len(values), np.median(values)
        distances = np.abs(values - median)
        values = values[distances <= width * 1.4826 * np.median(distances)]
    low, high = np.percentile(values, [0.5, 99.5])
    return low, high


def shortest(values: np.ndarray, share: float = 0.75) -> tuple[float, float]:
    """Extrapolate from the shortest interval that holds three quarters of the values."""
    n_inside = int(share * len(values))
    start = int((values[n_inside:] - values[:-n_inside]).argmin())
    first, second = values[start], values[start + n_inside]
    return first - 0.5 * (second - first), second + 0.15 * (second - first)


SCALINGS: dict[str, Scaling] = {
    "percentiles 0.5 and 99.5": of_transform(ScaleForegroundPercentilesd("image")),
    "percentiles 10 and 90, extrapolated": quantiles(10, 90, 0.33, 0.02),
    "quartiles, extrapolated": quantiles(25, 75, 1.0, 0.75),
    "percentiles within fences": of_range(fenced),
    "percentiles without outliers": of_range(without_outliers),
    "shortest three quarters": of_range(shortest),
    "tissue quantiles (`ScaleTissued`)": of_transform(ScaleTissued("image")),
    "the same, any share clipped": of_transform(ScaleTissued("image", clipped=49)),
}


if __name__ == "__main__":
    main()
