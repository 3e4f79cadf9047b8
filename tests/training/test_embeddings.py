"""Embeddings of all non-empty slices, failed cases, and the cache on disk."""

import copy
import errno
import functools
import gc
import json
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Lambdad

from scripts.data import CheckImaged, LoadImageFiled, OrientUprightd, ScaleForegroundPercentilesd
from scripts.data.cases import CaseDataset
from scripts.errors import InputError
from scripts.files import LOCK, RECORD, RecordedDirectory
from scripts.inference.inferer import DPMMInferer
from scripts.training.embedding_cache import EmbeddingCache, describe
from scripts.training.embeddings import EmbeddingDataset, raise_failed_cases
from scripts.training.sampler import DistributedBatchSampler


def volume(n_slices=3, seed=0, size=(40, 56)):
    return torch.rand(1, *size, n_slices, generator=torch.Generator().manual_seed(seed))


def case_of(image, name="a"):
    return {"case": name, "image": image}


def embed(cases, network, **arguments):
    arguments = {"inferer": DPMMInferer(2, 2), "progress": False, **arguments}
    return EmbeddingDataset(cases, network, **arguments).compute()


def rows(network, images):
    """Compute the embeddings ``[h*w, D]`` of one slice ``[1,C,H,W]`` by the network alone."""
    embedded = network.embed(images)[0]
    return embedded.reshape(len(embedded), -1).T


class TestEmbeddingDataset:
    def test_every_nonempty_slice_is_embedded(self, fitted_network):
        first, second = volume(5), volume(2, seed=1)
        first[..., [0, 3]] = 0
        image = torch.rand(3, 60, 30)
        dataset = embed([case_of(first, "a"), case_of(image, "b"), case_of(second, "c")], fitted_network)
        assert len(dataset) == 3 + 1 + 2
        slices = [first[..., 1], first[..., 2], first[..., 4], image, second[..., 0], second[..., 1]]
        for embeddings, expected in zip([dataset[i] for i in range(6)], slices, strict=True):
            assert embeddings.dtype == torch.float16
            torch.testing.assert_close(
                embeddings.float(), rows(fitted_network, expected.unsqueeze(0)), rtol=1e-3, atol=1e-3
            )
        assert dataset[3].shape == (4 * 8, 32)
        assert dataset.failed == {}
        assert dataset.n_cases == 3

    @pytest.mark.parametrize("spatial_dim", [0, 1, 2])
    def test_slices_are_those_of_the_inferer(self, fitted_network, spatial_dim):
        image = torch.rand(1, 20, 17, 15)
        dataset = embed([case_of(image)], fitted_network, inferer=DPMMInferer(spatial_dim, 3))
        assert len(dataset) == image.shape[spatial_dim + 1]
        expected = rows(fitted_network, image.select(spatial_dim + 1, 4).unsqueeze(0))
        torch.testing.assert_close(dataset[4].float(), expected, rtol=1e-3, atol=1e-3)

    def test_slices_can_be_read_in_batches(self, fitted_network):
        dataset = embed([case_of(volume(5))], fitted_network)
        loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=torch.cat)
        per_slice = len(dataset[0])
        assert [len(batch) for batch in loader] == [2 * per_slice, 2 * per_slice, per_slice]
        assert torch.equal(torch.cat(list(loader)), torch.cat([dataset[i] for i in range(5)]))

    def test_length_needs_compute(self, fitted_network):
        dataset = EmbeddingDataset([case_of(volume())], fitted_network, DPMMInferer(2, 2), progress=False)
        sampler = DistributedBatchSampler(dataset, batch_size=2, shuffle=False)
        for count in (lambda: len(dataset), lambda: len(sampler), lambda: dataset.n_patches, dataset.counts):
            with pytest.raises(RuntimeError, match=r"not computed yet; call compute\(\)"):
                count()
        assert dataset.compute() is dataset
        assert [*sampler] == [[0, 1], [2]]
        assert dataset.compute().seconds == dataset.seconds

    def test_items_are_copies(self, fitted_network):
        dataset = embed([case_of(volume())], fitted_network)
        item, before = dataset[0], dataset[0]
        assert item.data_ptr() != before.data_ptr()  # a write into the map would end the process
        item.zero_()
        assert torch.equal(dataset[0], before)

    def test_index_out_of_range_raises(self, fitted_network):
        dataset = embed([case_of(volume())], fitted_network)
        with pytest.raises(IndexError):
            dataset[3]
        assert len(list(iter(dataset))) == 3

    def test_number_of_open_files_is_constant(self, fitted_network, tmp_path):
        images = [case_of(torch.rand(1, 56, 56), str(index)) for index in range(120)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        in_use = max(int(entry.name) for entry in Path("/dev/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, limits[1]))
        try:
            dataset = embed(images, fitted_network, cache=EmbeddingCache(tmp_path))
            kept = [dataset[index] for index in range(len(dataset))]
            assert len(dataset.sample(10**6, seed=0)) == sum(len(patches) for patches in kept) == 120 * 16
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class TestFailedCases:
    def test_recorded_and_reported_at_the_end(self, fitted_network):
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

    def test_same_name_in_both_sets_is_reported_twice(self, fitted_network):
        bad = {"case": "001", "error": "two series"}
        datasets = [embed([case_of(volume()), bad], fitted_network) for _ in range(2)]
        with pytest.raises(InputError, match=r"^2 of 4 cases failed"):
            raise_failed_cases(datasets)

    def test_errors_of_a_case_dataset_are_kept(self, fitted_network):
        def transform(case):
            if case["case"] == "b":
                raise InputError("every voxel is 0")
            return {**case, "image": volume()}

        dataset = embed(CaseDataset([{"case": "a"}, {"case": "b"}], transform), fitted_network)
        assert dataset.failed == {"b": "every voxel is 0"}

    def test_no_good_case_raises_with_the_reasons(self, fitted_network):
        cases = [{"case": "a", "error": "two series"}, case_of(volume(size=(10, 40)), "b")]
        with pytest.raises(InputError, match=r"None of 2 normal cases .*a: two series.*b: .*10 x 40"):
            embed(cases, fitted_network)

    @pytest.mark.parametrize("position", [0, 1])
    def test_case_without_a_nonempty_slice_is_recorded(self, fitted_network, position):
        cases = [case_of(volume(), "good")]
        cases.insert(position, case_of(torch.zeros(1, 40, 56, 3), "empty"))
        dataset = embed(cases, fitted_network)
        assert len(dataset) == 3
        assert list(dataset.failed) == ["empty"]

    def test_programming_error_is_raised(self, fitted_network, monkeypatch):
        def broken(images):
            raise TypeError("a bug")

        monkeypatch.setattr(fitted_network, "embed", broken)
        with pytest.raises(TypeError, match="a bug"):
            embed([case_of(volume())], fitted_network)


class TestSample:
    def test_without_replacement(self, fitted_network):
        dataset = embed([case_of(volume(4)), case_of(torch.rand(1, 60, 30))], fitted_network)
        everything = torch.cat([dataset[i] for i in range(5)]).float()
        sample = dataset.sample(50, seed=0)
        assert sample.shape == (50, 32) and sample.dtype == torch.float32
        index_of = {tuple(row): index for index, row in enumerate(everything.tolist())}
        assert len(index_of) == len(everything)
        assert len({index_of[tuple(row)] for row in sample.tolist()}) == 50

    def test_follows_its_seed(self, fitted_network):
        dataset = embed([case_of(volume(4))], fitted_network)
        first, again, other = (dataset.sample(20, seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_uniform_over_the_whole_set(self, fitted_network):
        dataset = embed([case_of(volume(2)), case_of(torch.rand(1, 60, 30))], fitted_network)
        everything = torch.cat([dataset[i] for i in range(3)]).float()
        index_of = {tuple(row): index for index, row in enumerate(everything.tolist())}
        counts = np.zeros(len(everything))
        for seed in range(400):
            counts[[index_of[tuple(row)] for row in dataset.sample(10, seed).tolist()]] += 1
        expected = 4000 / len(everything)
        assert counts.min() > 0
        assert abs(counts - expected).max() < 5 * expected**0.5

    def test_too_many_patches_take_all(self, fitted_network):
        dataset = embed([case_of(volume(2))], fitted_network)
        everything = torch.cat([dataset[0], dataset[1]]).float()
        sample = dataset.sample(10**6, seed=0)
        assert sorted(sample.tolist()) == sorted(everything.tolist())


class Files(CaseDataset):
    """Cases that are files, with a list of those that were loaded."""

    def __init__(self, folder, n_cases=3, factor=1.0):
        folder.mkdir(exist_ok=True)
        self.loaded = []
        paths = [folder / f"{index}.pt" for index in range(n_cases)]
        for index, path in enumerate(paths):
            if not path.exists():
                torch.save(volume(2, seed=index), path)
        data = [{"case": path.stem, "image": str(path)} for path in paths]
        super().__init__(data, Scale(factor))

    def __getitem__(self, index):
        self.loaded.append(self.data[index]["case"])
        return super().__getitem__(index)


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, case):
        return {**case, "image": torch.load(case["image"]) * self.factor}


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class TestReuse:
    def test_second_run_embeds_nothing(self, fitted_network, tmp_path):
        store = tmp_path / "store"
        first, second = Files(tmp_path / "cases"), Files(tmp_path / "cases")
        one = embed(first, fitted_network, cache=EmbeddingCache(store))
        other = embed(second, fitted_network, cache=EmbeddingCache(store))
        assert sorted(first.loaded) == ["0", "1", "2"] and second.loaded == []
        assert same(one, other)
        assert same(one, embed(Files(tmp_path / "cases"), fitted_network))

    def test_interrupted_run_resumes(self, fitted_network, tmp_path, monkeypatch):
        cases, store = Files(tmp_path / "cases"), EmbeddingCache(tmp_path / "store")
        put = EmbeddingCache.put

        def interrupted(self, key, embeddings):
            if len(list(self.directory.glob("*.npy"))) == 2:
                raise KeyboardInterrupt
            return put(self, key, embeddings)

        monkeypatch.setattr(EmbeddingCache, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(cases, fitted_network, cache=store)
        monkeypatch.setattr(EmbeddingCache, "put", put)
        again = Files(tmp_path / "cases")
        embed(again, fitted_network, cache=EmbeddingCache(tmp_path / "store"))
        assert again.loaded == ["2"]

    def test_changed_input_is_embedded_again(self, fitted_network, tmp_path):
        def loaded(cases, network=fitted_network, **arguments):
            store = EmbeddingCache(tmp_path / "store", preprocessing=cases.transform)
            embed(cases, network, cache=store, **arguments)
            return sorted(cases.loaded)

        folder = tmp_path / "cases"
        assert loaded(Files(folder)) == ["0", "1", "2"]
        assert loaded(Files(folder, factor=0.5)) == ["0", "1", "2"]
        torch.save(volume(1, seed=9), folder / "1.pt")
        assert loaded(Files(folder)) == ["1"]
        other = copy.deepcopy(fitted_network)
        other.encoder.vit.norm.weight.data += 0.1
        assert loaded(Files(folder), other) == ["0", "1", "2"]
        assert loaded(Files(folder)) == []

    def test_damaged_file_is_embedded_again(self, fitted_network, tmp_path):
        whole = embed(Files(tmp_path / "cases"), fitted_network, cache=EmbeddingCache(tmp_path / "store"))
        expected = [whole[index] for index in range(len(whole))]
        file = next((tmp_path / "store").glob("*.npy"))
        file.write_bytes(file.read_bytes()[:200])
        cases = Files(tmp_path / "cases")
        assert same(expected, embed(cases, fitted_network, cache=EmbeddingCache(tmp_path / "store")))
        assert len(cases.loaded) == 1


class TestEmbeddingCache:
    def test_temporary_folder_is_removed(self, fitted_network, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        dataset = embed([case_of(volume())], fitted_network)
        assert len(dataset[2]) > 0
        del dataset
        gc.collect()
        assert list(tmp_path.iterdir()) == []

    def test_old_files_make_room_but_not_those_in_use(self, tmp_path):
        array = np.zeros((1, 10, 50), np.float16)  # a thousand bytes and a header
        old = EmbeddingCache(tmp_path).put("old", array)
        os.utime(old, (1, 1))
        used = EmbeddingCache(tmp_path).put("used", array)
        os.utime(used, (2, 2))
        store = EmbeddingCache(tmp_path, 2.5e-6)
        assert store.get("used") == used
        new = store.put("new", array)
        assert sorted(tmp_path.glob("[!.]*")) == sorted([used, new])
        with pytest.raises(InputError, match="embedding_store_gb"):
            store.put("another", array)
        assert sorted(tmp_path.glob("[!.]*")) == sorted([used, new])

    def test_other_files_are_neither_counted_nor_removed(self, tmp_path):
        array = np.zeros((1, 10, 50), np.float16)
        store = EmbeddingCache(tmp_path, 1.5e-6)
        for name in ("mine.npy", f"{'0' * 31}.npy", f"{'g' * 32}.npy", f"{'0' * 32}.txt"):
            (tmp_path / name).write_bytes(bytes(5000))
            os.utime(tmp_path / name, (1, 1))
        before = set(tmp_path.iterdir())
        store.put("a", array)
        assert set(tmp_path.iterdir()) == {*before, store.get("a")}

    def test_folder_of_others_is_refused(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(
            InputError, match=r"embedding_store .* holds files that this program did not write.*notes\.txt"
        ):
            EmbeddingCache(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        with pytest.raises(InputError, match="embedding_store must"):
            EmbeddingCache(tmp_path / "notes.txt")
        with pytest.raises(InputError, match="embedding_store must name a directory"):
            EmbeddingCache("")

    def test_cache_of_0_4_is_accepted(self, tmp_path):
        kept = EmbeddingCache(tmp_path).put("a", np.ones((1, 2, 3)))
        (tmp_path / RECORD).unlink()
        assert EmbeddingCache(tmp_path).get("a") == kept
        (tmp_path / "notes.txt").write_text("mine")
        assert EmbeddingCache(tmp_path).get("a") == kept

    def test_full_disk_raises_and_leaves_no_partial_file(self, tmp_path, monkeypatch):
        store = EmbeddingCache(tmp_path)
        kept = store.put("a", np.ones((1, 2, 3)))

        def disk_full(file, array):
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(np, "save", disk_full)
        with pytest.raises(
            InputError, match=r"need 2 MB, which embedding_store .* \(No space left on device\); make room"
        ):
            store.put("b", np.ones((10, 100, 1000)))
        assert list(tmp_path.glob("[!.]*")) == [kept] and {path.name for path in tmp_path.iterdir()} == {
            kept.name,
            RECORD,
        }

    def test_unwritable_folder_raises(self, tmp_path, monkeypatch):
        def read_only(*_, **__):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", read_only)
        with pytest.raises(
            InputError, match=r"embedding_store .* cannot be written \(Read-only file system\); give another"
        ):
            EmbeddingCache(tmp_path / "store")

    @pytest.mark.parametrize("content", ["empty", "header", "pickle", "zip", "double", "flat"])
    def test_damaged_file_is_a_miss(self, tmp_path, content):
        store = EmbeddingCache(tmp_path)
        path = store.put("a", np.ones((1, 2, 3)))
        if content == "empty":
            path.write_bytes(b"")
        elif content == "header":
            path.write_bytes(path.read_bytes().replace(b"{'descr'", b"{'de((('"))
        elif content == "pickle":
            with path.open("wb") as file:
                np.save(file, np.array([{}]), allow_pickle=True)
        elif content == "zip":
            with path.open("wb") as file:
                np.savez(file, np.ones(3))
        else:
            with path.open("wb") as file:
                np.save(file, np.ones((1, 2, 3)) if content == "double" else np.ones(6, np.float16))
        assert EmbeddingCache(tmp_path).get("a") is None

    def test_only_old_partial_files_are_removed(self, tmp_path):
        store = EmbeddingCache(tmp_path)
        names = {age: f".{age * 32}.npy.{number}" for age, number in (("a", 1), ("b", 2))}
        for name in names.values():
            (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / names["a"], (1, 1))
        EmbeddingCache(store.directory)
        assert {path.name for path in tmp_path.iterdir()} == {names["b"], RECORD}

    def test_temporary_folder_of_a_killed_run_is_cleared(self, tmp_path):
        directory = RecordedDirectory(tmp_path)
        directory.open()
        store = EmbeddingCache(within=tmp_path)
        store.put("a", np.ones((1, 2, 3)))
        store._temporary._finalizer.detach()  # as a process that is killed
        assert store.directory.parent == tmp_path
        directory.open()
        assert {path.name for path in tmp_path.iterdir()} == {RECORD, LOCK}

    @pytest.mark.parametrize("limit", [0, -1.0])
    def test_limit_must_be_positive(self, tmp_path, limit):
        with pytest.raises(InputError, match="embedding_store_gb"):
            EmbeddingCache(tmp_path, limit)


class TestDescribe:
    def test_transforms_differ_by_attributes(self):
        def of(factor):
            return Compose([ScaleForegroundPercentilesd("image", 0.5, factor, 0.3)])

        assert describe(of(99.5)) == describe(of(99.5)) != describe(of(99.0))
        assert " at 0x" not in json.dumps(describe(of(99.5)))

    def test_lambdas_differ_by_code_and_values(self):
        def of(expression, **names):
            return describe(Lambdad("image", eval(expression, names)))

        def of_config(by):
            transform = {"_target_": "Lambdad", "keys": "image", "func": "$lambda image: image / @by"}
            return describe(ConfigParser({"by": by, "transform": transform}).get_parsed_content("transform"))

        assert of("lambda image: image / 2") == of("lambda image: image / 2") != of("lambda image: image / 3")
        assert of("(lambda by: lambda image: image / by)(2)") != of("(lambda by: lambda image: image / by)(3)")
        assert of("lambda image, by=2: image / by") != of("lambda image, by=3: image / by")
        assert of("part(divmod, 2)", part=functools.partial) != of("part(divmod, 3)", part=functools.partial)
        assert of_config(2) == of_config(2) != of_config(3)
        assert describe(np.arange(3)) == describe(np.arange(3)) != describe(np.arange(4))
        assert describe(torch.ones(2)) != describe(torch.zeros(2))
        assert json.dumps(describe(np.log1p)) != json.dumps(describe(np.sqrt))  # their class has an attribute identity

    def test_transforms_of_the_bundle_keep_their_name(self):
        assert describe(CheckImaged) == "scripts.transforms.CheckImaged"  # as in keys of 0.4
        assert describe(OrientUprightd) == "scripts.transforms.OrientUprightd"
        assert describe(ScaleForegroundPercentilesd) == "scripts.transforms.ScaleForegroundPercentilesd"
        assert describe(LoadImageFiled) == "scripts.image_files.LoadImageFiled"
