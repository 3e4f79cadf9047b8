"""The card of a fitted model, written from its file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..config.settings import check_settings
from ..errors import InputError
from ..files import write_sealed
from ..inference.measurements import OUTSIDE_SHARE
from ..markdown import escape
from ..metadata import bundle_version
from ..models.fitted_state import is_plain
from ..models.provenance import NOTE
from .fit_report import TOLERANCE, FitReport
from .fitted_model import FittedModel
from .operating_point import OperatingPoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OPERATING = ("score", "target_fpr", "false_regions", "extent", "case_alpha")
SHOWN_APART = ("encoder_name", "field_of_view_mm", "views")
# Settings of a fit that its report has and its model has not.
OF_THE_REPORT = (
    "max_epochs",
    "patience",
    "settling_epochs",
    "batch_slices",
    "step_size",
    "schedule",
    "init_params",
    "reg_covar",
    "spatial_dim",
    "validation_fraction",
    "calibration_folds",
    "min_region_mm3",
    "seed",
)
NAME = re.compile(r"[a-z0-9_]+")


def write_model_card(
    ckpt_path: str | os.PathLike,
    output: str | os.PathLike,
    fit_report: str | os.PathLike | None = None,
    **settings: Any,
) -> None:
    """Write the card of a fitted model.

    Args:
        ckpt_path: the model.
        output: the Markdown file; an older card is replaced if it is unchanged.
        fit_report: ``fit_report.json`` of its fit.
        settings: values of ``score``, ``target_fpr``, ``false_regions``, ``extent`` and ``case_alpha``, which replace
            those of ``configs/inference.json``.

    Raises:
        InputError: a file is missing or of another kind, a setting does not exist or has a wrong value, or the card
            cannot be written.
    """
    if not str(output):
        raise InputError("output must name a file, such as card.md; got an empty name.")
    model = FittedModel.read(str(ckpt_path))
    report = None if fit_report is None else FitReport.read(str(fit_report), model)
    write_sealed(model_card(model, report, settings), str(output))


def model_card(model: FittedModel, report: FitReport | None = None, settings: Mapping[str, Any] | None = None) -> str:
    """Return the card in Markdown; see `write_model_card`."""
    defaults = json.loads((CONFIGS / "inference.json").read_text())
    chosen = check_settings({**{name: defaults[name] for name in OPERATING}, **(settings or {})}, OPERATING)
    point = OperatingPoint.of(model.calibration, chosen)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=as_markdown, number=as_number)
    return environment.get_template("card.md.j2").render(
        note=NOTE,
        version=bundle_version(),
        model=model,
        report=report,
        point=point,
        settings=fit_settings(model, report),
        held_out=held_out(model, report),
        intervals=peak_intervals(report, point),
        outside_share=OUTSIDE_SHARE,
    )


def fit_settings(model: FittedModel, report: FitReport | None) -> list[tuple[str, Any]]:
    """List the settings of a fit, those of its report last; none of them is text that a user has typed freely."""
    own = {name: value for name, value in model.settings.items() if name not in SHOWN_APART}
    others = {name: report.settings.get(name) for name in OF_THE_REPORT} if report else {}
    return [(name, value) for name, value in {**own, **others}.items() if NAME.fullmatch(name) and is_plain(value)]


def held_out(model: FittedModel, report: FitReport | None) -> str:
    """Say how cases were held out; an empty string if that is not known."""
    if report is None:
        return ""
    if not report.has_calibration_of(model):
        return "from a calibration after the fit, on other normal cases than those of its report"
    if report.detection is not None and report.is_refitted:
        return f"each scored by a mixture that was not fitted on it ({report.detection.folds} folds)"
    return "not fitted on"


def peak_intervals(report: FitReport | None, point: OperatingPoint) -> list[str]:
    """Return the 95 % intervals over cases of the peaks of a table; empty if the report has them of other limits."""
    if report is None or report.detection is None:
        return []
    limits = [report.detection.peak_limits.get(f"{row.false_regions:g}") for row in point.table]
    if any(
        limit is None or not math.isclose(limit.peak, row.peak, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        for limit, row in zip(limits, point.table, strict=True)
    ):
        return []
    return [f"{as_number(limit.low)} to {as_number(limit.high)}" for limit in limits if limit is not None]


def as_markdown(value: Any) -> str:
    """Return a value as escaped text, None as in the settings."""
    return escape("off" if value is None else str(value))


def as_number(value: float, digits: int = 3) -> str:
    """Return a number with as many significant digits."""
    return f"{value:.{digits}g}"
