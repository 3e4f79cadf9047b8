"""``fit_report.json``, as far as a model card takes figures from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from ..errors import InputError, reason_of
from ..models.mixture import SCORE_KINDS
from .fitted_model import FittedModel

TOLERANCE = 1e-4  # relative; the report and the model may be of different processors


class Counts(BaseModel):
    """Images of a part of the data."""

    cases: int
    failed_cases: int = 0
    slices: int
    patches: int


class Data(BaseModel):
    """Images of the fit, and those that chose its epoch."""

    train: Counts
    validation: Counts


class PeakLimit(BaseModel):
    """Limit of the peaks at a rate of false regions, with its 95 % interval over cases."""

    peak: float
    low: float
    high: float


class Detection(BaseModel):
    """Detection limits and where they come from."""

    held_out_cases: int
    folds: int = 0
    peak_limits: dict[str, PeakLimit] = {}


class FitReport(BaseModel):
    """The report of a fit; entries that the card does not need are left out."""

    data: Data
    best_epoch: int | None = None
    converged: bool | None = None
    concentration: float
    component_weights: list[float]
    score_quantiles: dict[str, dict[str, float]]
    detection: Detection | None = None
    settings: dict[str, Any]
    versions: dict[str, str] = {}

    @classmethod
    def read(cls, path: str | os.PathLike, model: FittedModel) -> FitReport:
        """Read the report of a model's fit.

        Args:
            path: the file.
            model: the model that the report must be of.

        Raises:
            InputError: the file cannot be read, or is no report, or one of another fit.
        """
        try:
            report = cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = "#".join(map(str, first["loc"])) or "its JSON"
            raise InputError(
                f"fit_report {path} is not the report of a fit ({place}: {first['msg']}); give the fit_report.json of "
                "the fit, or leave it out."
            ) from error
        except OSError as error:
            raise InputError(f"fit_report {path} cannot be read ({reason_of(error)}); leave it out.") from error
        if not report.is_of(model):
            raise InputError(
                f"fit_report {path} is the report of another fit than that of the model; give the fit_report.json that "
                "was written with it, or leave it out."
            )
        return report

    @property
    def is_refitted(self) -> bool:
        """Whether the mixture was fitted on the held-out cases too, after cross-fitting."""
        return self.detection is not None and self.detection.folds > 0

    @property
    def n_fitted(self) -> int:
        """Number of cases that the mixture was fitted on."""
        return self.data.train.cases + (self.data.validation.cases if self.is_refitted else 0)

    @property
    def n_failed(self) -> int:
        """Number of cases that could not be read."""
        return self.data.train.failed_cases + self.data.validation.failed_cases

    def is_of(self, model: FittedModel) -> bool:
        """Return whether settings and mixture are those of a model."""
        same = all(self.settings.get(name, value) == value for name, value in model.settings.items())
        figures = [self.concentration, *self.component_weights]
        own = [float(model.mixture.weight_concentration), *model.weights()]
        return same and len(figures) == len(own) and bool(np.allclose(figures, own, rtol=TOLERANCE))

    def has_calibration_of(self, model: FittedModel) -> bool:
        """Return whether the model has the thresholds of the fit, and not those of a later calibration."""
        tables = {kind: model.calibration.table(index) for index, kind in enumerate(SCORE_KINDS)}
        return all(
            list(quantiles) == list(tables[kind])
            and np.allclose(list(quantiles.values()), list(tables[kind].values()), rtol=TOLERANCE)
            for kind, quantiles in self.score_quantiles.items()
            if kind in tables
        )
