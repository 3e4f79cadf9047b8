"""A case as it is looked at: upright slices, one after the other."""

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

# In units of the calibrated limit, the same in every picture so that healthy images stay dark.
HEAT = ScalarMappable(Normalize(0.0, 2.0), "inferno")
ABOVE, BELOW = 0.3, 0.6  # room for the title and the scale, in inches
N_DRAWN = 1 << 18  # voxels that tell what is frequent or bright in a volume


@dataclass(frozen=True)
class SliceView:
    """The S upright slices of a volume, or the one of an image.

    Attributes:
        image: ``[C,H,W,S]`` in [0,1].
        scores: calibrated map ``[H,W,S]``.
        mask: what was found, ``[H,W,S]``.
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
        """Turn a case upright, as the network saw it; nothing is copied.

        Args:
            image: ``[C,...]`` in [0,1], in the orientation of the input.
            anomaly_map: ``[1,...]`` likewise.
            mask: ``[1,...]`` likewise.
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
        image_, scores, found = volumes
        return cls(image_, scores[0], found[0] > 0, (spacing[0], spacing[1]), numbers)

    @cached_property
    def foreground(self) -> np.ndarray:
        """Where the image is not background, ``[H,W,S]``."""
        return foreground_mask(self.image)

    def box(self, margin: int = 4) -> tuple[slice, slice]:
        """Rows and columns without a border of background, but for a margin in pixels."""
        seen = np.any(self.foreground, axis=2)
        rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
        return (
            slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
            slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
        )


def _turned(array: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """A view of ``[C,...]`` with its spatial axes turned as nibabel's orientations say."""
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(array, 0, -1), turn), -1, 0)


def foreground_mask(image: np.ndarray) -> np.ndarray:
    """All but the most frequent grey value, unless that is of the brighter half or the only one.

    A background need not be 0: it is scaled as well, which makes it grey where other voxels are negative. Of a large
    image some voxels tell which value that is.

    Args:
        image: ``[C,...]``.

    Returns:
        ``[...]``, true in the foreground.
    """
    grey = image[0] if len(image) == 1 else image.max(0)
    some = subsample(grey)
    values, counts = np.unique(some, return_counts=True)
    most_frequent = values[counts.argmax()]
    if most_frequent > np.median(some) or len(values) == 1:
        return np.ones(grey.shape, bool)
    return grey != most_frequent


def subsample(array: np.ndarray) -> np.ndarray:
    """Values ``[n]`` that stand for a large array, always the same ones; of a small one all."""
    if array.size <= N_DRAWN:
        return array.ravel()
    drawn = np.random.default_rng(0).integers(array.size, size=N_DRAWN)
    return array[np.unravel_index(drawn, array.shape)]


def slice_axis(affine: np.ndarray, spatial_dim: int) -> tuple[int, int]:
    """Axis of an array that an axis of the upright volume comes from, and 1 or -1 as it runs the same way or back."""
    world_axis, sign = nib.orientations.axcodes2ornt(UPRIGHT)[spatial_dim]
    orientation = nib.orientations.io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == world_axis)[0])
    return axis, 1 if orientation[axis, 1] == sign else -1


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
