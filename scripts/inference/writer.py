"""Writer of the predictions: mask, map and picture of each case, and the summary."""

from __future__ import annotations

import logging
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

from ..distributed import gather
from ..errors import InputError, reason_of
from ..models.network import PatchAnomalyNetwork
from ..models.provenance import NOTE, provenance
from .measurements import affine_of, caption, outside_warning
from .results_directory import ResultsDirectory
from .visualization import SliceView, overlay_png

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 5  # between two updates of the summary, at least
MAX_SHARE = 0.01  # of a run that the updates may take: their size grows with the number of cases


class PredictionWriter:
    """Write the mask, the map and a picture of each case, and a summary of the run.

    The files are ``<case>/<case>_mask.nii.gz``, ``<case>/<case>_map.nii.gz``, ``<case>/<case>_overlay.png`` and
    ``summary.json``, which is updated every few seconds, or less often if that takes long, and when the run ends. With
    several processes it is written once, at the end; a run over a share of the cases writes none.

    Args:
        directory: directory of the results.
        network: source of the model settings and weights digest in the summary.
        settings: settings of the run, for the summary.
        spatial_dim: axis of the oriented volume across which slices were taken.
    """

    def __init__(
        self,
        directory: ResultsDirectory,
        network: PatchAnomalyNetwork,
        settings: Mapping[str, Any],
        spatial_dim: int = 2,
    ) -> None:
        self.directory = directory
        self.network = network
        self.settings = dict(settings)
        self.spatial_dim = spatial_dim
        self.cases: list[dict[str, Any]] = []
        self._next_summary = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`; an error in this handler is a failure of the case."""
        self.directory.check_replaceable("summary.json")
        engine.add_event_handler(Events.STARTED, lambda: self.cases.clear())
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.list_case)
        if self.directory.share is not None:
            return
        engine.add_event_handler(Events.COMPLETED, self.write_summary)
        if idist.get_world_size() == 1:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.renew_summary)
            engine.add_event_handler(Events.TERMINATE, self.write_last_summary)

    def __call__(self, engine: Engine) -> None:
        """Write the files of the cases of an iteration.

        Raises:
            InputError: the score is not finite, for example because the image holds extreme values only.
        """
        state: Any = engine.state
        if not self._next_summary:
            self.directory.remove("summary.json")  # describes results that are replaced now
        for batch, output in zip(state.batch, state.output, strict=True):
            if not output["map"].isfinite().all() or not np.isfinite(output["result"]["image_score"]):
                raise InputError("its map holds values that are no numbers; check the grey values of the image")
            case = batch["case"]
            name = self.directory.name_of(case)
            elsewhere = {"directory": name} if name != case else {}
            entry = batch["about"]["entry"] = {"case": case, **elsewhere, **output["result"]}
            self.write_case(
                batch["directory"],
                entry["case"],
                output["map"],
                output["pred"],
                affine_of(output["image"]),
                self.view(output),
                output["result"],
            )

    def view(self, output: dict[str, Any]) -> SliceView:
        """Return the slices of a case; they are made once and kept in its output, which ends with the case."""
        if "view" not in output:
            truth = output.get("truth")
            output["view"] = SliceView.of(
                output["image"],
                output["map"],
                output["pred"],
                self.spatial_dim,
                None if truth is None else truth.mask,
                output.get("foreground"),
            )
        view: SliceView = output["view"]
        return view

    def list_case(self, engine: Engine) -> None:
        """Add the finished cases of an iteration to the summary and log them."""
        state: Any = engine.state
        for batch in state.batch or []:
            if "entry" in batch:
                self.cases.append(batch["entry"])
                logger.debug(f"{batch['case']}: kept from an earlier run")
                continue
            entry = batch["about"]["entry"]
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
        directory: Path,
        case: str,
        anomaly_map: torch.Tensor,
        mask: torch.Tensor,
        affine: np.ndarray,
        view: SliceView,
        result: Mapping[str, Any],
    ) -> None:
        """Write the files of one case.

        Args:
            directory: directory of the files.
            case: name of the case.
            anomaly_map: calibrated map ``[1,...]``, in the orientation of the input.
            mask: mask ``[1,...]``, in the same orientation.
            affine: affine of both ``[4,4]``, in mm.
            view: slices of the case.
            result: measurements of the case.
        """
        name = self.directory.name_of(case)
        for kind, volume, dtype in (("mask", mask, np.uint8), ("map", anomaly_map, np.float32)):
            nifti = nib.Nifti1Image(volume[0].cpu().numpy().astype(dtype, copy=False), affine)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, directory / f"{name}_{kind}.nii.gz")
        (directory / f"{name}_overlay.png").write_bytes(overlay_png(view, caption(case, result)))

    def renew_summary(self, engine: Engine) -> None:
        """Write ``summary.json`` if it is time."""
        if time.monotonic() >= self._next_summary:
            self.try_to_write_summary(engine)

    def write_last_summary(self, engine: Engine) -> None:
        """Write ``summary.json`` of an interrupted run that has reached a case."""
        if self.cases or getattr(engine, "failed", {}):
            self.try_to_write_summary(engine)

    def try_to_write_summary(self, engine: Engine) -> None:
        """Write ``summary.json``; a failure is logged, because the file is written again later."""
        try:
            self.write_summary(engine)
        except (OSError, InputError) as error:
            logger.warning(f"summary.json is not written yet ({reason_of(error)}).")

    def write_summary(self, engine: Engine) -> None:
        """Write ``summary.json`` with the cases so far."""
        begin = time.monotonic()
        self._next_summary = begin + SECONDS_BETWEEN  # also if it fails
        summary = self.summary(engine)  # a collective call: every process makes it
        if idist.get_rank() == 0:
            self.directory.write_json(summary, "summary.json")
        seconds = time.monotonic() - begin
        self._next_summary = begin + max(SECONDS_BETWEEN, seconds / MAX_SHARE)

    def summary(self, engine: Engine) -> dict[str, Any]:
        """Return the content of ``summary.json``: finished and failed cases of all processes, settings, versions."""
        position = self.directory.position_of
        failed = gather([*getattr(engine, "failed", {}).items()])
        return {
            "note": NOTE,
            "cases": sorted(gather(self.cases), key=lambda entry: position(entry["case"])),
            "failed": dict(sorted(failed, key=lambda pair: position(pair[0]))),
            **provenance(self.network, self.settings),
        }
