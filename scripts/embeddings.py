"""The patch embeddings of a set of cases, computed once and read many times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from .cases import raise_failed
from .errors import InputError
from .inferer import DPMMInferer, occupied
from .network import PatchAnomalyNetwork


class EmbeddingDataset(Dataset):
    """Embeddings of every slice, in half precision on disk.

    The encoder is frozen, so that a fit of many epochs needs each embedding only once. They are kept in a temporary
    folder of one file per case, which is memory-mapped and goes with the object.

    Args:
        cases: items with ``case`` and ``image`` ``[C,H,W]`` or ``[C,H,W,D]``, or with ``case`` and ``error``.
        network: its `embed` gives the embeddings.
        inferer: gives the slices of a volume.
        device: where the network runs.
        directory: where the temporary folder is made.
        progress: whether to show a progress bar.

    Attributes:
        failed: why a case could not be embedded, by case.

    Raises:
        InputError: not a single case could be embedded.
    """

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        network: PatchAnomalyNetwork,
        inferer: DPMMInferer,
        device: torch.device | str = "cpu",
        directory: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> None:
        self.failed: dict[str, str] = {}
        if directory:
            os.makedirs(directory, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=".embeddings-", dir=directory)
        self._slices: list[np.ndarray] = []  # [h*w, D] each, views into memory maps
        network.to(device)
        for index in tqdm(range(len(cases)), desc="embedding", unit="case", disable=not progress):
            case = cases[index]
            name = case.get("case", str(index))
            try:
                if "error" in case:
                    raise InputError(case["error"])
                file = os.path.join(self._folder.name, f"{index}.npy")
                np.save(file, _embed(case["image"], network, inferer, device))
                self._slices.extend(np.load(file, mmap_mode="r"))
            except ValueError as error:
                self.failed[name] = str(error)
        if not self._slices:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.failed.items())
            raise InputError(f"None of {len(cases)} normal cases could be used. {reasons}")
        self.n_cases = len(cases)

    def __len__(self) -> int:
        """Number of slices."""
        return len(self._slices)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Embeddings ``[h*w, D]`` of a slice, half precision."""
        return torch.from_numpy(np.array(self._slices[index]))

    def sample(self, n_patches: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw patches uniformly from the whole set.

        Args:
            n_patches: how many; all where there are fewer.
            generator: source of randomness.

        Returns:
            ``[n_patches, D]``, single precision.
        """
        ends = np.cumsum([len(patches) for patches in self._slices])
        chosen = torch.randperm(int(ends[-1]), generator=generator)[:n_patches].sort().values.numpy()
        of_slice = np.searchsorted(ends, chosen, side="right")
        rows = [self._slices[s][i - (ends[s] - len(self._slices[s]))] for s, i in zip(of_slice, chosen, strict=True)]
        return torch.from_numpy(np.stack(rows).astype(np.float32))


@torch.no_grad()
def _embed(
    image: torch.Tensor, network: PatchAnomalyNetwork, inferer: DPMMInferer, device: torch.device | str
) -> np.ndarray:
    """Embeddings ``[S, h*w, D]`` of the occupied slices of an image."""
    slices = inferer.slices(image.unsqueeze(0))
    embedded = [
        network.embed(slices[chosen].to(device)).flatten(2).transpose(1, 2).half().cpu()
        for chosen in occupied(slices).split(inferer.slice_batch_size)
    ]
    return torch.cat(embedded).numpy()


def raise_failed_cases(embeddings: Sequence[EmbeddingDataset]) -> None:
    """Say at the end of a fit which cases were left out.

    Args:
        embeddings: what was fitted and validated on.

    Raises:
        InputError: one or more cases could not be embedded.
    """
    failed = {name: why for dataset in embeddings for name, why in dataset.failed.items()}
    n_cases = sum(dataset.n_cases for dataset in embeddings)
    raise_failed(failed, n_cases, "the model was fitted without them and saved")
