"""Patch embeddings of a set of cases, computed once and read many times."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.cases import raise_failed
from ..data.field_of_view import FIELD_OF_VIEW, check_field_of_view
from ..data.prefetch import prefetch
from ..digests import tensor_digest
from ..distributed import gather
from ..errors import InputError
from ..inference.inferer import DPMMInferer, nonempty_slices
from ..inference.views import is_near_isotropic
from ..models.network import PatchAnomalyNetwork
from .embedding_cache import EmbeddingCache, file_identity
from .geometry import CaseGeometry


class CachedView(NamedTuple):
    """Files of the slices of a case across one axis.

    Attributes:
        embeddings: array ``[slices, patches, D]``, as `EmbeddingCache` writes it; None if it is not there yet.
        geometry: see `CaseGeometry`; needed for regions only.
    """

    embeddings: Path | None
    geometry: Path | None = None


class CachedEmbeddings(Dataset):
    """Embeddings of slices, in half precision on disk and read one by one.

    Args:
        cases: files of the views of each case; None if a subclass computes them later.
        n_features: D.
    """

    def __init__(self, cases: Sequence[Sequence[CachedView]] | None, n_features: int) -> None:
        self._cases = None if cases is None else [tuple(views) for views in cases]
        self.n_features = n_features

    @property
    def used(self) -> list[tuple[CachedView, ...]]:
        """Views of the cases with embeddings.

        Raises:
            RuntimeError: they are not computed yet.
        """
        if self._cases is None:
            raise RuntimeError("The embeddings are not computed yet; call compute() first.")
        return self._cases

    @property
    def files(self) -> list[Path]:
        """Files of the embeddings, of one view after the other."""
        return [view.embeddings for views in self.used for view in views if view.embeddings]

    def select(self, indices: Sequence[int]) -> CachedEmbeddings:
        """Return the embeddings of some of the cases, by their indices."""
        return CachedEmbeddings([self.used[index] for index in indices], self.n_features)

    def __add__(self, other: CachedEmbeddings) -> CachedEmbeddings:
        """Return the embeddings of the cases of both."""
        return CachedEmbeddings([*self.used, *other.used], self.n_features)

    @property
    def n_used(self) -> int:
        """Number of cases with embeddings."""
        return len(self.used)

    def n_views(self, index: int) -> int:
        """Return the number of views of a case."""
        return len(self.used[index])

    def case(self, index: int, view: int = 0) -> np.ndarray:
        """Open the embeddings of a view of a case ``[slices, patches, D]``, in half precision."""
        path = self.used[index][view].embeddings
        embeddings: np.ndarray = np.load(str(path), mmap_mode="r")
        return embeddings

    def geometry(self, index: int, view: int = 0) -> CaseGeometry:
        """Read the geometry of a view of a case.

        Raises:
            RuntimeError: it is not known.
        """
        path = self.used[index][view].geometry
        if path is None:
            raise RuntimeError("The geometry of these embeddings is not known; compute them from their images.")
        return CaseGeometry.load(path)

    @functools.cached_property
    def _shapes(self) -> dict[Path, tuple[int, ...]]:
        return {file: np.load(file, mmap_mode="r").shape for file in self.files}

    @functools.cached_property
    def _slices(self) -> list[tuple[Path, int]]:
        return [(file, index) for file, shape in self._shapes.items() for index in range(shape[0])]

    @property
    def n_patches(self) -> int:
        """Number of patches in all slices."""
        return sum(shape[0] * shape[1] for shape in self._shapes.values())

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._slices)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Read the embeddings ``[h*w, D]`` of a slice, in half precision."""
        file, slice_index = self._slices[index]
        return torch.from_numpy(np.array(np.load(file, mmap_mode="r")[slice_index]))

    def collate(self, slices: Sequence[torch.Tensor]) -> torch.Tensor:
        """Concatenate the embeddings of slices, a list that may be empty, to ``[N,D]``."""
        return torch.cat([torch.empty(0, self.n_features, dtype=torch.float16), *slices])

    def sample(self, n_patches: int, seed: int) -> torch.Tensor:
        """Draw patches uniformly from the whole set, without replacement.

        Args:
            n_patches: number of patches; a smaller set is taken whole.
            seed: seed of the draw.

        Returns:
            ``[n_patches, D]`` in the order of the set, single precision.
        """
        drawn = np.sort(random.Random(seed).sample(range(self.n_patches), min(n_patches, self.n_patches)))
        sizes = [shape[0] * shape[1] for shape in self._shapes.values()]
        ends = np.cumsum(sizes)
        parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
        patches = [
            np.load(file, mmap_mode="r").reshape(-1, self.n_features)[part - (end - size)]
            for file, part, end, size in zip(self._shapes, parts, ends, sizes, strict=True)
            if len(part)
        ]
        return torch.from_numpy(np.concatenate(patches).astype(np.float32))


class EmbeddingDataset(CachedEmbeddings):
    """Embeddings of every non-empty slice of each view, in half precision on disk.

    The encoder is frozen, so a fit of many epochs needs each embedding only once. `compute` fills the dataset; before
    it, the length and the counts raise a `RuntimeError`.

    Args:
        cases: items with ``case`` and ``image`` ``[C,H,W]`` or ``[C,H,W,D]``, or with ``case`` and ``error``. Those of
            a `CaseDataset` are found in the cache by their files; others are embedded in every run.
        network: its `embed` computes the embeddings.
        inferer: cuts a volume into slices.
        device: device of the network.
        cache: files of embeddings; by default a temporary folder that is removed with the dataset.
        progress: whether to show a progress bar.

    Attributes:
        failed: by case, the reason why it could not be embedded.
        identity: digest of all that the embeddings depend on: files, preprocessing and encoder; see `EmbeddingCache`.
        seconds: duration of the embedding in this process.
    """

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        network: PatchAnomalyNetwork,
        inferer: DPMMInferer,
        device: torch.device | str = "cpu",
        cache: EmbeddingCache | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(None, network.encoder.n_features)
        self.cases = cases
        self.n_cases = len(cases)
        self.network = network
        self.inferer = inferer
        self.device = device
        self.cache = cache
        self.progress = progress
        self.failed: dict[str, str] = {}
        self.identity = ""
        self.n_found = 0
        self.seconds = 0.0

    def compute(self) -> EmbeddingDataset:
        """Embed the cases that are not in the cache; the next ones are loaded and preprocessed meanwhile.

        Several processes share the cases. A second call does nothing.

        Returns:
            This dataset.

        Raises:
            InputError: not a single case could be embedded, the cache is full, several processes have no cache in
                common, or the cases have another field of view than a fitted network.
        """
        if self._cases is not None:
            return self
        is_shared = self.cache is not None
        self.cache = cache = self.cache or EmbeddingCache()
        self.network.to(self.device)
        self._check_field_of_view()
        keys = _cache_keys(self.cases, self.network, self.inferer, cache)
        views = [self._found(of_case, cache) for of_case in keys]
        flat = [key for of_case in keys for key in of_case.values()]
        self.identity = hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
        self.n_found = sum(all(view.embeddings for view in case.values()) for case in views)
        if idist.get_world_size() > 1 and (not is_shared or None in flat):
            raise InputError("Several processes need a folder that all of them see: give embedding_store.")
        idist.barrier()  # every process has read the cache before one writes
        missing = [index for index, case in enumerate(views) if not _is_complete(case)]
        missing = missing[idist.get_rank() :: idist.get_world_size()]
        begin = time.perf_counter()
        loaded = zip(missing, prefetch(self.cases.__getitem__, missing, n_threads=2), strict=True)
        is_silent = not self.progress or not missing
        for index, case in tqdm(loaded, "embedding", len(missing), unit="case", disable=is_silent):
            try:
                if "error" in case:
                    raise InputError(case["error"])
                views[index] = {
                    axis: self._view(case["image"], axis, keys[index][axis] or [id(self), index, axis], cache)
                    for axis in self.inferer.axes(case["image"])
                }
            except ValueError as error:
                self.failed[case.get("case", str(index))] = str(error)
                views[index] = {}
        if idist.get_world_size() > 1:
            self.failed = dict(gather(list(self.failed.items())))
            views = [self._found(of_case, cache) for of_case in keys]
        self.seconds = time.perf_counter() - begin
        used = [tuple(case.values()) for case in views if _is_complete(case)]
        if not used:
            reasons = "; ".join(f"{case}: {reason}" for case, reason in self.failed.items())
            raise InputError(f"None of {self.n_cases} normal cases could be used. {reasons}")
        self._cases = used
        return self

    def _check_field_of_view(self) -> None:
        """Check the first case that can be read, as embeddings in the cache do not say their field of view."""
        if getattr(self.network, FIELD_OF_VIEW, None) is not None:
            readable = (case for case in map(self.cases.__getitem__, range(self.n_cases)) if "error" not in case)
            for case in itertools.islice(readable, 1):
                check_field_of_view(case, self.network)

    def counts(self) -> dict[str, float]:
        """Count cases, slices and patches, for a report."""
        return {
            "cases": self.n_cases - len(self.failed),
            "failed_cases": len(self.failed),
            "cases_found_in_store": self.n_found,
            "slices": len(self),
            "patches": self.n_patches,
            "embedding_seconds": round(self.seconds, 3),
        }

    def _found(self, keys: Mapping[int, Any], cache: EmbeddingCache) -> dict[int, CachedView]:
        """Find the views of a case in the cache by their keys; all of a volume that is refused are missing."""
        missing = CachedView(None)
        found = {
            axis: missing if key is None else CachedView(cache.get(key), cache.get_geometry(key))
            for axis, key in keys.items()
        }
        shown = found[self.inferer.spatial_dim]
        if len(found) == 1 or shown.geometry is None:
            return found
        spacing = CaseGeometry.load(shown.geometry).spacing
        if spacing is None:  # an image has one view
            return {self.inferer.spatial_dim: shown}
        return found if is_near_isotropic(spacing) else dict.fromkeys(found, missing)

    def _view(self, image: torch.Tensor, axis: int, key: Any, cache: EmbeddingCache) -> CachedView:
        """Embed the slices of an image across an axis unless they are in the cache, and write their geometry."""
        (slices,) = self.inferer.slices(image.unsqueeze(0), axis)
        geometry = CaseGeometry.of(image, self.inferer, axis)
        embeddings = cache.get(key) or cache.put(key, np.concatenate(list(self._embed(slices))))
        return CachedView(embeddings, cache.put_geometry(key, geometry))

    @torch.no_grad()
    def _embed(self, slices: torch.Tensor) -> Iterator[np.ndarray]:
        """Embed the non-empty slices ``[S,C,h,w]`` of an image, in batches ``[B, h*w, D]``."""
        nonempty = nonempty_slices(slices)
        if not len(nonempty):
            raise InputError("every slice has a single grey value; expected slices with some contrast")
        for batch in nonempty.split(self.inferer.slice_batch_size):
            embeddings = self.network.embed(slices[batch].to(self.device))
            yield embeddings.flatten(2).transpose(1, 2).half().cpu().numpy()


def _is_complete(views: Mapping[int, CachedView]) -> bool:
    return bool(views) and all(view.embeddings and view.geometry for view in views.values())


def _cache_keys(
    cases: Sequence[dict[str, Any]], network: PatchAnomalyNetwork, inferer: DPMMInferer, cache: EmbeddingCache
) -> list[dict[int, Any]]:
    """Collect all that the embeddings of each case depend on, by axis of its slices; None for cases not in files."""
    data = getattr(cases, "data", None)
    if data is None:
        return [dict.fromkeys(inferer.views)] * len(cases)
    encoder = network.encoder
    common = {
        "weights": encoder.weights_digest or tensor_digest(encoder.state_dict()),
        "encoder": [
            *(encoder.name, encoder.layers, encoder.image_size, encoder.scales),
            *([encoder.layer_reduction] if encoder.layer_reduction != "concat" else []),  # the only one of 0.6
        ],
        "preprocessing": cache.preprocessing,
    }
    keys: list[dict[int, Any]] = []
    for case in data:
        path = case.get("image")
        is_file = isinstance(path, str) and Path(path).exists()
        known = {**common, "file": file_identity(path)} if is_file else None
        keys.append({axis: known and {**known, "spatial_dim": axis} for axis in inferer.views})
    return keys


def raise_failed_cases(embeddings: Sequence[EmbeddingDataset]) -> None:
    """Report at the end of a fit the cases that were left out.

    Args:
        embeddings: training set and validation set.

    Raises:
        InputError: one or more cases could not be embedded.
    """
    failed = [item for dataset in embeddings for item in dataset.failed.items()]
    n_cases = sum(dataset.n_cases for dataset in embeddings)
    raise_failed(failed, n_cases, "the model was fitted without them and saved")
