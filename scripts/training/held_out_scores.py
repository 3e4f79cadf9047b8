"""Scores of held-out normal cases, from which thresholds and limits are computed."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from monai.utils import evenly_divisible_all_gather

from ..distributed import gather
from ..files import PARTIAL
from ..inference.views import fuse
from ..models.calibration import normalize_scores
from ..models.mixture import SCORE_KINDS
from ..models.network import PatchAnomalyNetwork
from .cross_fit import HeldOut
from .geometry import CaseGeometry


class ScoredView(NamedTuple):
    """The slices of a held-out normal case across one axis.

    Attributes:
        scores: file of their raw scores ``[kinds,s,h*w]``.
        geometry: their geometry.
    """

    scores: Path
    geometry: CaseGeometry


class HeldOutScores:
    """Raw scores of the patches of held-out normal cases, on disk until the object is deleted.

    A case of several views counts by its fused map: the mean of maps has another distribution than each of them.

    Args:
        network: its mixture has the score kinds and its encoder the patch grid; its ``views`` are those of the cases.
        parts: cases and the mixtures that score them; of several processes each scores some of the cases.
        within: parent of the temporary folder: a `RecordedDirectory`, which clears the files that a killed run left.
        max_patches: number of patches above which only every n-th counts in `patches`.

    Attributes:
        cases: views of each case.
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
        self.cases: list[list[ScoredView]] = []
        for mixture, embeddings in parts:
            for index in range(idist.get_rank(), embeddings.n_used, idist.get_world_size()):
                views = []
                for view in range(embeddings.n_views(index)):
                    path = Path(self._folder.name, f"{len(self.cases)}-{view}.npy")
                    geometry = embeddings.geometry(index, view)
                    grid = network.patch_grid(*geometry.foreground.shape[1:])
                    np.save(path, self._scored(mixture, embeddings.case(index, view), grid))
                    views.append(ScoredView(path, geometry))
                self.cases.append(views)

    @torch.no_grad()
    def _scored(self, mixture: Any, embeddings: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Score the embeddings ``[s,h*w,D]`` of a view slice by slice; smooth the scores on the grid of patches."""
        scores = []
        for each in embeddings:
            patches = torch.from_numpy(np.array(each)).to(mixture.means)
            kinds = torch.stack([mixture.anomaly_score(patches, kind) for kind in self.kinds])
            scores.append(self.network.smooth(kinds.view(-1, *grid)).flatten(1).cpu().numpy())
        return np.stack(scores, axis=1)

    @functools.cached_property
    def patches(self) -> dict[str, np.ndarray]:
        """Raw scores ``[N]`` of the foreground of all cases, of all processes, by kind.

        They are those of patches, or in a case of several views of the voxels of its fused map.
        """
        masks = [self._counted(case) for case in self.cases]
        n_scores = sum(gather([int(mask.sum()) for mask in masks]))
        step = 1 + n_scores // self.max_patches
        selected = [self._raw(case, mask, step) for case, mask in zip(self.cases, masks, strict=True)]
        scores = np.concatenate([np.empty((len(self.kinds), 0), np.float32), *selected], axis=1)
        gathered: Any = evenly_divisible_all_gather(torch.from_numpy(scores.T.copy()), concat=True)
        return dict(zip(self.kinds, gathered.numpy().T, strict=True))

    def _counted(self, case: Sequence[ScoredView]) -> np.ndarray:
        """Select the patches ``[s,h*w]``, or the voxels ``[S,H,W]`` of a fused map, that are foreground."""
        geometry = case[0].geometry
        return geometry.patch_foreground(self.network) if len(case) == 1 else geometry.foreground

    def _raw(self, case: Sequence[ScoredView], mask: np.ndarray, step: int) -> np.ndarray:
        """Return every n-th of the selected raw scores ``[kinds,n]`` of a case; voxels of empty slices have none."""
        if len(case) == 1:
            return np.asarray(np.load(case[0].scores)[:, mask][:, ::step])
        rows = [self.anomaly_map(case, row, empty=np.nan)[mask][::step] for row in range(len(self.kinds))]
        return np.stack(rows)[:, ~np.isnan(rows[0])]

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
            calibrate = partial(normalize_scores, median=median, threshold=threshold)
            of_cases = []
            for case in self.cases:
                regions = case[0].geometry.regions(self.anomaly_map(case, row, calibrate), min_region_mm3)
                of_cases.append(regions.peaks * float(threshold - median) + float(median))
            peaks[kind] = gather(of_cases)
        return peaks

    def anomaly_map(
        self,
        case: Sequence[ScoredView],
        row: int,
        calibrate: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float,
        empty: float = 0.0,
    ) -> np.ndarray:
        """Make the map of a case as inference does.

        Args:
            case: its views.
            row: index of the score kind.
            calibrate: applied to the patch scores.
            empty: value of slices without contrast.

        Returns:
            ``[S,H,W]``, in the slices of the first view.
        """
        axes = self.network.views if len(case) > 1 else [0]

        def maps() -> Iterator[list[torch.Tensor]]:
            for axis, view in zip(axes, case, strict=True):
                scores = calibrate(torch.from_numpy(np.load(view.scores)[row]))
                yield [self._view_map(scores, view.geometry, empty).movedim(0, axis).movedim(axes[0], 0)]

        (fused,) = fuse(maps())
        return fused.numpy()

    def _view_map(self, scores: torch.Tensor, geometry: CaseGeometry, empty: float) -> torch.Tensor:
        """Make the map ``[S,H,W]`` of the patch scores ``[s,h*w]`` of a view."""
        view_map = torch.full(geometry.foreground.shape, empty)
        height, width = geometry.foreground.shape[1:]
        grid = self.network.patch_grid(height, width)
        for index, patches in zip(geometry.nonempty, scores, strict=True):
            view_map[index] = self.network.to_pixels(patches.view(1, 1, *grid), height, width)[0, 0]
        return view_map
