"""Slices as small inline pictures of an HTML file."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

from ..inference.patches import CasePatches
from ..inference.visualization import HEAT, SliceView, brightest_of, covering_slices, heat, windowed

LONGEST_SIDE = 256  # pixels of a picture
MAX_SLICES = 32  # pictures of a case


class SlicePictures:
    """Draw slices of a case: the image, and layers on top of it.

    Args:
        view: slices of the case.
        patches: patches of the case.
    """

    def __init__(self, view: SliceView, patches: CasePatches) -> None:
        self.box = view.box()
        self.image = np.moveaxis(view.image[:, self.box[0], self.box[1]], 0, 3)
        self.brightest = brightest_of(self.image)
        self.scores, self.mask, self.foreground = (a[self.box] for a in (view.scores, view.mask, view.foreground))
        self.truth = None if view.truth is None else view.truth[self.box]
        self.patches = patches
        height, width = self.scores.shape[0] * view.spacing[0], self.scores.shape[1] * view.spacing[1]
        scale = min(LONGEST_SIDE, max(self.scores.shape[:2])) / max(height, width)
        self.width, self.height = max(1, round(width * scale)), max(1, round(height * scale))

    def draw(self, index: int) -> dict[str, str]:
        """Draw a scored slice.

        Args:
            index: index into the scored slices of the patches.

        Returns:
            Data URIs of the ``plain`` image and of the layers ``heat``, ``components`` and ``rarity``, which are
            transparent outside the foreground; and the paths of outlines in pixels, ``outline`` of the mask and
            ``truth_outline``, empty without a label.
        """
        number = self.patches.slices[index]
        plain = self._shrunk(windowed(self.image[:, :, number], self.brightest), Image.Resampling.LANCZOS)
        warm = self._shrunk(heat(self.scores[..., number]), Image.Resampling.BILINEAR)
        warm.thumbnail((LONGEST_SIDE // 4, LONGEST_SIDE // 4))  # no finer than the patches
        return {
            "plain": data_uri(plain, quality=70),
            "heat": data_uri(warm, quality=60, alpha_quality=60),
            "components": self._patch_layer(component_colours(self.patches.components[index]), number),
            "rarity": self._patch_layer(HEAT.to_rgba(self.patches.rarity[index].round(1)), number),
            "outline": self._outline(self.mask[..., number]),
            "truth_outline": "" if self.truth is None else self._outline(self.truth[..., number]),
        }

    def _shrunk(self, colours: np.ndarray, resampling: Image.Resampling) -> Image.Image:
        """Resize colours ``[h,w,3 or 4]`` in [0,1] to the size of the picture."""
        picture = Image.fromarray(np.round(colours * 255).astype(np.uint8))
        return picture.resize((self.width, self.height), resampling)

    def _patch_layer(self, colours: np.ndarray, number: int) -> str:
        """Draw the colours ``[h,w,3 or 4]`` of patches on the pixels of the foreground."""
        rows, columns = self.patches.rows[self.box[0]], self.patches.columns[self.box[1]]
        pixels = np.zeros((len(rows), len(columns), 4))
        pixels[..., :3] = colours[rows[:, None], columns, :3]
        pixels[..., 3] = self.foreground[..., number]
        pixels *= pixels[..., 3:]
        return data_uri(self._shrunk(pixels, Image.Resampling.NEAREST), lossless=True)

    def _outline(self, mask: np.ndarray) -> str:
        """Return the outline of a mask ``[h,w]`` as an SVG path."""
        scale = np.array([self.height / mask.shape[0], self.width / mask.shape[1]])
        contours = find_contours(np.pad(mask, 1).astype(float), 0.5)
        paths = [approximate_polygon((contour - 0.5) * scale, tolerance=0.7) for contour in contours]
        return "".join("M" + "L".join(f"{x:.4g} {y:.4g}" for y, x in path[:-1]) + "Z" for path in paths)


def representative_slices(scores: np.ndarray, shown: np.ndarray, n_slices: int = MAX_SLICES) -> np.ndarray:
    """Select slices that show the regions, and of each run of neighbours among the others that with the highest score.

    Args:
        scores: score of each slice ``[s]``.
        shown: slices that show each region ``[R,s]``.
        n_slices: largest number of slices; half of it is for the regions.

    Returns:
        Indices in increasing order; the slice with the highest score of all is among them.
    """
    covering = covering_slices(shown, scores, max(1, n_slices // 2))
    others = np.setdiff1d(np.arange(len(scores)), covering)
    runs = np.array_split(others, max(1, min(n_slices - len(covering), len(others))))
    return np.sort([*covering, *(run[np.argmax(scores[run])] for run in runs if len(run))]).astype(int)


def component_colours(components: np.ndarray) -> np.ndarray:
    """Return a colour ``[...,3]`` in [0,1] for each component, the same in every report."""
    hue = components * 0.6180339887 % 1  # the golden ratio keeps the hues of neighbours apart
    saturation, value = 0.85 - 0.2 * (components % 3), 1 - 0.2 * (components // 3 % 3)
    return hsv_to_rgb(np.stack([hue, saturation, value], -1))


def data_uri(picture: Image.Image, **options: Any) -> str:
    """Encode a picture as WebP with the given ``options`` of Pillow."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
