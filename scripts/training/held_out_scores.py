"""Scores of held-out normal cases, from which thresholds and limits are computed."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from monai.utils import evenly_divisible_all_gather

from ..distributed import gather
from ..files import PARTIAL
from ..models.calibration import normalize_scores
from ..models.mixture import SCORE_KINDS
from ..models.network import PatchAnomalyNetwork
from .cross_fit import HeldOut
from .geometry import CaseGeometry


class ScoredCase(NamedTuple):
    """A held-out normal case.

    Attributes:
        scores: file of its raw scores ``[kinds,s,h*w]``.
        geometry: its geometry.
    """

    scores: Path
    geometry: CaseGeometry


class HeldOutScores:
    """Raw scores of the patches of held-out normal cases, on disk until the object is deleted.

    Args:
        network: its mixture has the score kinds and its encoder the patch grid.
        parts: cases and the mixtures that score them; of several processes each scores some of the cases.
        within: parent of the temporary folder: a `RecordedDirectory`, which clears the files that a killed run left.
        max_patches: number of patches above which only every n-th counts in `patches`.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        parts: Iterable[HeldOut],
        within: str | os.PathLike | None = None,
        max_patches: int = 4_000_000,
    ) -> None:
        self.network = network
        self.max_patches = max_patches
        self.kinds = network.mixture.score_kinds
        self._folder = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=within)
        self.cases: list[ScoredCase] = []
        for mixture, embeddings in parts:
            for index in range(idist.get_rank(), embeddings.n_used, idist.get_world_size()):
                path = Path(self._folder.name, f"{len(self.cases)}.npy")
                geometry = embeddings.geometry(index)
                grid = network.patch_grid(*geometry.foreground.shape[1:])
                np.save(path, self._scored(mixture, embeddings.case(index), grid))
                self.cases.append(ScoredCase(path, geometry))

    @torch.no_grad()
    def _scored(self, mixture: Any, embeddings: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Score the embeddings ``[s,h*w,D]`` of a case slice by slice; smooth the scores on the grid of patches."""
        scores = []
        for each in embeddings:
            patches = torch.from_numpy(np.array(each)).to(mixture.means)
            kinds = torch.stack([mixture.anomaly_score(patches, kind) for kind in self.kinds])
            scores.append(self.network.smooth(kinds.view(-1, *grid)).flatten(1).cpu().numpy())
        return np.stack(scores, axis=1)

    @functools.cached_property
    def patches(self) -> dict[str, np.ndarray]:
        """Raw scores ``[N]`` of the patches of the foreground, of all processes, by kind."""
        masks = [case.geometry.patch_foreground(self.network) for case in self.cases]
        n_patches = sum(gather([int(mask.sum()) for mask in masks]))
        step = 1 + n_patches // self.max_patches
        selected = [np.load(case.scores)[:, mask][:, ::step] for case, mask in zip(self.cases, masks, strict=True)]
        scores = np.concatenate([np.empty((len(self.kinds), 0), np.float32), *selected], axis=1)
        gathered: Any = evenly_divisible_all_gather(torch.from_numpy(scores.T.copy()), concat=True)
        return dict(zip(self.kinds, gathered.numpy().T, strict=True))

    def region_peaks(self, min_region_mm3: float) -> dict[str, list[np.ndarray]]:
        """Find the regions of the maps of all cases, of all processes.

        Args:
            min_region_mm3: volume of the smallest region; in pixels for images.

        Returns:
            By kind the raw peaks of the regions of each case.
        """
        peaks: dict[str, list[np.ndarray]] = {}
        for row, kind in enumerate(self.kinds):
            score_range = self.network.calibration.score_range(SCORE_KINDS.index(kind), self.network.target_fpr)
            median, threshold = (value.cpu() for value in score_range)
            of_cases = []
            for case in self.cases:
                scores = normalize_scores(torch.from_numpy(np.load(case.scores)[row]), median, threshold)
                regions = case.geometry.regions(self.anomaly_map(scores, case.geometry), min_region_mm3)
                of_cases.append(regions.peaks * float(threshold - median) + float(median))
            peaks[kind] = gather(of_cases)
        return peaks

    def anomaly_map(self, scores: torch.Tensor, geometry: CaseGeometry) -> np.ndarray:
        """Make the map ``[S,H,W]`` of patch scores ``[s,h*w]``, as inference does."""
        anomaly_map = np.zeros(geometry.foreground.shape, np.float32)
        height, width = geometry.foreground.shape[1:]
        grid = self.network.patch_grid(height, width)
        for index, patches in zip(geometry.nonempty, scores, strict=True):
            anomaly_map[index] = self.network.to_pixels(patches.view(1, 1, *grid), height, width)[0, 0].numpy()
        return anomaly_map
