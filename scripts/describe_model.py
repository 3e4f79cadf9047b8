"""Command ``python -m scripts.describe_model MODEL``: what a fitted model is, read from its file alone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .errors import printable
from .models.calibration import ScoreCalibration
from .models.checkpoint import read_network
from .models.fitted_state import CALIBRATION, REGION_PEAKS, check_digests, fitted_settings
from .models.licences import licence_of
from .models.mixture import SCORE_KINDS
from .models.mixture.dirichlet_process import MIN_LOG_WEIGHT
from .models.mixture.stick_breaking import log_stick_weights

NOT_RECORDED = "not recorded"


def describe_model(path: str | os.PathLike) -> dict[str, Any]:
    """Describe a fitted model. No network is built, and no encoder runs.

    Args:
        path: the file, see `save_network`.

    Returns:
        Texts, numbers and lists by subject; ``settings`` are those of the fit by config id.

    Raises:
        InputError: the file is no fitted model, or was damaged or changed since it was saved.
    """
    state_dict = read_network(path)
    weights = check_digests(state_dict, str(path))
    extra = state_dict["_extra_state"]
    settings = fitted_settings(extra)
    encoder = str(settings["encoder_name"])
    log_weights = log_stick_weights(state_dict["mixture.stick_fractions"]).log_softmax(0)
    calibration = ScoreCalibration()
    parts = {name: value for name, value in state_dict.items() if name.startswith(CALIBRATION)}
    calibration.load_state_dict({name.removeprefix(CALIBRATION): value for name, value in parts.items()})
    rates = sorted({round(rate, 6) for rate in calibration.rates.tolist() if rate == rate}, reverse=True)
    return {
        "model": str(path),
        "size": f"{Path(path).stat().st_size / 1e6:.1f} MB",
        "digest": extra.get("digest", f"{NOT_RECORDED} (0.4 and earlier)"),
        "encoder": encoder,
        "encoder_licence": extra.get("encoder_licence") or str(licence_of(encoder)),
        "encoder_weights_digest": weights or "none: random weights",
        "settings": {
            name: value for name, value in settings.items() if name not in ("encoder_name", "field_of_view_mm")
        },
        "components": f"{int((log_weights > MIN_LOG_WEIGHT).sum())} of {len(log_weights)} active",
        "calibrated_scores": [name for kind, name in enumerate(SCORE_KINDS) if calibration.is_fitted(kind)] or "none",
        "calibrated_false_positive_rates": rates or "none",
        "held_out_cases": _held_out_cases(state_dict),
        "field_of_view": _millimetres(settings.get("field_of_view_mm")),
        "acquisition": extra.get("acquisition") or NOT_RECORDED,
    }


def _held_out_cases(state_dict: dict[str, Any]) -> int | str:
    """Return the number of held-out normal cases whose peaks set the detection limits."""
    peaks = state_dict.get(REGION_PEAKS[0])
    if peaks is None:
        return f"{NOT_RECORDED} (0.6 and earlier)"
    return int((~peaks.isnan()).sum(1).max()) if peaks.numel() else 0


def _millimetres(field_of_view: float | None) -> str:
    return "off: slices as they are" if field_of_view is None else f"{field_of_view:g} mm"


def lines_of(description: dict[str, Any]) -> list[str]:
    """Format a description as lines of a name and a value."""
    lines = []
    for name, value in description.items():
        if isinstance(value, dict):
            lines += [name, *(f"  {line}" for line in lines_of(value))]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else "off" if value is None else str(value)
            lines.append(f"{name:<32}{printable(text)}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m scripts.describe_model", description=__doc__)
    parser.add_argument("model", help="the fitted model")
    print("\n".join(lines_of(describe_model(parser.parse_args(arguments).model))))


if __name__ == "__main__":
    main()
