"""What the file of a fitted model says about itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, reason_of
from ..files import file_sha256
from ..models.calibration import ScoreCalibration
from ..models.checkpoint import part_of, read_network
from ..models.fitted_state import (
    CALIBRATION,
    REMEDY,
    check_calibration,
    check_digests,
    check_region_peaks,
    encoder_digest,
    fitted_digest,
    fitted_settings,
)
from ..models.licences import licence_of
from ..models.mixture import DirichletProcessMixture
from ..models.sample import SAMPLE_WARNING, is_sample

MIXTURE = "mixture."


@dataclass(frozen=True)
class FittedModel:
    """The content of ``model.pt``, but the weights of its encoder.

    Attributes:
        sha256: that of the file.
        digest: that of the fitted state, see `fitted_digest`.
        has_digest: whether the file states the digest; files of 0.4 and earlier do not.
        settings: settings of the fit by config id.
        weights_digest: that of the encoder's weights; empty if they are random.
        encoder_licence: licence of the encoder's weights.
        acquisition: see `PatchAnomalyNetwork.acquisition`.
        mixture: the mixture.
        calibration: the calibration.
    """

    sha256: str
    digest: str
    has_digest: bool
    settings: dict[str, Any]
    weights_digest: str
    encoder_licence: str
    acquisition: dict[str, Any] | None
    mixture: DirichletProcessMixture
    calibration: ScoreCalibration

    @classmethod
    def read(cls, path: str | os.PathLike) -> FittedModel:
        """Read a file of `save_network` and check its digests.

        Raises:
            InputError: the file is missing, no fitted model, or was changed since it was saved.
        """
        state_dict = read_network(path)
        extra = state_dict["_extra_state"]
        settings = fitted_settings(extra)
        try:
            weights_digest = check_digests(state_dict, str(path))
            check_region_peaks(state_dict, str(path))
            check_calibration(state_dict["calibration.rates"], state_dict["calibration.quantiles"], str(path))
            mixture = DirichletProcessMixture(
                settings["n_components"],
                settings["n_features"],
                settings["covariance_type"],
                rank=settings.get("rank", 1),
                distribution=settings["distribution"],
            )
            mixture.load_state_dict(part_of(state_dict, MIXTURE))
            calibration = ScoreCalibration()
            calibration.load_state_dict(part_of(state_dict, CALIBRATION))
            name = str(settings["encoder_name"])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{path} is not a complete fitted model ({reason_of(error)}); {REMEDY}.") from error
        digest = extra.get("digest")
        if digest is None:  # of 0.4 and earlier, without an acquisition
            digest = fitted_digest(state_dict, encoder_digest(state_dict), extra["settings"], extra["weights_digest"])
        return cls(
            sha256=file_sha256(path),
            digest=digest,
            has_digest="digest" in extra,
            settings=settings,
            weights_digest=weights_digest,
            encoder_licence=extra.get("encoder_licence") or str(licence_of(name)),
            acquisition=extra.get("acquisition"),
            mixture=mixture,
            calibration=calibration,
        )

    @property
    def warning(self) -> str | None:
        """Sentence on the sample model; None for other models."""
        return SAMPLE_WARNING if is_sample(self.mixture) else None

    def weights(self) -> list[float]:
        """Return the weights of the active components, largest first."""
        return self.mixture.log_weights()[self.mixture.active()].exp().sort(descending=True).values.tolist()
