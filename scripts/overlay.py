"""A picture of a case: the slices that matter, the map and the mask's outline over them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

MAP_RANGE = (0.0, 2.0)  # units of the calibrated limit, the same in every picture so that healthy images stay dark


def overlay_png(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float] = (1.0, 1.0),
    title: str = "",
    numbers: Sequence[int] | None = None,
    n_slices: int = 6,
) -> bytes:
    """Draw the slices with the highest scores, in their order; above plain, below with map and mask outline.

    Args:
        image: ``[C,H,W,S]`` in [0,1], C 1 or 3; rows from top to bottom.
        anomaly_map: ``[H,W,S]`` in units of the calibrated limit.
        mask: ``[H,W,S]``, what is outlined.
        spacing: height and width of a pixel, in mm.
        title: stands above.
        numbers: what the slices are called in the title.
        n_slices: how many slices at most.

    Returns:
        A PNG file.
    """
    chosen = np.sort(np.argsort(anomaly_map.max((0, 1)))[::-1][:n_slices])
    box = _foreground_box(image)
    image, anomaly_map, mask = image[:, box[0], box[1]], anomaly_map[box], mask[box]
    shown = np.moveaxis(np.concatenate(np.moveaxis(image[..., chosen], 3, 0), axis=2), 0, 2)  # [H, n*W, C]
    shown = np.repeat(shown, 3 // shown.shape[2], axis=2)
    shown = np.clip(shown / max(float(np.percentile(shown, 99.8)), 1e-6), 0, 1)
    scores = np.concatenate(np.moveaxis(anomaly_map[..., chosen], 2, 0), axis=1)  # [H, n*W]

    height, width = scores.shape[0] * spacing[0], scores.shape[1] * spacing[1]
    panel = 3.0 * len(chosen) ** 0.5
    scale = min(1.6 * len(chosen) / width, panel / height) if len(chosen) > 1 else 4.0 / max(height, width)
    size = max(width * scale, 4.0), 2 * height * scale + 0.9
    figure = Figure(figsize=size, dpi=110, facecolor="black", layout="constrained")
    axes = figure.subplots(2, 1)
    for axis in axes:
        axis.imshow(shown, aspect=spacing[0] / spacing[1], interpolation="nearest")
        axis.set_axis_off()
    low, high = MAP_RANGE
    heat = axes[1].imshow(
        scores,
        aspect=spacing[0] / spacing[1],
        cmap="inferno",
        vmin=low,
        vmax=high,
        alpha=0.8 * np.clip(scores - 0.5, 0, 1),  # what is well within normal is not tinted
    )
    outlined = np.concatenate(np.moveaxis(mask[..., chosen], 2, 0), axis=1)
    if outlined.any() and not outlined.all():
        axes[1].contour(outlined, levels=[0.5], colors="cyan", linewidths=0.8)
    bar = figure.colorbar(heat, ax=axes[1], orientation="horizontal", aspect=40, fraction=0.06, extend="max")
    bar.set_label("anomaly score (1 = decision limit)", color="white", fontsize=7)
    bar.ax.axvline(1.0, color="cyan", linewidth=1.2)
    bar.ax.tick_params(colors="white", labelsize=6)
    named = "  slices " + ", ".join(str(numbers[index]) for index in chosen) if numbers is not None else ""
    figure.suptitle(title + named, color="white", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _foreground_box(image: np.ndarray, margin: int = 4) -> tuple[slice, slice]:
    """Rows and columns of ``[C,H,W,S]`` without a border of zeros, but for a margin in pixels."""
    rows, columns = (np.flatnonzero(image.any(axes)) for axes in ((0, 2, 3), (0, 1, 3)))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )
