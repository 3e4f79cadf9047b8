"""Inferer of slices: images, volumes, batches and interpolation between slices."""

import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.inference.inferer import DPMMInferer, nonempty_slices


def inputs(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


class Gradient(torch.nn.Module):
    """Network whose map depends on the position in a slice and on its values; keeps the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        rows = torch.arange(images.shape[2]).view(-1, 1)
        columns = torch.arange(images.shape[3]).view(1, -1)
        return images.mean(1, keepdim=True) * (1 + rows + 100 * columns)


def by_hand(volume, spatial_dim):
    n_slices = volume.shape[spatial_dim + 2]
    maps = [Gradient()(volume.select(spatial_dim + 2, index)) for index in range(n_slices)]
    return torch.stack(maps, dim=spatial_dim + 2)


class TestMaps:
    @pytest.mark.parametrize("shape", [(1, 1, 20, 31), (2, 3, 14, 15)])
    def test_images(self, shape):
        images = inputs(*shape)
        assert torch.equal(DPMMInferer()(images, Gradient()), Gradient()(images))

    @pytest.mark.parametrize("spatial_dim", [0, 1, 2])
    @pytest.mark.parametrize("shape", [(1, 1, 20, 17, 15), (2, 3, 15, 20, 17)])
    def test_volumes(self, spatial_dim, shape):
        volumes = inputs(*shape)
        maps = DPMMInferer(spatial_dim)(volumes, Gradient())
        assert maps.shape == (shape[0], 1, *shape[2:])
        assert torch.equal(maps, by_hand(volumes, spatial_dim))

    @pytest.mark.parametrize("slice_batch_size", [1, 4, 7, 100])
    def test_slice_batch_size(self, slice_batch_size):
        volumes, network = inputs(2, 1, 20, 17, 15), Gradient()
        assert torch.equal(DPMMInferer(2, slice_batch_size)(volumes, network), by_hand(volumes, 2))
        assert sum(network.batches) == 30
        assert max(network.batches) == min(slice_batch_size, 30)

    def test_fitted_network(self, fitted_network):
        volume = inputs(1, 1, 30, 21, 3)
        maps = DPMMInferer(2, 2)(volume, fitted_network)
        torch.testing.assert_close(maps, fitted_network(volume), rtol=1e-3, atol=1e-4)

    def test_function_and_script_module(self):
        def network(images):
            return images.mean(1, keepdim=True) * 2

        volume = inputs(1, 3, 20, 17, 5)
        scripted = torch.jit.trace(torch.nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 14, 14))
        assert isinstance(scripted, torch.jit.ScriptModule)
        torch.testing.assert_close(DPMMInferer()(volume, network), network(volume))
        with torch.no_grad():
            expected = torch.stack([scripted(volume[..., index]) for index in range(5)], dim=4)
            torch.testing.assert_close(DPMMInferer()(volume, scripted), expected)

    def test_arguments_of_the_network(self):
        maps = DPMMInferer()(inputs(1, 1, 20, 17), lambda images, add, times: (images + add) * times, 1, times=3)
        torch.testing.assert_close(maps, (inputs(1, 1, 20, 17) + 1) * 3)

    def test_single_slice_of_one_patch(self):
        assert DPMMInferer(2)(inputs(1, 1, 14, 14, 1), Gradient()).shape == (1, 1, 14, 14, 1)
        assert DPMMInferer(0)(inputs(1, 1, 1, 14, 14), Gradient()).shape == (1, 1, 1, 14, 14)


class TestTensors:
    @pytest.mark.parametrize("shape", [(1, 1, 20, 17), (1, 3, 20, 17, 15)])
    def test_meta_tensors(self, shape):
        affine = torch.tensor([[0.0, 2, 0, 5], [3, 0, 0, -4], [0, 0, 4, 1], [0, 0, 0, 1]], dtype=torch.float64)
        images = MetaTensor(inputs(*shape), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
        maps = DPMMInferer()(images, Gradient())
        assert isinstance(maps, MetaTensor)
        assert torch.equal(maps.affine, affine)
        assert maps.meta["filename_or_obj"] == "a.nii.gz"
        assert torch.equal(maps.as_tensor(), DPMMInferer()(images.as_tensor(), Gradient()))
        assert type(DPMMInferer()(images.as_tensor(), Gradient())) is torch.Tensor

    def test_plain_tensors_for_the_network(self):
        types = []
        DPMMInferer()(MetaTensor(inputs(1, 1, 20, 17, 3)), lambda images: types.append(type(images)) or images)
        assert set(types) == {torch.Tensor}

    def test_unchanged_input(self):
        volume = inputs(1, 1, 20, 17, 3)
        DPMMInferer()(volume, lambda images: images.mul_(0))
        assert torch.equal(volume, inputs(1, 1, 20, 17, 3))


class TestEmptySlices:
    def test_empty_slices(self):
        volume, network = inputs(1, 1, 20, 17, 6), Gradient()
        volume[..., 0] = 0
        volume[..., 3] = 0.7
        maps = DPMMInferer(2, 3)(volume, network)
        assert network.batches == [3, 1]
        assert not maps[..., [0, 3]].any()
        assert torch.equal(maps[..., [1, 2, 4, 5]], by_hand(volume, 2)[..., [1, 2, 4, 5]])

    def test_empty_volume(self):
        network = Gradient()
        maps = DPMMInferer()(torch.zeros(1, 1, 20, 17, 6), network)
        assert network.batches == []
        assert maps.shape == (1, 1, 20, 17, 6) and not maps.any()

    def test_nonempty_slices(self):
        slices = torch.zeros(5, 2, 20, 20)
        slices[1, 1, 3, 4] = 1e-3
        slices[3] = inputs(2, 20, 20)
        slices[4] = 5
        assert nonempty_slices(slices).tolist() == [1, 3]
        assert nonempty_slices(torch.zeros(2, 1, 5, 5)).tolist() == []


class TestInterpolation:
    @pytest.mark.parametrize("spatial_dim", [0, 1, 2])
    @pytest.mark.parametrize(
        ("step", "scored"), [(1, [1, 2, 4, 5, 6, 7]), (2, [1, 4, 6, 7]), (5, [1, 7]), (100, [1, 7])]
    )
    def test_slices_between_scored_slices(self, spatial_dim, step, scored):
        network = Gradient()
        volume = inputs(1, 1, 20, 17, 15).movedim(4, spatial_dim + 2)
        slices = volume.movedim(spatial_dim + 2, 0)[:9]
        slices[[0, 3, 8]] = 0.4
        reordered = slices.movedim(0, spatial_dim + 2)
        maps = DPMMInferer(spatial_dim, 2, step)(reordered, network).movedim(spatial_dim + 2, 0)
        dense_maps = DPMMInferer(spatial_dim)(reordered, Gradient()).movedim(spatial_dim + 2, 0)
        assert sum(network.batches) == len(scored)
        assert torch.equal(maps[scored], dense_maps[scored]) and not maps[[0, 3, 8]].any()
        for index in {1, 2, 4, 5, 6, 7} - set(scored):
            before = max(candidate for candidate in scored if candidate < index)
            after = min(candidate for candidate in scored if candidate > index)
            weight = (index - before) / (after - before)
            torch.testing.assert_close(maps[index], (1 - weight) * dense_maps[before] + weight * dense_maps[after])

    def test_images_and_ends_of_volumes(self):
        network = Gradient()
        images, volumes = inputs(5, 1, 20, 17), inputs(2, 1, 20, 17, 3)
        assert torch.equal(DPMMInferer(2, 4, 2)(images, network), Gradient()(images))
        maps = DPMMInferer(2, 4, 2)(volumes, network)
        assert torch.equal(maps[..., [0, 2]], by_hand(volumes, 2)[..., [0, 2]])


class TestErrors:
    @pytest.mark.parametrize("shape", [(20, 17), (1, 20, 17), (1, 1, 1, 20, 17, 3)])
    def test_number_of_dimensions(self, shape):
        with pytest.raises(ValueError, match=r"\[N,C,H,W\]"):
            DPMMInferer()(inputs(*shape), Gradient())

    @pytest.mark.parametrize(
        ("shape", "spatial_dim", "size"),
        [
            ((1, 1, 13, 20), 2, "13 x 20"),
            ((1, 1, 20, 20, 13), 0, "20 x 13"),
            ((1, 1, 13, 20, 20), 1, "13 x 20"),
            ((1, 1, 1, 40, 40), 2, "1 x 40"),
        ],
    )
    def test_slices_smaller_than_a_patch(self, shape, spatial_dim, size):
        with pytest.raises(InputError, match=rf"spatial_dim {spatial_dim} have {size} pixels"):
            DPMMInferer(spatial_dim)(inputs(*shape), Gradient())

    @pytest.mark.parametrize(
        "arguments",
        [{"spatial_dim": 3}, {"spatial_dim": -1}, {"slice_batch_size": 0}, {"slice_batch_size": -2}, {"slice_step": 0}],
    )
    def test_invalid_arguments(self, arguments):
        (name,) = arguments
        with pytest.raises(InputError, match=f"{name} must be"):
            DPMMInferer(**arguments)
