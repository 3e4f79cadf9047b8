"""What an inference run leaves in its output folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from skimage.measure import label

from .case_view import CaseView, foreground_of, slice_axis
from .errors import InputError
from .network import PatchAnomalyNetwork
from .overlay import overlay_png
from .processes import gather
from .provenance import NOTE, provenance
from .whole_file import whole_folder, write_json

logger = logging.getLogger(__name__)

# Of the foreground beyond the normal limit: 0.05 at most was measured with lesions, 0.67 at least with another contrast
# (docs/thresholds.md).
OUTSIDE_SHARE = 0.3
IMAGE_SCORES = ("top_hundredth", "maximum")


class CaseWriter:
    """Writes the mask, the map and a picture of each case, and a summary of the run.

    ``<case>/<case>_mask.nii.gz``, ``<case>/<case>_map.nii.gz`` and ``<case>/<case>_overlay.png``; a case's folder
    appears whole or not at all. ``summary.json`` is renewed after every case; several processes, each of which has its
    own cases, write it together at the end.

    Args:
        output_dir: where they go.
        network: named in the summary by its settings and its weights.
        settings: the run's settings, for the summary.
        spatial_dim: axis of the oriented volume across which slices were taken.

    Raises:
        InputError: ``output_dir`` is a file.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: PatchAnomalyNetwork,
        settings: Mapping[str, Any],
        spatial_dim: int = 2,
    ) -> None:
        self.output_dir = Path(output_dir)
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise InputError(f"output_dir must be a folder; {output_dir} is a file.")
        self.network = network
        self.settings = dict(settings)
        self.spatial_dim = spatial_dim
        self.cases: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`; what fails here is a failure of the case."""
        engine.add_event_handler(Events.STARTED, lambda: self.cases.clear())
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        alone = idist.get_world_size() == 1
        engine.add_event_handler(Events.ITERATION_COMPLETED if alone else Events.COMPLETED, self.write_summary)

    def __call__(self, engine: Engine) -> None:
        """Write the files of the cases of an iteration."""
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            entry = self.write_case(batch["case"], output["image"], output["map"], output["pred"])
            self.cases.append(entry)
            volume = entry["anomalous_volume_ml"]
            logger.info(
                f"{entry['case']}: score {entry['image_score']:.2f}, {entry['n_regions']} regions"
                + (f", {volume:.2f} mL" if volume is not None else "")
            )
            if entry["outside_fitted_range"]:
                logger.warning(f"{entry['case']}: {outside_warning(entry)}")

    def write_case(self, case: str, image: MetaTensor, anomaly_map: MetaTensor, mask: MetaTensor) -> dict[str, Any]:
        """Write the files of one case.

        Args:
            case: its name.
            image: what was scored ``[C,...]`` in [0,1], in the orientation of the input.
            anomaly_map: calibrated map ``[1,...]`` likewise.
            mask: ``[1,...]`` likewise.

        Returns:
            The case's entry in the summary.
        """
        scores = anomaly_map[0].cpu().numpy().astype(np.float32)
        binary = mask[0].cpu().numpy().astype(np.uint8)
        affine = np.eye(4)
        given = np.asarray(image.meta.get("original_affine", image.affine), dtype=float)
        affine[: len(given) - 1, : len(given) - 1] = given[:-1, :-1]
        affine[: len(given) - 1, 3] = given[:-1, -1]

        with whole_folder(self.output_dir / case) as partial:
            for kind, array in (("mask", binary), ("map", scores)):
                nifti = nib.Nifti1Image(array, affine)
                nifti.header.set_xyzt_units("mm")
                nib.save(nifti, partial / f"{case}_{kind}.nii.gz")
            foreground = foreground_of(image.cpu().numpy())
            entry = {"case": case, **measurements(scores, binary, foreground, affine, self.spatial_dim)}
            view = CaseView.of(image, anomaly_map, mask, self.spatial_dim)
            (partial / f"{case}_overlay.png").write_bytes(overlay_png(view, caption(case, entry)))
        return entry

    def write_summary(self, engine: Engine) -> None:
        """Write ``summary.json`` with the cases so far."""
        summary = self.summary(engine)  # of all processes: each has to call it
        if idist.get_rank() == 0:
            write_json(summary, self.output_dir / "summary.json")

    def summary(self, engine: Engine) -> dict[str, Any]:
        """What ``summary.json`` holds: the cases so far, those that failed, and what the results came from."""
        return {
            "note": NOTE,
            "cases": gather(self.cases),
            "failed": dict(gather([*getattr(engine, "failed", {}).items()])),
            **provenance(self.network, self.settings),
        }


def measurements(
    scores: np.ndarray, mask: np.ndarray, foreground: np.ndarray, affine: np.ndarray, spatial_dim: int
) -> dict[str, Any]:
    """The numbers that describe a case.

    Args:
        scores: calibrated map of an image or a volume.
        mask: the same shape, 0 or 1.
        foreground: the same shape, true where the image is not background.
        affine: of both, ``[4,4]``, in mm.
        spatial_dim: axis of the oriented volume across which slices were taken.

    Returns:
        ``image_score`` (mean of the highest hundredth of the map within the foreground, in units of the limit),
        ``anomalous_volume_ml`` (None for an image, which has no thickness), ``anomalous_fraction`` (of the foreground),
        ``fraction_beyond_limit`` (of the foreground, beyond 1.0 whatever the threshold of the mask),
        ``outside_fitted_range`` (whether that is more than a lesion explains), ``n_regions`` (connected through faces,
        edges and corners), and for a volume ``slices`` (indices, from 0, of those that the mask touches along
        ``slice_axis`` of the array).
    """
    beyond = float((scores[foreground] > 1).mean())
    numbers: dict[str, Any] = {
        "image_score": image_score(scores, foreground),
        "anomalous_volume_ml": None,
        "anomalous_fraction": float(mask[foreground].mean()),
        "fraction_beyond_limit": beyond,
        "outside_fitted_range": beyond > OUTSIDE_SHARE,
        "n_regions": int(label(mask, return_num=True)[1]),
        "shape": list(scores.shape),
    }
    if scores.ndim == 3:
        axis, _ = slice_axis(affine, spatial_dim)
        others = tuple(dim for dim in range(3) if dim != axis)
        numbers["anomalous_volume_ml"] = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
        numbers["slice_axis"] = axis
        numbers["slices"] = np.flatnonzero(mask.any(others)).tolist()
    return numbers


def outside_warning(numbers: Mapping[str, Any]) -> str:
    """What to say of a case outside the fitted range; see `measurements`."""
    return (
        f"{numbers['fraction_beyond_limit']:.0%} of the foreground lies beyond the normal limit, so scanner, contrast "
        "or anatomy is outside the fitted range and the mask means little"
    )


def caption(case: str, numbers: Mapping[str, Any]) -> str:
    """What stands above the picture of a case; see `measurements`."""
    outside = "   OUTSIDE THE FITTED RANGE" if numbers["outside_fitted_range"] else ""
    return f"{case}   image score {numbers['image_score']:.2f}{outside}   not for diagnosis"


def image_score(scores: np.ndarray, foreground: np.ndarray, kind: str = "top_hundredth") -> float:
    """The score of a whole case, in units of the limit.

    Args:
        scores: calibrated map.
        foreground: the same shape, true where the image is not background.
        kind: ``"top_hundredth"``, the mean of the highest hundredth of the map within the foreground; ``"maximum"``.

    Returns:
        The score.
    """
    inside = scores[foreground]
    highest = max(1, round(inside.size / 100)) if kind == "top_hundredth" else 1
    return float(np.partition(inside, -highest)[-highest:].mean())
