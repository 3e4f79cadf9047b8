"""Cases and their maps: scored while the next ones are read and those before are written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from monai.networks.utils import eval_mode

from ..data.cases import sentence
from ..data.prefetch import prefetch
from .inferer import DPMMInferer, nonempty_slices
from .patches import PatchObserver, Seen, split_patches

logger = logging.getLogger(__name__)

FAILED = "scored and written", "see the log at level DEBUG for the whole of it"


class SlicedCase(NamedTuple):
    """A case that was read.

    Attributes:
        item: what the dataset gives.
        slices: ``[S,C,h,w]``; none where the case failed, or is not to be scored.
        occupied: see `nonempty_slices`.
    """

    item: dict[str, Any]
    slices: torch.Tensor
    occupied: torch.Tensor


class AnomalyMapLoader:
    """Iterates over cases with their anomaly maps.

    One thread reads a case while another scores the one before; who iterates uses the one before that. Slices of
    successive cases share batches where one case does not fill them. In each of the three places there is one case at a
    time, or as many as fill a batch.

    Args:
        cases: a dataset such as `CaseDataset`.
        network: ``[B,C,h,w]`` -> ``[B,1,h,w]``; a module or any callable.
        inferer: takes the slices and puts the maps together.
        device: where the network is; the cases stay where they are.

    Attributes:
        observer: looks on, where there is one.
    """

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        network: Any,
        inferer: DPMMInferer,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cases = cases
        self.network = network
        self.inferer = inferer
        self.device = device
        self.observer: PatchObserver | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Score the cases.

        Yields:
            Of each case ``case``, its name; ``image`` ``[C,...]`` and ``pred``, its map ``[1,...]``; ``patches``, what
            the observer saw; and ``key``, as the dataset gives it. Items without an ``image`` are handed on as they
            are, such as ``case`` and ``error``, a sentence.
        """
        self._stopped = False
        scored = (case for pool in self._pools() for case in self._score(pool))
        try:
            yield from prefetch(lambda _: next(scored), range(len(self)))
        finally:
            self._stopped = True

    def stop(self) -> None:
        """End the threads with the batch that they are at."""
        self._stopped = True

    def _pools(self) -> Iterator[list[SlicedCase]]:
        """Successive cases of one size that fill a batch together."""
        pool: list[SlicedCase] = []
        for case in map(self._sliced, prefetch(self.cases.__getitem__, range(len(self)))):
            if pool and case.slices.shape[1:] != pool[0].slices.shape[1:]:
                yield pool
                pool = []
            pool.append(case)
            n_slices = sum(len(self.inferer.scored(each.occupied)) for each in pool)
            if max(n_slices, len(pool)) >= self.inferer.slice_batch_size:
                yield pool
                pool = []
        if pool:
            yield pool

    def _sliced(self, item: dict[str, Any]) -> SlicedCase:
        nothing = SlicedCase(item, torch.empty(0), torch.empty(0, dtype=torch.long))
        if "image" not in item:
            return nothing
        try:
            (slices,) = self.inferer.slices(item["image"].unsqueeze(0))
            return SlicedCase(item, slices, nonempty_slices(slices))
        except Exception as error:
            return nothing._replace(item=_failed(item, error))

    def _score(self, pool: list[SlicedCase]) -> list[dict[str, Any]]:
        """The cases of a pool with their maps; one that fails does not take the others along."""
        try:
            return self._score_together(pool)
        except Exception as error:
            if len(pool) == 1:
                return [_failed(pool[0].item, error)]
            return [scored for case in pool for scored in self._score([case])]

    def _score_together(self, pool: list[SlicedCase]) -> list[dict[str, Any]]:
        if not len(pool[0].slices):  # nor have the others any: they are of one size
            return [case.item for case in pool]
        stacks, occupied = [case.slices for case in pool], [case.occupied for case in pool]
        watching: AbstractContextManager[Seen] = self.observer.watch() if self.observer else nullcontext([])
        with eval_mode(self.network), watching as seen:
            maps = self.inferer.maps(stacks, occupied, self._map_of)
        patches = split_patches(seen, [self.inferer.scored(chosen) for chosen in occupied])
        return [
            {
                "case": case.item["case"],
                "image": case.item["image"],
                "pred": self.inferer.stack_slices([of_case], case.item["image"].unsqueeze(0))[0],
                "patches": of_patches,
                "key": case.item.get("key"),
            }
            for case, of_case, of_patches in zip(pool, maps, patches, strict=True)
        ]

    def _map_of(self, images: torch.Tensor) -> torch.Tensor:
        if self._stopped:
            raise RuntimeError("The run was stopped.")
        return self.network(images.to(self.device))


def _failed(item: dict[str, Any], error: Exception) -> dict[str, Any]:
    logger.debug("the whole of it", exc_info=error)
    return {"case": item["case"], "error": sentence(error, *FAILED)}
