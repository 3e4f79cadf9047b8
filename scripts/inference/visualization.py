"""Upright slices of a case, and the picture of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd

from ..data.transforms import UPRIGHT

# Calibrated scores from 0 to 2, the same in every picture so that healthy images stay dark.
HEAT = ScalarMappable(Normalize(0.0, 2.0), "inferno")
ABOVE, BELOW = 0.3, 0.6  # room for the title and the scale, in inches
N_DRAWN = 1 << 18  # voxels that statistics of a volume are computed from


@dataclass(frozen=True)
class SliceView:
    """The S upright slices of a volume, or the single slice of an image.

    Attributes:
        image: ``[C,H,W,S]`` in [0,1].
        scores: calibrated map ``[H,W,S]``.
        mask: anomalous pixels ``[H,W,S]``.
        spacing: height and width of a pixel, in mm.
        numbers: index of each slice in the array of the input; None for an image.
    """

    image: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float]
    numbers: list[int] | None

    @classmethod
    def of(cls, image: MetaTensor, anomaly_map: MetaTensor, mask: MetaTensor, spatial_dim: int) -> SliceView:
        """Turn a case upright, as the network saw it, without copying.

        Args:
            image: ``[C,...]`` in [0,1], in the orientation of the input.
            anomaly_map: ``[1,...]`` in the same orientation.
            mask: ``[1,...]`` in the same orientation.
            spatial_dim: axis of the upright volume across which slices are taken.

        Returns:
            The view.
        """
        n_dims = image.ndim - 1
        affine = to_affine_nd(n_dims, np.asarray(image.affine))
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(UPRIGHT[:n_dims])
        )
        volumes = [_turned(volume.cpu().numpy(), turn) for volume in (image, anomaly_map, mask)]
        spacing = nib.affines.voxel_sizes(affine)[np.argsort(turn[:, 0])].tolist()
        if n_dims == 3:
            volumes = [np.moveaxis(volume, spatial_dim + 1, 3) for volume in volumes]
            del spacing[spatial_dim]
            _, direction = slice_axis(np.asarray(image.affine), spatial_dim)
            numbers = list(range(volumes[0].shape[3]))[::direction]
        else:
            volumes = [picture[..., np.newaxis] for picture in volumes]
            numbers = None
        upright, scores, mask_ = volumes
        return cls(upright, scores[0], mask_[0] > 0, (spacing[0], spacing[1]), numbers)

    @cached_property
    def foreground(self) -> np.ndarray:
        """Foreground mask ``[H,W,S]``, see `foreground_mask`."""
        return foreground_mask(self.image)

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


def foreground_mask(image: np.ndarray) -> np.ndarray:
    """Compute the foreground: all voxels but those of the most frequent grey value.

    If that value is above the median or the only one, there is no background. A background need not be 0: scaling makes
    it grey if other voxels are negative. In a large image the value is estimated from a subsample.

    Args:
        image: ``[C,...]``.

    Returns:
        ``[...]``, true in the foreground.
    """
    grey = image[0] if len(image) == 1 else image.max(0)
    sample = subsample(grey)
    values, counts = np.unique(sample, return_counts=True)
    most_frequent = values[counts.argmax()]
    if most_frequent > np.median(sample) or len(values) == 1:
        return np.ones(grey.shape, bool)
    return grey != most_frequent


def subsample(array: np.ndarray) -> np.ndarray:
    """Draw a fixed sample of values ``[n]`` of a large array; return all values of a small one."""
    if array.size <= N_DRAWN:
        return array.ravel()
    drawn = np.random.default_rng(0).integers(array.size, size=N_DRAWN)
    return array[np.unravel_index(drawn, array.shape)]


def slice_axis(affine: np.ndarray, spatial_dim: int) -> tuple[int, int]:
    """Return the array axis of an axis of the upright volume, and 1 or -1 for the same or the opposite direction."""
    world_axis, sign = nib.orientations.axcodes2ornt(UPRIGHT)[spatial_dim]
    orientation = nib.orientations.io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == world_axis)[0])
    return axis, 1 if orientation[axis, 1] == sign else -1


def overlay_png(view: SliceView, title: str = "", n_slices: int = 6) -> bytes:
    """Draw the slices with the highest scores in their order: plain above, with map and mask outline below.

    Args:
        view: slices of the case.
        title: title of the picture.
        n_slices: largest number of slices.

    Returns:
        Content of a PNG file.
    """
    indices = np.sort(np.argsort(view.scores.max((0, 1)))[::-1][:n_slices])
    box = view.box()
    image = _side_by_side(np.moveaxis(view.image[:, box[0], box[1], indices], 0, 2))
    shown = windowed(image, brightest_of(image))
    scores, outlined = (_side_by_side(array[box][..., indices]) for array in (view.scores, view.mask))

    aspect = view.spacing[0] / view.spacing[1]
    height, width = scores.shape[0] * view.spacing[0], scores.shape[1] * view.spacing[1]
    panel = 3.0 * len(indices) ** 0.5
    scale = min(1.6 * len(indices) / width, panel / height) if len(indices) > 1 else 4.0 / max(height, width)
    wide, high = max(width * scale, 4.0), height * scale
    whole = BELOW + 2 * high + ABOVE
    figure = Figure(figsize=(wide, whole), dpi=110, facecolor="black")  # fixed positions: a layout engine draws twice
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
    named = "  slices " + ", ".join(str(numbers[index]) for index in indices) if numbers is not None else ""
    figure.text(0.5, 1 - 0.08 / whole, title + named, color="white", fontsize=8, ha="center", va="top")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def heat(scores: np.ndarray) -> np.ndarray:
    """Return colours with opacity ``[...,4]`` in [0,1] of calibrated scores; scores below 0.75 are transparent."""
    colours = HEAT.to_rgba(scores)
    colours[..., 3] = 0.8 * np.clip(2 * (scores - 0.75), 0, 1)
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
