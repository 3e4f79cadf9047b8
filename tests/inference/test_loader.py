"""Cases scored while others are read and written: the maps, what shares a batch, and whom a failure takes along."""

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
    """A network that keeps the sizes of its batches, and refuses images that hold a 7."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        if (images == 7).any():
            raise ValueError("there is a seven")
        return images.mean(1, keepdim=True) * 2


@pytest.mark.parametrize("spatial_dim", [0, 2])
def test_maps_are_those_of_the_inferer_in_the_order_of_the_cases(spatial_dim):
    images = [picture(0), picture(1, (20, 17, 15)), picture(2), picture(3, (15, 15, 17)), picture(4, (15, 17))]
    inferer = DPMMInferer(spatial_dim, 4)
    found = list(AnomalyMapLoader(as_cases(images), Doubling(), inferer))
    assert [case["case"] for case in found] == ["0", "1", "2", "3", "4"]
    for case, image in zip(found, images, strict=True):
        assert torch.equal(case["pred"], inferer(image.unsqueeze(0), Doubling())[0])
        assert isinstance(case["pred"], MetaTensor) and torch.equal(case["image"], image)


def test_slices_of_cases_of_one_size_share_batches():
    images = [picture(seed) for seed in range(6)] + [picture(seed, (20, 17, 9)) for seed in range(2)]
    images += [picture(8, (30, 17)), picture(9)]
    network = Doubling()
    assert len(list(AnomalyMapLoader(as_cases(images), network, DPMMInferer(2, 4)))) == 10
    assert network.batches == [4, 4, 4, 3, 4, 4, 1, 1, 1]


def test_a_case_that_fails_fails_alone():
    images = [picture(seed) for seed in range(4)] + [picture(5, (5, 5)), picture(6)]
    images[2][0, 3, 4] = 7
    cases = as_cases(images)
    cases[0] = {"case": "0", "error": "it is broken"}
    found = list(AnomalyMapLoader(cases, Doubling(), DPMMInferer(2, 4)))
    assert [case["case"] for case in found if "error" in case] == ["0", "2", "4"]
    errors = {case["case"]: case.get("error", "") for case in found}
    assert errors["0"] == "it is broken" and "5 x 5 pixels" in errors["4"]
    assert errors["2"].startswith("it could not be scored") and "seven" not in errors["2"]  # a library's words


def test_a_case_without_contrast_does_not_reach_the_network():
    network = Doubling()
    (case,) = AnomalyMapLoader(as_cases([MetaTensor(torch.ones(1, 20, 17, 3))]), network, DPMMInferer())
    assert network.batches == [] and case["pred"].shape == (1, 20, 17, 3) and not case["pred"].any()


def test_patches_are_those_of_the_case(fitted_network):
    images = [picture(0, (60, 57)), picture(1, (60, 57)), picture(2, (60, 57))]
    cases = list(AnomalyMapLoader(as_cases(images), fitted_network, DPMMInferer(2, 4), patches=True))
    for case, image in zip(cases, images, strict=True):
        alone = fitted_network.score_patches(image.unsqueeze(0))
        assert case["patches"].slices.tolist() == [0]
        assert torch.equal(case["patches"].components, alone.components)
        torch.testing.assert_close(case["patches"].log_likelihood, alone.log_likelihood)


def test_a_network_that_returns_maps_only_has_no_patches():
    with pytest.raises(InputError, match="add --report False"):
        AnomalyMapLoader([], Doubling(), DPMMInferer(), patches=True)


def test_no_more_than_one_case_waits_at_each_stage():
    read = []

    class Reading:
        def __len__(self):
            return 20

        def __getitem__(self, index):
            read.append(index)
            return {"case": str(index), "image": picture(index)}

    used = 0
    for used, _ in enumerate(AnomalyMapLoader(Reading(), Doubling(), DPMMInferer(2, 1)), start=1):
        assert len(read) <= used + 4  # scored one ahead, read one ahead of that; each may just have gone on
    assert used == len(read) == 20


@pytest.mark.parametrize("who", ["the iteration ends", "the run is stopped"])
def test_a_run_that_is_broken_off_scores_no_further_batch(who):
    network, before = Doubling(), set(threading.enumerate())
    begun, broken_off = threading.Event(), threading.Event()

    def slow(images):
        if len(network.batches) == 45:  # in the midst of the second case
            begun.set()
            broken_off.wait(10)
        return network(images)

    scored = AnomalyMapLoader(as_cases([picture(seed, (20, 17, 40)) for seed in range(9)]), slow, DPMMInferer(2, 1))
    cases = iter(scored)
    next(cases)
    assert begun.wait(10)
    cases.close() if who == "the iteration ends" else scored.stop()  # neither waits for the case under way
    broken_off.set()
    cases.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert len(network.batches) == 46 and set(threading.enumerate()) <= before


def test_results_come_in_order_from_another_thread_and_so_do_errors():
    here = threading.get_ident()
    assert list(prefetch(lambda item: (item, threading.get_ident() != here), range(9), 3)) == [
        (n, True) for n in range(9)
    ]
    results = prefetch(lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
