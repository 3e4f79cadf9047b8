"""A picture of a case: the slices that matter, the map and the mask's outline over them."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .case_view import SliceView, subsample

# In units of the calibrated limit, the same in every picture so that healthy images stay dark.
HEAT = ScalarMappable(Normalize(0.0, 2.0), "inferno")
ABOVE, BELOW = 0.3, 0.6  # room for the title and the scale, in inches


def overlay_png(view: SliceView, title: str = "", n_slices: int = 6) -> bytes:
    """Draw the slices with the highest scores, in their order; above plain, below with map and mask outline.

    Args:
        view: the case.
        title: stands above.
        n_slices: how many slices at most.

    Returns:
        A PNG file.
    """
    chosen = np.sort(np.argsort(view.scores.max((0, 1)))[::-1][:n_slices])
    box = view.box()
    image = _side_by_side(np.moveaxis(view.image[:, box[0], box[1], chosen], 0, 2))
    shown = windowed(image, brightest_of(image))
    scores, outlined = (_side_by_side(array[box][..., chosen]) for array in (view.scores, view.mask))

    aspect = view.spacing[0] / view.spacing[1]
    height, width = scores.shape[0] * view.spacing[0], scores.shape[1] * view.spacing[1]
    panel = 3.0 * len(chosen) ** 0.5
    scale = min(1.6 * len(chosen) / width, panel / height) if len(chosen) > 1 else 4.0 / max(height, width)
    wide, high = max(width * scale, 4.0), height * scale
    whole = BELOW + 2 * high + ABOVE
    figure = Figure(figsize=(wide, whole), dpi=110, facecolor="black")  # fixed places: a layout engine draws it twice
    axes = [figure.add_axes((0, bottom / whole, 1, high / whole)) for bottom in (BELOW + high, BELOW)]
    for axis in axes:
        axis.imshow(shown, aspect=aspect, interpolation="nearest")
        axis.set_axis_off()
    axes[1].imshow(heat(scores), aspect=aspect)
    if outlined.any() and not outlined.all():
        axes[1].contour(outlined, levels=[0.5], colors="cyan", linewidths=0.8)
    bar = figure.colorbar(
        HEAT,
        cax=figure.add_axes((0.5 - 1.5 / wide, 0.4 / whole, 3 / wide, 0.08 / whole)),
        orientation="horizontal",
        extend="max",
    )
    bar.set_label("anomaly score (1 = decision threshold)", color="white", fontsize=7, labelpad=1)
    bar.ax.axvline(1.0, color="cyan", linewidth=1.2)
    bar.ax.tick_params(colors="white", labelsize=6)
    numbers = view.numbers
    named = "  slices " + ", ".join(str(numbers[index]) for index in chosen) if numbers is not None else ""
    figure.text(0.5, 1 - 0.08 / whole, title + named, color="white", fontsize=8, ha="center", va="top")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def heat(scores: np.ndarray) -> np.ndarray:
    """Colours with opacity ``[...,4]`` in [0,1] of calibrated scores; what is well within normal is not tinted."""
    colours = HEAT.to_rgba(scores)
    colours[..., 3] = 0.8 * np.clip(2 * (scores - 0.75), 0, 1)
    return colours


def windowed(image: np.ndarray, brightest: float) -> np.ndarray:
    """Colours ``[...,3]`` in [0,1] of an image ``[...,C]``, C 1 or 3; see `brightest_of`."""
    return np.clip(np.repeat(image, 3 // image.shape[-1], axis=-1) / brightest, 0, 1)


def brightest_of(image: np.ndarray) -> float:
    """What is shown white: nearly the brightest of an image."""
    return max(float(np.percentile(subsample(image), 99.8)), 1e-6)


def _side_by_side(slices: np.ndarray) -> np.ndarray:
    """``[H,W,...,n]`` -> ``[H,n*W,...]``."""
    return np.concatenate(np.moveaxis(slices, -1, 0), axis=1)
