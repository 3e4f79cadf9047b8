"""Upright slices of a case, and the picture of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd

from ..data.foreground import foreground_mask, subsample
from ..data.transforms import UPRIGHT
from .regions import Regions, find_regions

# Calibrated scores from 0 to 4, the same in every picture so that healthy images stay dark: their highest patches reach
# about 2, lesions 3 to 7.
HEAT = ScalarMappable(Normalize(0.0, 4.0), "inferno")
# Colours of the outlines, apart for colour-blind readers too; the truth is dashed on black besides.
MASK_COLOUR, TRUTH_COLOUR = "#25e6e6", "#ffd23f"
ABOVE, BELOW, LEGEND = 0.3, 0.6, 0.2  # room for the title, the scale and the legend, in inches


@dataclass(frozen=True)
class SliceView:
    """The S upright slices of a volume, or the single slice of an image.

    Attributes:
        image: ``[C,H,W,S]`` in [0,1].
        scores: calibrated map ``[H,W,S]``.
        mask: anomalous pixels ``[H,W,S]``.
        foreground: pixels ``[H,W,S]`` that are not background.
        spacing: height and width of a pixel, in mm.
        numbers: index of each slice in the array of the input; None for an image.
        truth: truly anomalous pixels ``[H,W,S]``; None without a label.
    """

    image: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    foreground: np.ndarray
    spacing: tuple[float, float]
    numbers: list[int] | None
    truth: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        image: MetaTensor,
        anomaly_map: MetaTensor,
        mask: MetaTensor,
        spatial_dim: int,
        truth: np.ndarray | None = None,
        foreground: np.ndarray | None = None,
    ) -> SliceView:
        """Turn a case upright, as the network saw it, without copying.

        Args:
            image: ``[C,...]`` in [0,1], in the orientation of the input.
            anomaly_map: ``[1,...]`` in the same orientation.
            mask: ``[1,...]`` in the same orientation.
            spatial_dim: axis of the upright volume across which slices are taken.
            truth: true mask ``[...]`` in the same orientation, without a channel; None without a label.
            foreground: foreground mask ``[...]``, likewise; None to compute it.

        Returns:
            The view.
        """
        n_dims = image.ndim - 1
        affine = to_affine_nd(n_dims, np.asarray(image.affine))
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(UPRIGHT[:n_dims])
        )
        arrays = [volume.cpu().numpy() for volume in (image, anomaly_map, mask)]
        arrays.append((foreground_mask(arrays[0]) if foreground is None else foreground)[np.newaxis])
        if truth is not None:
            arrays.append(truth[np.newaxis])
        volumes = [_turned(array, turn) for array in arrays]
        spacing = nib.affines.voxel_sizes(affine)[np.argsort(turn[:, 0])].tolist()
        if n_dims == 3:
            volumes = [np.moveaxis(volume, spatial_dim + 1, 3) for volume in volumes]
            del spacing[spatial_dim]
            _, direction = slice_axis(np.asarray(image.affine), spatial_dim)
            numbers = list(range(volumes[0].shape[3]))[::direction]
        else:
            volumes = [picture[..., np.newaxis] for picture in volumes]
            numbers = None
        upright, scores, *masks = volumes
        outlined, inside, *true = (mask[0] > 0 for mask in masks)
        return cls(upright, scores[0], outlined, inside, (spacing[0], spacing[1]), numbers, *true)

    @cached_property
    def shown(self) -> np.ndarray:
        """Slices that show a region of the mask or of the truth: ``[R,S]``, true from half its largest area on."""
        regions = [find_regions(self.scores, self.mask, threshold=-np.inf)]
        if self.truth is not None:
            regions.append(find_regions(self.truth))
        areas = np.concatenate([_areas(each) for each in regions])
        return areas >= np.maximum(areas.max(axis=1, keepdims=True) / 2, 1)

    def box(self, margin: int = 4) -> tuple[slice, slice]:
        """Return the rows and columns of the foreground in all slices, with a margin in pixels."""
        projection = np.any(self.foreground, axis=2)
        rows, columns = (np.flatnonzero(projection.any(axis)) for axis in (1, 0))
        return (
            slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
            slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
        )


def _turned(array: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Return a view of ``[C,...]`` with its spatial axes turned by an orientation transform of nibabel."""
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(array, 0, -1), turn), -1, 0)


def slice_axis(affine: np.ndarray, spatial_dim: int) -> tuple[int, int]:
    """Return the array axis of an axis of the upright volume, and 1 or -1 for the same or the opposite direction."""
    world_axis, sign = nib.orientations.axcodes2ornt(UPRIGHT)[spatial_dim]
    orientation = nib.orientations.io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == world_axis)[0])
    return axis, 1 if orientation[axis, 1] == sign else -1


def _areas(regions: Regions) -> np.ndarray:
    """Count the pixels ``[R,S]`` of each region in each slice of ``[H,W,S]``."""
    n_slices = regions.labels.shape[2]
    inside = np.nonzero(regions.labels)
    cells = (regions.labels[inside] - 1) * n_slices + inside[2]
    return np.bincount(cells, minlength=len(regions.peaks) * n_slices).reshape(-1, n_slices)


def covering_slices(shown: np.ndarray, scores: np.ndarray, n_slices: int) -> list[int]:
    """Select few slices that show all regions: always that with the most of those not shown yet.

    Args:
        shown: slices that show each region ``[R,S]``.
        scores: score of each slice ``[S]``, which decides between slices that show as many.
        n_slices: largest number of slices.

    Returns:
        Indices in the order of their selection; no more than it takes.
    """
    selected: list[int] = []
    while len(selected) < n_slices and shown.any():
        counts = shown.sum(axis=0)
        best = int(np.lexsort((scores, counts))[-1])
        selected.append(best)
        shown = shown[~shown[:, best]]
    return selected


def overlay_png(view: SliceView, title: str = "", n_slices: int = 6) -> bytes:
    """Draw slices in their order: plain above, below with the map and the outlines of the mask and of the truth.

    These are slices that show all regions of both masks as far as they go, then those with the highest scores.

    Args:
        view: slices of the case.
        title: title of the picture.
        n_slices: largest number of slices.

    Returns:
        Content of a PNG file.
    """
    highest = view.scores.max((0, 1))
    covering = covering_slices(view.shown, highest, n_slices)
    ranked = [*covering, *(index for index in np.argsort(highest)[::-1] if index not in covering)]
    indices = np.sort(ranked[:n_slices])
    box = view.box()
    image = _side_by_side(np.moveaxis(view.image[:, box[0], box[1], indices], 0, 2))
    shown = windowed(image, brightest_of(image))
    scores = _side_by_side(view.scores[box][..., indices])

    aspect = view.spacing[0] / view.spacing[1]
    height, width = scores.shape[0] * view.spacing[0], scores.shape[1] * view.spacing[1]
    panel = 3.0 * len(indices) ** 0.5
    scale = min(1.6 * len(indices) / width, panel / height) if len(indices) > 1 else 4.0 / max(height, width)
    wide, high = max(width * scale, 4.0), height * scale
    below = BELOW if view.truth is None else BELOW + LEGEND
    whole = below + 2 * high + ABOVE
    figure = Figure(figsize=(wide, whole), dpi=110, facecolor="black")  # fixed positions: a layout engine draws twice
    axes = [figure.add_axes((0, bottom / whole, 1, high / whole)) for bottom in (below + high, below)]
    for axis in axes:
        axis.imshow(shown, aspect=aspect, interpolation="nearest")
        axis.set_axis_off()
    axes[1].imshow(heat(scores), aspect=aspect)
    dashed: dict[str, Any] = {"linestyles": "--", "path_effects": [withStroke(linewidth=2, foreground="black")]}
    for mask, colour, style in ((view.mask, MASK_COLOUR, {}), (view.truth, TRUTH_COLOUR, dashed)):
        outlined = None if mask is None else _side_by_side(mask[box][..., indices])
        if outlined is not None and outlined.any() and not outlined.all():
            axes[1].contour(outlined, levels=[0.5], colors=colour, linewidths=0.9, **style)
    if view.truth is not None:
        figure.legend(
            [Line2D([], [], color=MASK_COLOUR), Line2D([], [], color=TRUTH_COLOUR, linestyle="--")],
            ["mask", "label"],
            loc="center",
            bbox_to_anchor=(0.5, (BELOW + LEGEND / 4) / whole),
            ncols=2,
            fontsize=7,
            labelcolor="white",
            frameon=False,
        )
    bar = figure.colorbar(
        HEAT,
        cax=figure.add_axes((0.5 - 1.5 / wide, 0.4 / whole, 3 / wide, 0.08 / whole)),
        orientation="horizontal",
        extend="max",
    )
    bar.set_label("anomaly score (1 = decision threshold)", color="white", fontsize=7, labelpad=1)
    bar.ax.axvline(1.0, color=MASK_COLOUR, linewidth=1.2)
    bar.ax.tick_params(colors="white", labelsize=6)
    numbers = view.numbers
    named = "  slices " + ", ".join(str(numbers[index]) for index in indices) if numbers is not None else ""
    figure.text(0.5, 1 - 0.08 / whole, title + named, color="white", fontsize=8, ha="center", va="top")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def heat(scores: np.ndarray) -> np.ndarray:
    """Return colours with opacity ``[...,4]`` in [0,1] of calibrated scores; scores below 1 are transparent."""
    colours = HEAT.to_rgba(scores)
    colours[..., 3] = 0.8 * np.clip(scores - 1, 0, 1)
    return colours


def windowed(image: np.ndarray, brightest: float) -> np.ndarray:
    """Return colours ``[...,3]`` in [0,1] of an image ``[...,C]``, C 1 or 3; see `brightest_of`."""
    return np.clip(np.repeat(image, 3 // image.shape[-1], axis=-1) / brightest, 0, 1)


def brightest_of(image: np.ndarray) -> float:
    """Return the value that is drawn white: the 99.8th percentile of an image."""
    return max(float(np.percentile(subsample(image), 99.8)), 1e-6)


def _side_by_side(slices: np.ndarray) -> np.ndarray:
    """Place slices ``[H,W,...,n]`` side by side, ``[H,n*W,...]``."""
    return np.concatenate(np.moveaxis(slices, -1, 0), axis=1)
