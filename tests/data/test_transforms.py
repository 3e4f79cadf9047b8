"""Transforms: checks of images, scaling of intensities and smoothing of maps."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.intensities import ScaleForegroundPercentilesd
from scripts.data.transforms import CheckImaged, SmoothMapd
from scripts.errors import InputError


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def check(tensor):
    return CheckImaged("image")({"image": tensor, "case": "a"})["image"]


def scale(tensor, lower=0.5, upper=99.5, headroom=0.0):
    return ScaleForegroundPercentilesd("image", lower, upper, headroom)({"image": tensor})["image"]


class TestCheckImaged:
    @pytest.mark.parametrize("shape", [(1, 20, 30), (3, 20, 30), (1, 20, 30, 4), (3, 20, 30, 4), (1, 20, 30, 1)])
    def test_images_and_volumes_pass(self, shape):
        tensor = image(*shape)
        assert torch.equal(check(tensor), tensor)

    @pytest.mark.parametrize("channels", [2, 4])
    def test_alpha_is_dropped(self, channels):
        tensor = image(channels, 20, 30)
        assert torch.equal(check(tensor), tensor[: channels - 1])

    def test_other_keys_and_meta_data_are_kept(self):
        tensor = MetaTensor(image(4, 20, 30), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
        case = CheckImaged("image")({"image": tensor, "case": "a"})
        assert case["case"] == "a"
        assert torch.equal(case["image"].affine, tensor.affine)
        assert tensor.shape == (4, 20, 30)

    @pytest.mark.parametrize("shape", [(6, 20, 30, 4), (2, 20, 30, 4), (4, 20, 30, 4), (5, 20, 30)])
    def test_several_volumes_raise(self, shape):
        with pytest.raises(InputError, match=f"has {shape[0]} volumes"):
            check(image(*shape))

    @pytest.mark.parametrize("shape", [(1, 20), (1, 20, 30, 4, 5)])
    def test_wrong_number_of_dimensions_raises(self, shape):
        with pytest.raises(InputError, match=f"has {len(shape) - 1} dimensions"):
            check(image(*shape))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_non_finite_values_raise(self, bad):
        tensor = image(1, 20, 30)
        tensor[0, 3, 4:6] = bad
        with pytest.raises(InputError, match=r"^2 voxels are NaN or infinite"):
            check(tensor)

    def test_alpha_may_be_non_finite(self):
        tensor = image(4, 20, 30)
        tensor[3] = float("nan")
        assert torch.equal(check(tensor), tensor[:3])

    @pytest.mark.parametrize("value", [0.0, 7.0])
    def test_constant_image_raises(self, value):
        with pytest.raises(InputError, match=f"every voxel is {value:g};"):
            check(torch.full((1, 20, 30, 3), value))

    def test_constant_image_with_alpha_raises(self):
        tensor = torch.full((2, 20, 30), 7.0)
        tensor[1] = image(20, 30)
        with pytest.raises(InputError, match="every voxel is 7"):
            check(tensor)

    def test_integers_pass(self):
        tensor = torch.arange(600).reshape(1, 20, 30)
        assert torch.equal(check(tensor), tensor)

    def test_missing_key(self):
        with pytest.raises(KeyError):
            CheckImaged("image")({"case": "a"})
        assert CheckImaged("image", allow_missing_keys=True)({"case": "a"}) == {"case": "a"}


class TestScaleForegroundPercentilesd:
    def test_headroom_keeps_bright_lesions_apart(self):
        brain = image(1, 100, 100) * 800
        brain[0, :2, :2] = 1300
        brain[0, 2:4, :2] = 1500
        scaled = scale(brain, headroom=0.3)
        normal = scaled[0, 4:]
        assert normal.max() == pytest.approx(0.7, abs=0.01)
        assert 1 >= scaled[0, 3, 0] > scaled[0, 0, 0] > normal.max() + 0.02

    @pytest.mark.parametrize("headroom", [-0.1, 1.0])
    def test_headroom_out_of_range_raises(self, headroom):
        with pytest.raises(InputError, match="headroom"):
            ScaleForegroundPercentilesd("image", headroom=headroom)

    def test_background_has_no_influence(self):
        brain = image(1, 20, 30) * 800
        scaled = scale(brain)
        padded = torch.zeros(1, 200, 300)
        padded[:, 50:70, 60:90] = brain
        scaled_padded = scale(padded)
        torch.testing.assert_close(scaled_padded[:, 50:70, 60:90], scaled)
        scaled_padded[:, 50:70, 60:90] = 0
        assert not scaled_padded.any()

    def test_percentiles_become_0_and_1(self):
        values = torch.arange(1.0, 1002.0).reshape(1, 7, 143)
        low, high = np.percentile(values, [10, 90])
        expected = ((values - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(scale(values, 10, 90), expected.float())
        assert scale(values, 10, 90).unique().numel() < 1001  # values outside are clipped

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.uint8])
    def test_range_of_every_dtype(self, dtype):
        scaled = scale((image(1, 20, 30) * 100).to(dtype))
        assert scaled.dtype == torch.float32
        assert (float(scaled.min()), float(scaled.max())) == (0, 1)

    def test_scale_invariance(self):
        tensor = image(1, 20, 30)
        torch.testing.assert_close(scale(tensor * 1000), scale(tensor), rtol=1e-4, atol=1e-5)

    def test_colours_keep_their_proportion(self):
        grey = image(1, 20, 30)
        scaled = scale(torch.cat([grey, grey * 2, grey * 4]))
        inside = ((scaled > 0) & (scaled < 1)).all(0)
        assert inside.any()
        red, green, blue = scaled[:, inside]
        assert (red < green).all() and (green < blue).all()
        torch.testing.assert_close((blue - green) / (green - red), torch.full_like(red, 2.0), rtol=1e-3, atol=1e-3)

    def test_negative_values(self):
        hounsfield = image(1, 20, 30) * 2000 - 1500
        scaled = scale(hounsfield)
        low, high = np.percentile(hounsfield, [0.5, 99.5])
        torch.testing.assert_close(scaled, ((hounsfield - low) / (high - low)).clamp(0, 1).float())
        assert float(scaled.std()) > 0.1

    def test_drawing_of_one_grey_value(self):
        drawing = torch.zeros(1, 20, 30)
        drawing[:, 5:10, 5:10] = 200
        assert torch.equal(scale(drawing), drawing / 200)

    def test_single_bright_voxel(self):
        dot = torch.zeros(1, 20, 30)
        dot[0, 3, 4] = -5
        assert torch.equal(scale(dot), (dot + 5) / 5)

    def test_meta_data_are_kept(self):
        tensor = MetaTensor(image(1, 20, 30), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
        before = tensor.clone()
        scaled = scale(tensor)
        assert isinstance(scaled, MetaTensor)
        assert torch.equal(scaled.affine, tensor.affine)
        assert torch.equal(tensor, before)

    @pytest.mark.parametrize(("lower", "upper"), [(-1, 99), (1, 101), (50, 50), (60, 40)])
    def test_percentiles_out_of_range_raise(self, lower, upper):
        with pytest.raises(InputError, match="Percentiles"):
            ScaleForegroundPercentilesd("image", lower, upper)


def spike(spacing):
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    image = MetaTensor(torch.zeros(1, 41, 41, 41), affine=affine)
    image[0, 20, 20, 20] = 1
    return image


class TestSmoothMapd:
    def test_width_in_mm_along_every_axis(self):
        spacing = (0.5, 1.0, 2.0)
        smooth = SmoothMapd("map", 2.0)({"map": spike(spacing)})["map"][0]
        assert float(smooth.sum()) == pytest.approx(1, rel=1e-3)
        for axis, length in enumerate(spacing):
            others = tuple(other for other in range(3) if other != axis)
            marginal = smooth.as_tensor().sum(others)
            distances = (torch.arange(41) - 20) * length
            assert float((marginal * distances.square()).sum() ** 0.5) == pytest.approx(2.0, rel=0.1)

    @pytest.mark.parametrize("sigma", [None, 0])
    def test_no_smoothing(self, sigma):
        image = spike((1, 1, 1))
        assert SmoothMapd("map", sigma)({"map": image})["map"] is image

    def test_negative_width_raises(self):
        with pytest.raises(InputError, match="smoothing_mm"):
            SmoothMapd("map", -1.0)
