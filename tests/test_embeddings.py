"""Embeddings are those of the network, of every slice that holds something, and bad cases are named."""

import gc
import tempfile

import numpy as np
import pytest
import torch

from scripts.cases import CaseDataset
from scripts.embeddings import EmbeddingDataset, raise_failed_cases
from scripts.errors import InputError
from scripts.inferer import DPMMInferer


def volume(n_slices=3, seed=0, size=(40, 56)):
    return torch.rand(1, *size, n_slices, generator=torch.Generator().manual_seed(seed))


def case_of(image, name="a"):
    return {"case": name, "image": image}


def embed(cases, network, **arguments):
    arguments = {"inferer": DPMMInferer(2, 2), "progress": False, **arguments}
    return EmbeddingDataset(cases, network, **arguments)


def rows(network, images):
    """Embeddings ``[h*w, D]`` of one slice ``[1,C,H,W]``, computed apart."""
    embedded = network.embed(images)[0]
    return embedded.reshape(len(embedded), -1).T


def test_every_occupied_slice_is_embedded(fitted_network):
    first, second = volume(5), volume(2, seed=1)
    first[..., [0, 3]] = 0
    image = torch.rand(3, 60, 30)
    dataset = embed([case_of(first, "a"), case_of(image, "b"), case_of(second, "c")], fitted_network)
    assert len(dataset) == 3 + 1 + 2
    slices = [first[..., 1], first[..., 2], first[..., 4], image, second[..., 0], second[..., 1]]
    for found, expected in zip([dataset[i] for i in range(6)], slices, strict=True):
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), rows(fitted_network, expected.unsqueeze(0)), rtol=1e-3, atol=1e-3)
    assert dataset[3].shape == (4 * 8, 32)
    assert dataset.failed == {}
    assert dataset.n_cases == 3


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
def test_slices_are_those_of_the_inferer(fitted_network, spatial_dim):
    given = torch.rand(1, 20, 17, 15)
    dataset = embed([case_of(given)], fitted_network, inferer=DPMMInferer(spatial_dim, 3))
    assert len(dataset) == given.shape[spatial_dim + 1]
    expected = rows(fitted_network, given.select(spatial_dim + 1, 4).unsqueeze(0))
    torch.testing.assert_close(dataset[4].float(), expected, rtol=1e-3, atol=1e-3)


def test_slices_can_be_read_in_batches(fitted_network):
    dataset = embed([case_of(volume(5))], fitted_network)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=torch.cat)
    per_slice = len(dataset[0])
    assert [len(batch) for batch in loader] == [2 * per_slice, 2 * per_slice, per_slice]
    assert torch.equal(torch.cat(list(loader)), torch.cat([dataset[i] for i in range(5)]))


def test_an_item_can_be_changed(fitted_network):
    dataset = embed([case_of(volume())], fitted_network)
    item, before = dataset[0], dataset[0]
    assert item.data_ptr() != before.data_ptr()  # a write into the map would end the process
    item.zero_()
    assert torch.equal(dataset[0], before)


def test_an_index_out_of_range_raises(fitted_network):
    dataset = embed([case_of(volume())], fitted_network)
    with pytest.raises(IndexError):
        dataset[3]
    assert len(list(iter(dataset))) == 3


# Cases that fail


def test_failed_cases_are_recorded_and_said_at_the_end(fitted_network):
    cases = [
        case_of(volume(), "good"),
        {"case": "unreadable", "error": "it could not be processed"},
        case_of(volume(size=(10, 40)), "small"),
        case_of(volume(2), "also good"),
    ]
    dataset = embed(cases, fitted_network)
    assert len(dataset) == 5
    assert list(dataset.failed) == ["unreadable", "small"]
    assert dataset.failed["unreadable"] == "it could not be processed"
    assert "10 x 40 pixels" in dataset.failed["small"]

    other = embed([case_of(volume(), "x"), {"case": "y", "error": "two series"}], fitted_network)
    with pytest.raises(InputError) as raised:
        raise_failed_cases([dataset, other])
    message = str(raised.value)
    assert message.startswith("3 of 6 cases failed (the model was fitted without them and saved):")
    assert "\n  unreadable: it could not be processed" in message and "\n  y: two series" in message
    raise_failed_cases([embed([case_of(volume())], fitted_network)])


def test_failed_cases_of_one_name_in_both_sets_are_both_said(fitted_network):
    bad = {"case": "001", "error": "two series"}
    datasets = [embed([case_of(volume()), bad], fitted_network) for _ in range(2)]
    with pytest.raises(InputError, match=r"^2 of 4 cases failed"):
        raise_failed_cases(datasets)


def test_errors_of_a_case_dataset_are_taken_over(fitted_network):
    def transform(case):
        if case["case"] == "b":
            raise InputError("every voxel is 0")
        return {**case, "image": volume()}

    dataset = embed(CaseDataset([{"case": "a"}, {"case": "b"}], transform), fitted_network)
    assert dataset.failed == {"b": "every voxel is 0"}


def test_no_good_case_raises_with_the_reasons(fitted_network):
    cases = [{"case": "a", "error": "two series"}, case_of(volume(size=(10, 40)), "b")]
    with pytest.raises(InputError, match=r"None of 2 normal cases .*a: two series.*b: .*10 x 40"):
        embed(cases, fitted_network)


@pytest.mark.parametrize("position", [0, 1])
def test_a_case_without_an_occupied_slice_is_recorded(fitted_network, position):
    cases = [case_of(volume(), "good")]
    cases.insert(position, case_of(torch.zeros(1, 40, 56, 3), "empty"))
    dataset = embed(cases, fitted_network)
    assert len(dataset) == 3
    assert list(dataset.failed) == ["empty"]


def test_a_programming_error_is_not_a_failed_case(fitted_network, monkeypatch):
    def broken(images):
        raise TypeError("a bug")

    monkeypatch.setattr(fitted_network, "embed", broken)
    with pytest.raises(TypeError, match="a bug"):
        embed([case_of(volume())], fitted_network)


# Drawing


def test_a_sample_has_no_patch_twice(fitted_network):
    dataset = embed([case_of(volume(4)), case_of(torch.rand(1, 60, 30))], fitted_network)
    everything = torch.cat([dataset[i] for i in range(5)]).float()
    sample = dataset.sample(50, torch.Generator().manual_seed(0))
    assert sample.shape == (50, 32) and sample.dtype == torch.float32
    index_of = {tuple(row): index for index, row in enumerate(everything.tolist())}
    assert len(index_of) == len(everything)
    assert len({index_of[tuple(row)] for row in sample.tolist()}) == 50


def test_a_sample_follows_its_generator(fitted_network):
    dataset = embed([case_of(volume(4))], fitted_network)
    first, again, other = (dataset.sample(20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_sample_is_uniform_over_the_whole_set(fitted_network):
    dataset = embed([case_of(volume(2)), case_of(torch.rand(1, 60, 30))], fitted_network)
    everything = torch.cat([dataset[i] for i in range(3)]).float()
    index_of = {tuple(row): index for index, row in enumerate(everything.tolist())}
    counts = np.zeros(len(everything))
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        counts[[index_of[tuple(row)] for row in dataset.sample(10, generator).tolist()]] += 1
    expected = 4000 / len(everything)
    assert counts.min() > 0
    assert abs(counts - expected).max() < 5 * expected**0.5


def test_a_sample_of_more_than_there_is_takes_all(fitted_network):
    dataset = embed([case_of(volume(2))], fitted_network)
    everything = torch.cat([dataset[0], dataset[1]]).float()
    sample = dataset.sample(10**6)
    assert sorted(sample.tolist()) == sorted(everything.tolist())


# Where they are kept


@pytest.mark.parametrize("given", [True, False])
def test_nothing_is_left_on_disk(fitted_network, tmp_path, monkeypatch, given):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    directory = tmp_path / "new" / "output"
    dataset = embed([case_of(volume())], fitted_network, directory=str(directory) if given else None)
    assert len(dataset[2]) > 0
    assert directory.is_dir() == given
    del dataset
    gc.collect()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_failure_leaves_nothing_on_disk(fitted_network, tmp_path):
    with pytest.raises(InputError, match="None of 1"):
        embed([{"case": "a", "error": "two series"}], fitted_network, directory=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
