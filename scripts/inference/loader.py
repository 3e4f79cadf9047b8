"""Loader of scored cases: reading, scoring and using cases overlap."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from monai.networks.utils import eval_mode
from monai.utils import convert_to_dst_type

from ..data.cases import sentence
from ..data.field_of_view import FIRST_VOXEL, check_field_of_view
from ..data.prefetch import prefetch
from ..errors import InputError
from ..models.network import PatchOutput
from .inferer import DPMMInferer, Slices
from .patches import Window, split_by_case

logger = logging.getLogger(__name__)

FAILED = "scored and written", "see the log at level DEBUG for the whole of it"


class SlicedCase(NamedTuple):
    """A case that was read.

    Attributes:
        item: item of the dataset.
        views: slices of each view; none if the case failed or needs no score.
    """

    item: dict[str, Any]
    views: Sequence[Slices]

    @property
    def slice_shapes(self) -> list[torch.Size]:
        """Shape ``[C,h,w]`` of the slices of each view."""
        return [view.stack.shape[1:] for view in self.views]


class AnomalyMapLoader:
    """Iterate over cases with their anomaly maps.

    One thread reads a case while another scores the previous one and the caller uses the one before that. Slices of
    successive cases share batches if one case does not fill a batch. Each of the three stages holds one case at a
    time, or as many as fill a batch.

    Args:
        cases: a dataset such as `CaseDataset`.
        network: ``[B,C,h,w]`` -> ``[B,1,h,w]``; a module or any callable.
        inferer: takes the slices of a case and makes its map of theirs.
        device: device of the network; the cases stay where they are.
        patches: whether to ask the network for the components and likelihoods of the patches, too.

    Raises:
        InputError: patches are wanted of a network that returns maps only, as an exported file does.
    """

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        network: Any,
        inferer: DPMMInferer,
        device: torch.device | str = "cpu",
        patches: bool = False,
    ) -> None:
        if patches and not hasattr(network, "score_patches"):
            raise InputError(
                "An exported network returns maps only, which is too little for a report; add --report False."
            )
        self.cases = cases
        self.network = network
        self.inferer = inferer
        self.device = device
        self.patches = patches
        self._stopped = False

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Score the cases.

        Yields:
            For each case ``case``, its name; ``image`` ``[C,...]``; ``pred``, its map ``[1,...]``; ``patches``, its
            `PatchAssignments` in the slices across ``spatial_dim``, or None; ``key``, from the dataset. Items without
            an ``image`` are passed on unchanged, for example ``case`` and ``error``, a sentence.
        """
        self._stopped = False
        scored = (case for group in self._groups() for case in self._score(group))
        try:
            yield from prefetch(lambda _: next(scored), range(len(self)))
        finally:
            self._stopped = True

    def stop(self) -> None:
        """Stop the threads after the current batch."""
        self._stopped = True

    def _groups(self) -> Iterator[list[SlicedCase]]:
        """Group successive cases of one size that fill a batch together."""
        group: list[SlicedCase] = []
        for case in map(self._sliced, prefetch(self.cases.__getitem__, range(len(self)))):
            if group and case.slice_shapes != group[0].slice_shapes:
                yield group
                group = []
            group.append(case)
            n_slices = sum(len(self.inferer.scored(view.nonempty)) for member in group for view in member.views[:1])
            if max(n_slices, len(group)) >= self.inferer.slice_batch_size:
                yield group
                group = []
        if group:
            yield group

    def _sliced(self, item: dict[str, Any]) -> SlicedCase:
        if "image" not in item:
            return SlicedCase(item, [])
        try:
            check_field_of_view(item, self.network)
            return SlicedCase(item, self.inferer.cut(item["image"]))
        except Exception as error:
            return SlicedCase(_failed(item, error), [])

    def _score(self, group: list[SlicedCase]) -> list[dict[str, Any]]:
        """Score the cases of a group; a case that fails does not affect the others."""
        try:
            return self._score_together(group)
        except Exception as error:
            if len(group) == 1:
                return [_failed(group[0].item, error)]
            return [scored for case in group for scored in self._score([case])]

    def _score_together(self, group: list[SlicedCase]) -> list[dict[str, Any]]:
        if not group[0].views:  # cases of a group have one size: the others are empty as well
            return [case.item for case in group]
        outputs: list[PatchOutput] = []

        def score(images: torch.Tensor, axis: int | None) -> torch.Tensor:
            if self._stopped:
                raise RuntimeError("The run was stopped.")
            if not self.patches or not self._is_shown(axis):
                return self.network(images.to(self.device))
            outputs.append(self.network.score_patches(images.to(self.device)))
            return outputs[-1].anomaly_map

        with eval_mode(self.network):
            maps = self.inferer.maps([case.views for case in group], score)
        shown = [(case.item, view) for case in group for view in case.views if self._is_shown(view.axis)]
        patches = split_by_case(
            outputs,
            [self.inferer.scored(view.nonempty) for _, view in shown],
            [Window.of(view, item.get(FIRST_VOXEL, (0, 0, 0))) for item, view in shown],
        )
        return [
            {
                "case": case.item["case"],
                "image": case.item["image"],
                "pred": convert_to_dst_type(anomaly_map, case.item["image"], dtype=torch.float32)[0],
                "patches": assignments,
                "key": case.item.get("key"),
            }
            for case, anomaly_map, assignments in zip(group, maps, patches, strict=True)
        ]

    def _is_shown(self, axis: int | None) -> bool:
        """Return whether slices across an axis are those that reports show."""
        return axis is None or axis == self.inferer.spatial_dim


def _failed(item: dict[str, Any], error: Exception) -> dict[str, Any]:
    logger.debug("the whole of it", exc_info=error)
    return {"case": item["case"], "error": sentence(error, *FAILED)}
