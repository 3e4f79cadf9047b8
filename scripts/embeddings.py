"""The patch embeddings of a set of cases, computed once and read many times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from .cases import raise_failed
from .errors import InputError
from .inferer import DPMMInferer, occupied_batches
from .network import PatchAnomalyNetwork


class EmbeddingDataset(Dataset):
    """Embeddings of every slice, in half precision on disk.

    The encoder is frozen, so that a fit of many epochs needs each embedding only once. They are kept in one temporary
    file without a name, which is memory-mapped and gone with the process, however that ends.

    Args:
        cases: items with ``case`` and ``image`` ``[C,H,W]`` or ``[C,H,W,D]``, or with ``case`` and ``error``.
        network: its `embed` gives the embeddings.
        inferer: gives the slices of a volume.
        device: where the network runs.
        directory: where the temporary file is made.
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
        directory: str | None = None,
        progress: bool = True,
    ) -> None:
        self.failed: dict[str, str] = {}
        self.n_cases = len(cases)
        patches_of_slice: list[int] = []
        if directory:
            os.makedirs(directory, exist_ok=True)
        network.to(device)
        with tempfile.TemporaryFile(dir=directory) as file:
            for index in tqdm(range(len(cases)), desc="embedding", unit="case", disable=not progress):
                case = cases[index]
                try:
                    if "error" in case:
                        raise InputError(case["error"])
                    for embedded in _embed(case["image"], network, inferer, device):
                        file.write(embedded.tobytes())
                        patches_of_slice += [embedded.shape[1]] * embedded.shape[0]
                except ValueError as error:
                    self.failed[case.get("case", str(index))] = str(error)
            if not patches_of_slice:
                reasons = "; ".join(f"{case}: {why}" for case, why in self.failed.items())
                raise InputError(f"None of {len(cases)} normal cases could be used. {reasons}")
            file.flush()
            self._ends = np.cumsum(patches_of_slice)
            shape = (int(self._ends[-1]), network.encoder.n_features)
            self._patches = np.memmap(file, np.float16, mode="r", shape=shape)

    def __len__(self) -> int:
        """Number of slices."""
        return len(self._ends)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Embeddings ``[h*w, D]`` of a slice, half precision."""
        start = self._ends[index - 1] if index else 0
        return torch.from_numpy(np.array(self._patches[start : self._ends[index]]))

    def sample(self, n_patches: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw patches uniformly from the whole set.

        Args:
            n_patches: how many; all where there are fewer.
            generator: source of randomness.

        Returns:
            ``[n_patches, D]``, single precision.
        """
        chosen = torch.randperm(len(self._patches), generator=generator)[:n_patches].sort().values
        return torch.from_numpy(self._patches[chosen.numpy()].astype(np.float32))


@torch.no_grad()
def _embed(
    image: torch.Tensor, network: PatchAnomalyNetwork, inferer: DPMMInferer, device: torch.device | str
) -> Iterator[np.ndarray]:
    """Embeddings ``[B, h*w, D]`` of the occupied slices of an image, batch by batch."""
    slices = inferer.slices(image.unsqueeze(0))
    batches = occupied_batches(slices, inferer.slice_batch_size)
    if not batches:
        raise InputError("every slice has a single grey value; expected slices with some contrast")
    for chosen in batches:
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
