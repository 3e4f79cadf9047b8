"""Scaling by tissue: its formula, what must not shift it, and kinds of images that it must not spoil."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.intensities import ScaleForegroundPercentilesd, ScaleTissued, tissue_quantiles
from scripts.errors import InputError


def scale(tensor, **arguments):
    return ScaleTissued("image", **arguments)({"image": tensor})["image"]


def percentiles(tensor):
    return ScaleForegroundPercentilesd("image")({"image": tensor})["image"]


def head(seed=0):
    """Return a head ``[1,40,40,20]`` of three tissues with noise, on zeros."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 40, 20)), indexing="ij")
    radius = np.sqrt(np.square(axes).sum(0))
    tissue = np.select([radius < 0.3, radius < 0.7], [300.0, 1500.0], 1000.0) + generator.normal(0, 90, radius.shape)
    return torch.from_numpy(np.where(radius < 0.95, tissue.clip(1), 0)).float().unsqueeze(0)


def with_block(image, level, depth):
    """Replace the foreground in the first slices of the second axis; return the image and a mask of the rest."""
    changed = image.clone()
    changed[:, :, :depth] = level
    changed *= image != 0
    rest = image != 0
    rest[:, :, :depth] = False
    return changed, rest


class TestTissueQuantiles:
    def test_equal_weights_above_the_median_of_heights(self):
        values = np.arange(1.0, 1001.0)
        heights = values - values[4]
        limit = heights[np.searchsorted(np.cumsum(heights.clip(0)), heights.clip(0).sum() / 2)]
        weights = heights.clip(0, limit)
        first, second = tissue_quantiles(values, (10, 60))
        assert weights[values <= first].sum() / weights.sum() == pytest.approx(0.1, abs=2e-3)
        assert weights[values <= second].sum() / weights.sum() == pytest.approx(0.6, abs=2e-3)

    def test_affine_equivariance(self):
        values = np.sort(np.random.default_rng(0).normal(0, 1, 5001))
        expected = 3 * np.array(tissue_quantiles(values, (10, 60))) - 7
        np.testing.assert_allclose(tissue_quantiles(3 * values - 7, (10, 60)), expected)

    def test_single_value(self):
        assert tissue_quantiles(np.full(9, 5.0), (10, 60)) == (5, 5)


class TestScaleTissued:
    @pytest.mark.parametrize("level", [2300.0, 30.0, 300.0])
    @pytest.mark.parametrize("depth", [5, 9])
    def test_lesion_leaves_tissue_in_place(self, level, depth):
        image = head()
        changed, rest = with_block(image, level, depth)
        shift = float((scale(changed) - scale(image))[rest].abs().mean())
        assert shift < 0.06
        if level > 2000:
            assert shift < float((percentiles(changed) - percentiles(image))[rest].abs().mean()) / 2

    def test_lesion_stays_brighter_than_tissue(self):
        image = head()
        changed, rest = with_block(image, 2300.0, 5)
        scaled = scale(changed)
        assert scaled[rest].quantile(0.99) < scaled[:, :, :5].max() - 0.1

    @pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
    def test_noise_background_leaves_tissue_visible(self, share):
        inside = head()
        tissue = inside[inside != 0]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(int(len(tissue) * share / (1 - share)), generator=generator).abs() * 40
        scaled = scale(torch.cat([tissue, noise]))[: len(tissue)]
        assert 0.3 < float(scaled.median()) < 0.6
        assert float((scaled == 1).float().mean()) < 0.02

    @pytest.mark.parametrize("air", [0.3, 0.8])
    def test_at_most_a_share_is_clipped(self, air):
        generator = np.random.default_rng(0)
        n_air, n_tissue = int(air * 1e5), int((1 - air) * 1e5)
        parts = (-1000, 10, n_air), (-850, 60, n_tissue // 5), (50, 30, n_tissue // 2), (600, 300, n_tissue // 10)
        hounsfield = np.concatenate([generator.normal(*part) for part in parts])
        scaled = scale(torch.from_numpy(hounsfield)[None])
        assert float((scaled == 0).float().mean()) <= 0.0201
        assert float((scaled == 1).float().mean()) <= 0.0201

    def test_background_has_no_influence(self):
        image = head()
        padded = torch.nn.functional.pad(image, (3, 9, 40, 50, 0, 6))
        assert torch.equal(scale(padded)[:, :40, 40:80, 3:23], scale(image))

    def test_affine_invariance(self):
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, 40, 50, generator=generator)
        torch.testing.assert_close(scale(7 * image + 3), scale(image + 1), rtol=0, atol=1e-5)

    def test_large_image_is_thinned_out_evenly(self):
        values = torch.rand(1, 1200, 1900, generator=torch.Generator().manual_seed(0)) + 1
        torch.testing.assert_close(scale(values)[:, ::2], scale(values[:, ::2]), rtol=0, atol=2e-3)

    def test_colours_keep_their_proportion(self):
        grey = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0)) + 0.5
        scaled = scale(torch.cat([grey, grey * 2, grey * 4]))
        inside = ((scaled > 0) & (scaled < 1)).all(0)
        assert inside.any()
        red, green, blue = scaled[:, inside]
        torch.testing.assert_close((blue - green) / (green - red), torch.full_like(red, 2.0), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int16, torch.uint8])
    def test_range_of_every_dtype(self, dtype):
        scaled = scale((torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0)) * 100 + 50).to(dtype))
        assert scaled.dtype == torch.float32
        assert 0 <= float(scaled.min()) < 0.2 < 0.6 < float(scaled.max()) <= 1

    def test_drawing_of_one_grey_value(self):
        drawing = torch.zeros(1, 20, 30)
        drawing[:, 5:10, 5:10] = 200
        assert torch.equal(scale(drawing), drawing / 200)

    def test_single_dark_voxel(self):
        dot = torch.zeros(1, 20, 30)
        dot[0, 3, 4] = -5
        torch.testing.assert_close(scale(dot), (dot + 5) / 5)

    def test_meta_data_are_kept(self):
        tensor = MetaTensor(head(), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
        before = tensor.clone()
        scaled = scale(tensor)
        assert isinstance(scaled, MetaTensor)
        assert torch.equal(scaled.affine, tensor.affine)
        assert torch.equal(tensor, before)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"lower_percent": 60},
            {"upper_percent": 101},
            {"below": -1},
            {"above": -0.1},
            {"headroom": 1},
            {"clipped": 50},
        ],
    )
    def test_arguments_out_of_range_raise(self, wrong):
        with pytest.raises(InputError, match="must"):
            ScaleTissued("image", **wrong)
