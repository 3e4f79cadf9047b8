"""What an inference run leaves in its output folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from .case_view import CaseView
from .errors import InputError
from .measurements import affine_of, caption, outside_warning
from .network import PatchAnomalyNetwork
from .overlay import overlay_png
from .processes import gather
from .provenance import NOTE, provenance
from .whole_file import whole_folder, write_json

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 5  # two summaries of a run that goes on


class CaseWriter:
    """Writes the mask, the map and a picture of each case, and a summary of the run.

    ``<case>/<case>_mask.nii.gz``, ``<case>/<case>_map.nii.gz`` and ``<case>/<case>_overlay.png``; a case's folder
    appears whole or not at all. ``summary.json`` is renewed after a case, though not again within a few seconds, and
    when the run ends; several processes, each of which has its own cases, write it together at the end.

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
        self._next_summary = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`; what fails here is a failure of the case."""
        engine.add_event_handler(Events.STARTED, lambda: self.cases.clear())
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write_summary)
        if idist.get_world_size() == 1:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.renew_summary)
            engine.add_event_handler(Events.TERMINATE, self.write_summary)

    def __call__(self, engine: Engine) -> None:
        """Write the files of the cases of an iteration."""
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            entry = {"case": batch["case"], **output["result"]}
            view = CaseView.of(output["image"], output["map"], output["pred"], self.spatial_dim)
            output["view"] = view  # for who comes after
            self.write_case(
                entry["case"], output["map"], output["pred"], affine_of(output["image"]), view, output["result"]
            )
            self.cases.append(entry)
            volume = entry["anomalous_volume_ml"]
            logger.info(
                f"{entry['case']}: score {entry['image_score']:.2f}, {entry['n_regions']} regions"
                + (f", {volume:.2f} mL" if volume is not None else "")
            )
            if entry["outside_fitted_range"]:
                logger.warning(f"{entry['case']}: {outside_warning(entry)}")

    def write_case(
        self,
        case: str,
        anomaly_map: torch.Tensor,
        mask: torch.Tensor,
        affine: np.ndarray,
        view: CaseView,
        result: Mapping[str, Any],
    ) -> None:
        """Write the files of one case.

        Args:
            case: its name.
            anomaly_map: calibrated map ``[1,...]``, in the orientation of the input.
            mask: ``[1,...]`` likewise.
            affine: of both, ``[4,4]`` in mm.
            view: of the same.
            result: its measurements.
        """
        with whole_folder(self.output_dir / case) as partial:
            for kind, volume, dtype in (("mask", mask, np.uint8), ("map", anomaly_map, np.float32)):
                nifti = nib.Nifti1Image(volume[0].cpu().numpy().astype(dtype, copy=False), affine)
                nifti.header.set_xyzt_units("mm")
                nib.save(nifti, partial / f"{case}_{kind}.nii.gz")
            (partial / f"{case}_overlay.png").write_bytes(overlay_png(view, caption(case, result)))

    def renew_summary(self, engine: Engine) -> None:
        """Write ``summary.json`` unless that was just done: thousands of cases would be written thousands of times."""
        if time.monotonic() >= self._next_summary:
            self.write_summary(engine)

    def write_summary(self, engine: Engine) -> None:
        """Write ``summary.json`` with the cases so far."""
        summary = self.summary(engine)  # of all processes: each has to call it
        if idist.get_rank() == 0:
            write_json(summary, self.output_dir / "summary.json")
        self._next_summary = time.monotonic() + SECONDS_BETWEEN

    def summary(self, engine: Engine) -> dict[str, Any]:
        """What ``summary.json`` holds: the cases so far, those that failed, and what the results came from."""
        return {
            "note": NOTE,
            "cases": gather(self.cases),
            "failed": dict(gather([*getattr(engine, "failed", {}).items()])),
            **provenance(self.network, self.settings),
        }
