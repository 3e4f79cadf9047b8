"""Slices of images and volumes, put together again."""

import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.inference.inferer import DPMMInferer, nonempty_slices


def inputs(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


class Gradient(torch.nn.Module):
    """A map that depends on the place in the slice and on the slice's own values, and counts its calls."""

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


@pytest.mark.parametrize("shape", [(1, 1, 20, 31), (2, 3, 14, 15)])
def test_images_are_handed_on_as_they_are(shape):
    given = inputs(*shape)
    assert torch.equal(DPMMInferer()(given, Gradient()), Gradient()(given))


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 20, 17, 15), (2, 3, 15, 20, 17)])
def test_volumes_equal_slice_by_slice(spatial_dim, shape):
    given = inputs(*shape)
    found = DPMMInferer(spatial_dim)(given, Gradient())
    assert found.shape == (shape[0], 1, *shape[2:])
    assert torch.equal(found, by_hand(given, spatial_dim))


@pytest.mark.parametrize("slice_batch_size", [1, 4, 7, 100])
def test_the_batch_size_does_not_matter(slice_batch_size):
    given, network = inputs(2, 1, 20, 17, 15), Gradient()
    assert torch.equal(DPMMInferer(2, slice_batch_size)(given, network), by_hand(given, 2))
    assert sum(network.batches) == 30
    assert max(network.batches) == min(slice_batch_size, 30)


def test_a_real_network_gives_its_own_maps(fitted_network):
    given = inputs(1, 1, 30, 21, 3)
    found = DPMMInferer(2, 2)(given, fitted_network)
    torch.testing.assert_close(found, fitted_network(given), rtol=1e-3, atol=1e-4)


def test_empty_slices_are_not_shown_to_the_network():
    given, network = inputs(1, 1, 20, 17, 6), Gradient()
    given[..., 0] = 0
    given[..., 3] = 0.7
    found = DPMMInferer(2, 3)(given, network)
    assert network.batches == [3, 1]
    assert not found[..., [0, 3]].any()
    assert torch.equal(found[..., [1, 2, 4, 5]], by_hand(given, 2)[..., [1, 2, 4, 5]])


def test_an_empty_volume_does_not_reach_the_network():
    network = Gradient()
    found = DPMMInferer()(torch.zeros(1, 1, 20, 17, 6), network)
    assert network.batches == []
    assert found.shape == (1, 1, 20, 17, 6) and not found.any()


def test_occupied_slices_have_more_than_one_value():
    slices = torch.zeros(5, 2, 20, 20)
    slices[1, 1, 3, 4] = 1e-3
    slices[3] = inputs(2, 20, 20)
    slices[4] = 5
    assert nonempty_slices(slices).tolist() == [1, 3]
    assert nonempty_slices(torch.zeros(2, 1, 5, 5)).tolist() == []


def test_a_function_or_a_script_module_is_a_network():
    def network(images):
        return images.mean(1, keepdim=True) * 2

    given = inputs(1, 3, 20, 17, 5)
    scripted = torch.jit.trace(torch.nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 14, 14))
    assert isinstance(scripted, torch.jit.ScriptModule)
    torch.testing.assert_close(DPMMInferer()(given, network), network(given))
    with torch.no_grad():
        expected = torch.stack([scripted(given[..., index]) for index in range(5)], dim=4)
        torch.testing.assert_close(DPMMInferer()(given, scripted), expected)


def test_arguments_are_handed_on():
    found = DPMMInferer()(inputs(1, 1, 20, 17), lambda images, add, times: (images + add) * times, 1, times=3)
    torch.testing.assert_close(found, (inputs(1, 1, 20, 17) + 1) * 3)


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
@pytest.mark.parametrize(("step", "scored"), [(1, [1, 2, 4, 5, 6, 7]), (2, [1, 4, 6, 7]), (5, [1, 7]), (100, [1, 7])])
def test_slices_between_scored_ones_are_interpolated(spatial_dim, step, scored):
    network = Gradient()
    volume = inputs(1, 1, 20, 17, 15).movedim(4, spatial_dim + 2)
    slices = volume.movedim(spatial_dim + 2, 0)[:9]
    slices[[0, 3, 8]] = 0.4
    given = slices.movedim(0, spatial_dim + 2)
    found = DPMMInferer(spatial_dim, 2, step)(given, network).movedim(spatial_dim + 2, 0)
    alone = DPMMInferer(spatial_dim)(given, Gradient()).movedim(spatial_dim + 2, 0)
    assert sum(network.batches) == len(scored)
    assert torch.equal(found[scored], alone[scored]) and not found[[0, 3, 8]].any()
    for index in {1, 2, 4, 5, 6, 7} - set(scored):
        before = max(other for other in scored if other < index)
        after = min(other for other in scored if other > index)
        share = (index - before) / (after - before)
        torch.testing.assert_close(found[index], (1 - share) * alone[before] + share * alone[after])


def test_images_are_never_interpolated_nor_is_anything_across_volumes():
    network = Gradient()
    images, volumes = inputs(5, 1, 20, 17), inputs(2, 1, 20, 17, 3)
    assert torch.equal(DPMMInferer(2, 4, 2)(images, network), Gradient()(images))
    found = DPMMInferer(2, 4, 2)(volumes, network)
    assert torch.equal(found[..., [0, 2]], by_hand(volumes, 2)[..., [0, 2]])


@pytest.mark.parametrize("shape", [(1, 1, 20, 17), (1, 3, 20, 17, 15)])
def test_a_meta_tensor_gives_a_meta_tensor(shape):
    affine = torch.tensor([[0.0, 2, 0, 5], [3, 0, 0, -4], [0, 0, 4, 1], [0, 0, 0, 1]], dtype=torch.float64)
    given = MetaTensor(inputs(*shape), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    found = DPMMInferer()(given, Gradient())
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, affine)
    assert found.meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(found.as_tensor(), DPMMInferer()(given.as_tensor(), Gradient()))
    assert type(DPMMInferer()(given.as_tensor(), Gradient())) is torch.Tensor


def test_the_network_sees_plain_tensors():
    seen = []
    DPMMInferer()(MetaTensor(inputs(1, 1, 20, 17, 3)), lambda images: seen.append(type(images)) or images)
    assert set(seen) == {torch.Tensor}


def test_the_input_stays_as_it_is():
    given = inputs(1, 1, 20, 17, 3)
    DPMMInferer()(given, lambda images: images.mul_(0))
    assert torch.equal(given, inputs(1, 1, 20, 17, 3))


@pytest.mark.parametrize("shape", [(20, 17), (1, 20, 17), (1, 1, 1, 20, 17, 3)])
def test_another_number_of_dimensions_raises(shape):
    with pytest.raises(ValueError, match=r"\[N,C,H,W\]"):
        DPMMInferer()(inputs(*shape), Gradient())


@pytest.mark.parametrize(
    ("shape", "spatial_dim", "said"),
    [
        ((1, 1, 13, 20), 2, "13 x 20"),
        ((1, 1, 20, 20, 13), 0, "20 x 13"),
        ((1, 1, 13, 20, 20), 1, "13 x 20"),
        ((1, 1, 1, 40, 40), 2, "1 x 40"),
    ],
)
def test_slices_smaller_than_a_patch_raise(shape, spatial_dim, said):
    with pytest.raises(InputError, match=rf"spatial_dim {spatial_dim} have {said} pixels"):
        DPMMInferer(spatial_dim)(inputs(*shape), Gradient())


def test_few_slices_are_enough():
    assert DPMMInferer(2)(inputs(1, 1, 14, 14, 1), Gradient()).shape == (1, 1, 14, 14, 1)
    assert DPMMInferer(0)(inputs(1, 1, 1, 14, 14), Gradient()).shape == (1, 1, 1, 14, 14)


@pytest.mark.parametrize(
    "arguments",
    [{"spatial_dim": 3}, {"spatial_dim": -1}, {"slice_batch_size": 0}, {"slice_batch_size": -2}, {"slice_step": 0}],
)
def test_wrong_arguments_raise(arguments):
    (name,) = arguments
    with pytest.raises(InputError, match=f"{name} must be"):
        DPMMInferer(**arguments)
