"""Several views of a volume: the mean of their maps, what is held in memory, and what is refused."""

import itertools
import weakref

import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.inference.inferer import DPMMInferer
from scripts.inference.loader import AnomalyMapLoader
from scripts.inference.views import fuse, spacing_of

VIEWS = [0, 1, 2]


def volume(*shape, spacing=(1, 1, 1)):
    image = torch.rand(1, *(shape or (15, 17, 20)), generator=torch.Generator().manual_seed(0))
    return MetaTensor(image, torch.diag(torch.tensor([*spacing, 1.0])))


def network(images):
    """Return a map that depends on the position in a slice and on its values."""
    rows, columns = torch.arange(images.shape[2]).view(-1, 1), torch.arange(images.shape[3]).view(1, -1)
    return images.mean(1, keepdim=True) * (1 + rows + 10 * columns)


def infer(image, model=network, **arguments):
    return DPMMInferer(**arguments)(image.unsqueeze(0), model)[0]


def as_cases(images):
    return [{"case": str(number), "image": image} for number, image in enumerate(images)]


class TestMap:
    @pytest.mark.parametrize("axis", VIEWS)
    def test_one_view_is_todays_map(self, axis, fitted_network):
        for model, step in itertools.product((network, fitted_network), (1, 3)):
            expected = infer(volume(), model, spatial_dim=axis, slice_step=step)
            assert torch.equal(infer(volume(), model, spatial_dim=axis, slice_step=step, views=[axis]), expected)

    @pytest.mark.parametrize("views", [[2, 0], [0, 1, 2], [2, 1, 0]])
    @pytest.mark.parametrize("step", [1, 3])
    def test_mean_of_the_views(self, views, step):
        single = [infer(volume(), spatial_dim=axis, slice_step=step) for axis in views]
        fused = infer(volume(), views=views, slice_step=step)
        torch.testing.assert_close(fused, torch.stack(single).mean(0))
        assert isinstance(fused, MetaTensor) and fused.shape == volume().shape

    def test_symmetric_volume_has_a_symmetric_map(self, fitted_network):
        cube = volume(16, 16, 16)
        permutations = list(itertools.permutations((1, 2, 3)))
        cube = sum(cube.permute(0, *axes) for axes in permutations) / len(permutations)

        def symmetric(images):
            return fitted_network(images) + fitted_network(images.mT).mT

        fused = infer(cube, symmetric, views=VIEWS)
        for axes in permutations:
            torch.testing.assert_close(fused.permute(0, *axes), fused, rtol=1e-3, atol=1e-3)
        single = infer(cube, symmetric)
        assert not torch.allclose(single.permute(0, 3, 1, 2), single, rtol=1e-2, atol=1e-2)

    def test_batch_of_volumes(self):
        batch = torch.stack([volume().as_tensor(), volume().as_tensor().flip(1)])
        maps = DPMMInferer(views=VIEWS, slice_batch_size=7)(batch, network)
        for image, of_image in zip(batch, maps, strict=True):
            torch.testing.assert_close(of_image, infer(image, views=VIEWS))

    def test_images_have_one_view(self):
        image = volume()[..., 0]
        assert torch.equal(infer(image, views=VIEWS), infer(image))

    def test_empty_slices(self):
        image = volume()
        image[:, :, :, :8] = 0
        fused = infer(image, views=VIEWS)
        others = [infer(image, spatial_dim=axis)[..., :8] for axis in (0, 1)]
        torch.testing.assert_close(fused[..., :8], (others[0] + others[1]) / 3)

    def test_unchanged_input(self):
        image = volume()
        infer(image, lambda images: images.mul_(0), views=VIEWS)
        assert torch.equal(image, volume())


class TestMemory:
    def test_sum_and_one_view_are_held(self):
        held = []

        def views():
            for _ in range(4):
                view = torch.ones(5)
                assert [ref() is None for ref in held[1:]] == [True] * len(held[1:])
                held.append(weakref.ref(view))
                maps = [view]
                del view
                yield maps
                del maps

        (fused,) = fuse(views())
        assert torch.equal(fused, torch.ones(5)) and fused is held[0]()

    def test_maps_that_an_inference_holds(self, monkeypatch):
        made, n_held = [], []
        view_maps = DPMMInferer._view_maps

        def noted(*arguments):
            maps = view_maps(*arguments)
            made.extend(weakref.ref(each) for each in maps)
            return maps

        def counting(images):
            n_held.append(sum(ref() is not None for ref in made))
            return network(images)

        monkeypatch.setattr(DPMMInferer, "_view_maps", noted)
        infer(volume(), counting, views=VIEWS, slice_batch_size=20)
        assert n_held == [0, 1, 1]  # besides the map that is being made


class TestLoader:
    def test_maps_and_order(self):
        images = [volume(), volume()[..., 0], volume(15, 17, 14), volume(15, 17, 15), volume()[..., 1]]
        inferer = DPMMInferer(2, 4, views=VIEWS)
        cases = list(AnomalyMapLoader(as_cases(images), network, inferer))
        for case, image in zip(cases, images, strict=True):
            assert torch.equal(case["pred"], inferer(image.unsqueeze(0), network)[0])

    def test_patches_are_those_of_the_shown_slices(self, fitted_network):
        fitted_network.views = VIEWS
        images = [volume(), volume(), volume()[..., 0]]
        for spatial_dim in VIEWS:
            fused, single = (
                list(
                    AnomalyMapLoader(
                        as_cases(images), fitted_network, DPMMInferer(spatial_dim, 32, 2, views=v), patches=True
                    )
                )
                for v in (VIEWS, None)
            )
            for case, expected in zip(fused, single, strict=True):
                assert torch.equal(case["patches"].slices, expected["patches"].slices)
                assert torch.equal(case["patches"].components, expected["patches"].components)

    def test_refused_volume_does_not_stop_the_others(self):
        images = [volume(), volume(spacing=(1, 1, 3)), volume()]
        cases = list(AnomalyMapLoader(as_cases(images), network, DPMMInferer(views=VIEWS)))
        assert ["error" in case for case in cases] == [False, True, False]
        assert cases[1]["error"].startswith("its voxels are 1 x 1 x 3 mm; several views need")


class TestRefused:
    @pytest.mark.parametrize("spacing", [(1, 1, 2.1), (0.4, 1, 1), (3, 1, 2)])
    def test_voxels_far_from_cubes(self, spacing):
        with pytest.raises(InputError, match=r"differ by a factor of at most 2, so fit and score .* or resample"):
            infer(volume(spacing=spacing), views=VIEWS)
        assert infer(volume(spacing=spacing), views=[2]).shape == volume().shape

    @pytest.mark.parametrize("spacing", [(1, 1, 2), (0.9, 0.9, 1), (5, 5, 5)])
    def test_voxels_near_cubes(self, spacing):
        assert infer(volume(spacing=spacing), views=VIEWS).shape == volume().shape

    def test_spacing_of_a_turned_volume_and_of_a_batch(self):
        affine = torch.tensor([[0, 0, 2.0, 0], [-1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
        assert spacing_of(MetaTensor(torch.zeros(1, 2, 2, 2), affine)).tolist() == [1, 3, 2]
        assert spacing_of(MetaTensor(torch.zeros(1, 2, 2, 2), affine[None])).tolist() == [1, 3, 2]
        assert spacing_of(torch.zeros(1, 2, 2, 2)) is None

    def test_slices_smaller_than_a_patch(self):
        with pytest.raises(InputError, match=r"across spatial_dim 0 have 17 x 13 pixels.* leave 0 out of views"):
            infer(volume(15, 17, 13), views=VIEWS)

    @pytest.mark.parametrize("views", [[0, 0, 2], [2, 3], [-1, 2], [0, 1], []])
    def test_invalid_views(self, views):
        with pytest.raises(InputError, match=r"views must"):
            DPMMInferer(2, views=views)
