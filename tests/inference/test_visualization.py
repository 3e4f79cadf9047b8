"""Slices of a case: what they show, and the picture of them."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.foreground import foreground_mask
from scripts.inference import visualization
from scripts.inference.visualization import MASK_COLOUR, TRUTH_COLOUR, SliceView, covering_slices, heat, overlay_png
from tests.tiny_cases import AFFINE

SHAPE = (30, 24, 20)


def ball(centre, radius, shape=SHAPE):
    """Return a ball ``[H,W,S]``."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return np.square(grid - np.reshape(centre, (3, 1, 1, 1))).sum(0) <= radius**2


def make_view(mask, truth=None, scores=None):
    """Return a view of noise with this mask and truth."""
    image = np.random.default_rng(0).uniform(0.1, 1, (1, *mask.shape))
    scores = 2.0 * mask if scores is None else scores
    return SliceView(image, scores, mask, foreground_mask(image), (1.0, 1.0), list(range(mask.shape[2])), truth)


def drawn_slices(view, monkeypatch):
    """Return the indices of the slices in the overlay of a view."""
    drawn = []
    side_by_side = visualization._side_by_side
    monkeypatch.setattr(visualization, "_side_by_side", lambda slices: drawn.append(slices) or side_by_side(slices))
    overlay_png(view)
    scores = drawn[1]
    return [int(np.flatnonzero((view.scores[view.box()] == scores[..., [n]]).all((0, 1)))[0]) for n in range(6)]


class TestSliceView:
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
    def test_truth_is_turned_like_the_mask(self, codes):
        mask = ball((8, 12, 5), 4)
        mask[:5] = False
        turn = nib.orientations.axcodes2ornt(codes)
        affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
        turned = nib.orientations.apply_orientation(mask, turn)
        tensor = MetaTensor(torch.from_numpy(np.ascontiguousarray(turned))[None].float(), affine=affine)
        view = SliceView.of(tensor, tensor, tensor, 2, turned)
        assert view.truth is not None and view.truth.any() and np.array_equal(view.truth, view.mask)

    def test_no_truth(self):
        picture = MetaTensor(torch.rand(1, 8, 9), affine=np.eye(3))
        assert SliceView.of(picture, picture, picture, 2).truth is None
        truth = np.zeros((8, 9), bool)
        view = SliceView.of(picture, picture, picture, 2, truth)
        assert view.truth is not None and view.truth.shape == view.mask.shape

    def test_each_region_is_shown_from_half_its_area(self):
        mask, truth = ball((8, 8, 4), 3) | ball((20, 15, 14), 4), ball((9, 8, 5), 3)
        shown = make_view(mask, truth, scores=2.0 * mask + ball((20, 15, 14), 4)).shown
        expected = []
        for region in (ball((20, 15, 14), 4), ball((8, 8, 4), 3), truth):  # regions of the mask by their peaks
            areas = region.sum((0, 1))
            expected.append(areas >= areas.max() / 2)
        assert np.array_equal(shown, expected)

    def test_empty_masks_have_no_regions(self):
        empty = np.zeros(SHAPE, bool)
        assert make_view(empty, empty).shown.shape == (0, SHAPE[2])


class TestCoveringSlices:
    @pytest.mark.parametrize("seed", range(5))
    def test_all_regions_are_shown(self, seed):
        generator = np.random.default_rng(seed)
        shown = generator.random((12, 30)) < 0.1
        selected = covering_slices(shown, generator.random(30), 30)
        assert np.array_equal(shown[:, selected].any(1), shown.any(1))
        assert len(set(selected)) == len(selected) <= 12
        counts = [shown[:, selected[:n]].any(1).sum() for n in range(len(selected) + 1)]
        assert (np.diff(counts) > 0).all()

    def test_score_decides_between_equals(self):
        shown = np.ones((1, 4), bool)
        assert covering_slices(shown, np.array([1.0, 3.0, 2.0, 0.0]), 4) == [1]
        assert covering_slices(np.eye(4, dtype=bool), np.array([1.0, 3.0, 2.0, 0.0]), 2) == [1, 2]


class TestOverlay:
    def test_regions_and_truths_before_high_scores(self, monkeypatch):
        mask, truth = ball((8, 8, 3), 1.5), ball((20, 15, 16), 1.5)
        scores = np.random.default_rng(1).uniform(0, 0.5, SHAPE)
        scores[..., 6:13] += 9  # the highest slices, beyond any region
        slices = drawn_slices(make_view(mask, truth, scores), monkeypatch)
        assert slices == sorted(slices)
        assert any(mask[..., index].any() for index in slices)
        assert any(truth[..., index].any() for index in slices)
        assert sum(6 <= index < 13 for index in slices) == 4

    @pytest.mark.parametrize("with_mask", [False, True])
    @pytest.mark.parametrize("truth", [None, np.zeros(SHAPE, bool), ball((20, 15, 16), 4)])
    def test_lines_of_mask_and_truth(self, with_mask, truth, monkeypatch):
        colours = []
        monkeypatch.setattr(
            "matplotlib.axes.Axes.contour",
            lambda axes, mask, colors, **style: colours.append((colors, bool(style.get("linestyles")))),
        )
        assert overlay_png(make_view(ball((8, 8, 3), 3) & with_mask, truth)).startswith(b"\x89PNG")
        expected = [(MASK_COLOUR, False)] * with_mask
        if truth is not None and truth.any():
            expected.append((TRUTH_COLOUR, True))
        assert colours == expected


class TestHeat:
    def test_opacity_rises_from_the_decision_threshold(self):
        opacity = heat(np.array([-3.0, 0.0, 0.99, 1.0, 1.3, 2.0, 9.0]))[:, 3]
        assert (opacity[:4] == 0).all() and (np.diff(opacity[3:6]) > 0).all() and opacity[5] == opacity[6] < 1
