"""Loader of anomaly maps: order, shared batches, failed cases, prefetching and stopped runs."""

import threading

import pytest
import torch
from monai.data import MetaTensor

from scripts.data.prefetch import prefetch
from scripts.errors import InputError
from scripts.inference.inferer import DPMMInferer
from scripts.inference.loader import AnomalyMapLoader


def picture(seed, shape=(20, 17)):
    return MetaTensor(torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed)))


def as_cases(images):
    return [{"case": str(number), "image": image} for number, image in enumerate(images)]


class Doubling:
    """Network that keeps the sizes of its batches and raises for images with a value of 7."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        if (images == 7).any():
            raise ValueError("there is a seven")
        return images.mean(1, keepdim=True) * 2


class TestAnomalyMapLoader:
    @pytest.mark.parametrize("spatial_dim", [0, 2])
    def test_maps_and_order(self, spatial_dim):
        images = [picture(0), picture(1, (20, 17, 15)), picture(2), picture(3, (15, 15, 17)), picture(4, (15, 17))]
        inferer = DPMMInferer(spatial_dim, 4)
        cases = list(AnomalyMapLoader(as_cases(images), Doubling(), inferer))
        assert [case["case"] for case in cases] == ["0", "1", "2", "3", "4"]
        for case, image in zip(cases, images, strict=True):
            assert torch.equal(case["pred"], inferer(image.unsqueeze(0), Doubling())[0])
            assert isinstance(case["pred"], MetaTensor) and torch.equal(case["image"], image)

    def test_shared_batches(self):
        images = [picture(seed) for seed in range(6)] + [picture(seed, (20, 17, 9)) for seed in range(2)]
        images += [picture(8, (30, 17)), picture(9)]
        network = Doubling()
        assert len(list(AnomalyMapLoader(as_cases(images), network, DPMMInferer(2, 4)))) == 10
        assert network.batches == [4, 4, 4, 3, 4, 4, 1, 1, 1]

    def test_failed_cases(self):
        images = [picture(seed) for seed in range(4)] + [picture(5, (5, 5)), picture(6)]
        images[2][0, 3, 4] = 7
        cases = as_cases(images)
        cases[0] = {"case": "0", "error": "it is broken"}
        results = list(AnomalyMapLoader(cases, Doubling(), DPMMInferer(2, 4)))
        assert [case["case"] for case in results if "error" in case] == ["0", "2", "4"]
        errors = {case["case"]: case.get("error", "") for case in results}
        assert errors["0"] == "it is broken" and "5 x 5 pixels" in errors["4"]
        assert errors["2"].startswith("it could not be scored") and "seven" not in errors["2"]  # message of a library

    def test_case_without_contrast(self):
        network = Doubling()
        (case,) = AnomalyMapLoader(as_cases([MetaTensor(torch.ones(1, 20, 17, 3))]), network, DPMMInferer())
        assert network.batches == [] and case["pred"].shape == (1, 20, 17, 3) and not case["pred"].any()

    def test_one_case_per_stage(self):
        read = []

        class Reading:
            def __len__(self):
                return 20

            def __getitem__(self, index):
                read.append(index)
                return {"case": str(index), "image": picture(index)}

        used = 0
        for used, _ in enumerate(AnomalyMapLoader(Reading(), Doubling(), DPMMInferer(2, 1)), start=1):
            assert len(read) <= used + 4  # one scored and one read ahead; each stage may have begun its next case
        assert used == len(read) == 20

    @pytest.mark.parametrize("reason", ["the iteration ends", "the run is stopped"])
    def test_stopped_run(self, reason):
        network, before = Doubling(), set(threading.enumerate())
        started, stop_requested = threading.Event(), threading.Event()

        def slow(images):
            if len(network.batches) == 45:  # within the second case
                started.set()
                stop_requested.wait(10)
            return network(images)

        case_loader = AnomalyMapLoader(
            as_cases([picture(seed, (20, 17, 40)) for seed in range(9)]), slow, DPMMInferer(2, 1)
        )
        cases = iter(case_loader)
        next(cases)
        assert started.wait(10)
        cases.close() if reason == "the iteration ends" else case_loader.stop()  # neither waits for the current case
        stop_requested.set()
        cases.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
        assert len(network.batches) == 46 and set(threading.enumerate()) <= before


class TestPatches:
    def test_patches_of_single_cases(self, fitted_network):
        images = [picture(0, (60, 57)), picture(1, (60, 57)), picture(2, (60, 57))]
        cases = list(AnomalyMapLoader(as_cases(images), fitted_network, DPMMInferer(2, 4), patches=True))
        for case, image in zip(cases, images, strict=True):
            expected = fitted_network.score_patches(image.unsqueeze(0))
            assert case["patches"].slices.tolist() == [0]
            assert torch.equal(case["patches"].components, expected.components)
            torch.testing.assert_close(case["patches"].log_likelihood, expected.log_likelihood)

    def test_network_without_patches(self):
        with pytest.raises(InputError, match="add --report False"):
            AnomalyMapLoader([], Doubling(), DPMMInferer(), patches=True)


class TestPrefetch:
    def test_order_thread_and_errors(self):
        caller = threading.get_ident()
        assert list(prefetch(lambda item: (item, threading.get_ident() != caller), range(9), 3)) == [
            (n, True) for n in range(9)
        ]
        results = prefetch(lambda item: 1 // item, [1, 0, 1])
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
