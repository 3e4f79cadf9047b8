"""The patch embeddings of a set of cases, computed once and read many times."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.cases import raise_failed
from ..data.prefetch import prefetch
from ..digests import tensor_digest
from ..errors import InputError
from ..inference.inferer import DPMMInferer, nonempty_slices
from ..models.network import PatchAnomalyNetwork
from .embedding_cache import EmbeddingCache, file_identity


class CachedEmbeddings(Dataset):
    """Slices in half precision on disk, read one by one.

    Args:
        files: ``[slices, patches, D]`` each, as `EmbeddingCache` keeps them.
        n_features: D.

    Attributes:
        n_patches: how many there are in all slices.
    """

    def __init__(self, files: Sequence[Path], n_features: int) -> None:
        self.files = list(files)
        self.n_features = n_features
        self._shapes = {file: np.load(file, mmap_mode="r").shape for file in files}
        self._slices = [(file, index) for file, shape in self._shapes.items() for index in range(shape[0])]
        self.n_patches = sum(shape[0] * shape[1] for shape in self._shapes.values())

    def __len__(self) -> int:
        """Number of slices."""
        return len(self._slices)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Embeddings ``[h*w, D]`` of a slice, half precision."""
        file, slice_index = self._slices[index]
        return torch.from_numpy(np.array(np.load(file, mmap_mode="r")[slice_index]))

    def collate(self, slices: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings ``[N,D]`` of a list of slices, which may be empty."""
        return torch.cat([torch.empty(0, self.n_features, dtype=torch.float16), *slices])

    def sample(self, n_patches: int, seed: int) -> torch.Tensor:
        """Draw patches uniformly from the whole set, without putting any back.

        Args:
            n_patches: how many; all where there are fewer.
            seed: of the draw.

        Returns:
            ``[n_patches, D]`` in the order of the set, single precision.
        """
        chosen = np.sort(random.Random(seed).sample(range(self.n_patches), min(n_patches, self.n_patches)))
        sizes = [shape[0] * shape[1] for shape in self._shapes.values()]
        ends = np.cumsum(sizes)
        parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
        drawn = [
            np.load(file, mmap_mode="r").reshape(-1, self.n_features)[part - (end - size)]
            for file, part, end, size in zip(self._shapes, parts, ends, sizes, strict=True)
            if len(part)
        ]
        return torch.from_numpy(np.concatenate(drawn).astype(np.float32))


class EmbeddingDataset(CachedEmbeddings):
    """Embeddings of every slice, in half precision on disk.

    The encoder is frozen, so that a fit of many epochs needs each embedding only once. What the store has already is
    not computed again. While one case is embedded, the next ones are loaded and preprocessed.

    Args:
        cases: items with ``case`` and ``image`` ``[C,H,W]`` or ``[C,H,W,D]``, or with ``case`` and ``error``. Those of
            a `CaseDataset` are found in the store by their files; others are embedded each time.
        network: its `embed` gives the embeddings.
        inferer: gives the slices of a volume.
        device: where the network runs.
        store: where the embeddings are kept; by default a temporary folder that goes with the dataset.
        progress: whether to show a progress bar.

    Attributes:
        failed: why a case could not be embedded, by case.
        identity: digest of all that the embeddings depend on: files, preprocessing and encoder; see `EmbeddingCache`.
        n_patches: how many there are.
        seconds: what embedding took this process.

    Raises:
        InputError: not a single case could be embedded, or the store is full.
    """

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        network: PatchAnomalyNetwork,
        inferer: DPMMInferer,
        device: torch.device | str = "cpu",
        store: EmbeddingCache | None = None,
        progress: bool = True,
    ) -> None:
        self.failed: dict[str, str] = {}
        self.n_cases = len(cases)
        self.store = store or EmbeddingCache()
        network.to(device)
        keys = _keys(cases, network, inferer, self.store)
        files = [self.store.get(key) if key is not None else None for key in keys]
        self.identity = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
        self.n_found = len(files) - files.count(None)
        if idist.get_world_size() > 1 and (store is None or None in keys):
            raise InputError("Several processes need a folder that all of them see: give embedding_store.")
        idist.barrier()  # all have seen the same files before one writes
        missing = [index for index, file in enumerate(files) if file is None]
        missing = missing[idist.get_rank() :: idist.get_world_size()]
        begin = time.perf_counter()
        loaded = zip(missing, prefetch(cases.__getitem__, missing, n_threads=2), strict=True)
        for index, case in tqdm(loaded, "embedding", len(missing), unit="case", disable=not progress or not missing):
            try:
                if "error" in case:
                    raise InputError(case["error"])
                embedded = np.concatenate(list(_embed(case["image"], network, inferer, device)))
            except ValueError as error:
                self.failed[case.get("case", str(index))] = str(error)
            else:
                files[index] = self.store.put(keys[index] or [id(self), index], embedded)
        if idist.get_world_size() > 1:
            files = self._take_over(keys)
        self.seconds = time.perf_counter() - begin
        super().__init__([file for file in files if file is not None], network.encoder.n_features)
        if not len(self):
            reasons = "; ".join(f"{case}: {why}" for case, why in self.failed.items())
            raise InputError(f"None of {len(cases)} normal cases could be used. {reasons}")

    def _take_over(self, keys: list[Any]) -> list[Path | None]:
        """The files after all processes have done their share, and what failed with any of them."""
        of_all: list[dict[str, str]] = [{} for _ in range(idist.get_world_size())]
        torch.distributed.all_gather_object(of_all, self.failed)
        self.failed = {case: why for failed in of_all for case, why in failed.items()}
        return [self.store.get(key) for key in keys]

    def counts(self) -> dict[str, float]:
        """How much there is, and what it took: numbers for a report."""
        return {
            "cases": self.n_cases - len(self.failed),
            "failed_cases": len(self.failed),
            "cases_found_in_store": self.n_found,
            "slices": len(self),
            "patches": self.n_patches,
            "embedding_seconds": round(self.seconds, 3),
        }


def _keys(
    cases: Sequence[dict[str, Any]], network: PatchAnomalyNetwork, inferer: DPMMInferer, store: EmbeddingCache
) -> list[Any]:
    """What the embeddings of each case depend on; None for cases that are not files."""
    data = getattr(cases, "data", None)
    if data is None:
        return [None] * len(cases)
    encoder = network.encoder
    common = {
        "weights": encoder.weights_digest or tensor_digest(encoder.state_dict()),
        "encoder": [encoder.name, encoder.layers, encoder.image_size, encoder.scales],
        "spatial_dim": inferer.spatial_dim,
        "preprocessing": store.preprocessing,
    }
    keys: list[Any] = []
    for case in data:
        path = case.get("image")
        is_file = isinstance(path, str) and Path(path).exists()
        keys.append({**common, "file": file_identity(path)} if is_file else None)
    return keys


@torch.no_grad()
def _embed(
    image: torch.Tensor, network: PatchAnomalyNetwork, inferer: DPMMInferer, device: torch.device | str
) -> Iterator[np.ndarray]:
    """Embeddings ``[B, h*w, D]`` of the occupied slices of an image, batch by batch."""
    (slices,) = inferer.slices(image.unsqueeze(0))
    occupied = nonempty_slices(slices)
    if not len(occupied):
        raise InputError("every slice has a single grey value; expected slices with some contrast")
    for chosen in occupied.split(inferer.slice_batch_size):
        yield network.embed(slices[chosen].to(device)).flatten(2).transpose(1, 2).half().cpu().numpy()


def raise_failed_cases(embeddings: Sequence[EmbeddingDataset]) -> None:
    """Say at the end of a fit which cases were left out.

    Args:
        embeddings: what was fitted and validated on.

    Raises:
        InputError: one or more cases could not be embedded.
    """
    failed = [item for dataset in embeddings for item in dataset.failed.items()]
    n_cases = sum(dataset.n_cases for dataset in embeddings)
    raise_failed(failed, n_cases, "the model was fitted without them and saved")
