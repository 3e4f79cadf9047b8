"""Resizing as matrix products, against PyTorch's own resizing."""

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d

from scripts.models.resize import cubic_point_weights, cubic_weights, gaussian_weights, linear_weights, repeat_last

SIZES = [(1, 3), (3, 1), (3, 3), (7, 7), (182, 448), (448, 182), (217, 534), (1000, 33), (5, 4)]


def image(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def resized(weights, given, n_out):
    height, width = given.shape[2:]
    return weights(height, n_out[0], given) @ given @ weights(width, n_out[1], given).mT


class TestWeights:
    @pytest.mark.parametrize("sigma", [0.3, 0.5, 2.0])
    def test_smoothing_equals_scipy_away_from_the_border(self, sigma):
        given = image(60, 1)[0, 0, :, 0]
        weights = gaussian_weights(60, sigma, given)
        torch.testing.assert_close(weights.sum(1), torch.ones_like(given))
        expected = torch.from_numpy(gaussian_filter1d(given.numpy(), sigma, truncate=10))
        torch.testing.assert_close((weights @ given)[20:-20], expected[20:-20], rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("n_in", "n_out"), SIZES)
    @pytest.mark.parametrize(("weights", "mode"), [(linear_weights, "bilinear"), (cubic_weights, "bicubic")])
    def test_antialiased_equals_interpolate(self, weights, mode, n_in, n_out):
        given, size = image(n_in, 20), (n_out, 31)
        expected = F.interpolate(given, size=size, mode=mode, antialias=True)
        torch.testing.assert_close(resized(weights, given, size), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("n_in", "n_out"), [(1, 14), (4, 56), (32, 448)])
    def test_enlarging_equals_interpolate(self, n_in, n_out):
        given, size = image(n_in, 5), (n_out, 70)
        expected = F.interpolate(given, size=size, mode="bilinear")
        torch.testing.assert_close(resized(linear_weights, given, size), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("n_out", [1, 4, 32, 36, 38, 64, 200])
    def test_cubic_point_equals_interpolate(self, n_out):
        given, scale = image(37, 37), (n_out + 0.1) / 37
        expected = F.interpolate(given, scale_factor=[scale, 1], mode="bicubic")
        rows = cubic_point_weights(37, n_out, scale, given)
        torch.testing.assert_close(rows @ given, expected, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("n", [1, 2, 37, 448])
    def test_same_size_is_exact(self, n):
        identity = torch.eye(n)
        assert torch.equal(linear_weights(n, n, identity), identity)
        assert torch.equal(cubic_weights(n, n, identity), identity)
        assert torch.equal(cubic_point_weights(n, n, 1.0, identity), identity)

    @pytest.mark.parametrize(("n", "expected"), [(13, 14), (14, 14), (15, 28), (1, 14)])
    def test_last_row_is_repeated(self, n, expected):
        weights = torch.rand(n, 5)
        repeated = repeat_last(weights, 14)
        assert repeated.shape == (expected, 5)
        assert torch.equal(repeated[:n], weights)
        assert torch.equal(repeated[n:], weights[-1:].expand(expected - n, 5))

    def test_one_channel_is_repeated_three_are_kept(self):
        assert torch.equal(linear_weights(1, 3, torch.zeros(1)), torch.ones(3, 1))
        assert torch.equal(linear_weights(3, 3, torch.zeros(1)), torch.eye(3))
