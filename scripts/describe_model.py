"""Command ``python -m scripts.describe_model MODEL``: what a fitted model is, read from its file alone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .errors import printable
from .model_card.fitted_model import FittedModel
from .models.mixture import SCORE_KINDS

SHOWN_APART = ("encoder_name", "field_of_view_mm")
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
    model = FittedModel.read(path)
    rates = sorted({round(rate, 6) for rate in model.calibration.rates.tolist() if rate == rate}, reverse=True)
    calibrated = [name for kind, name in enumerate(SCORE_KINDS) if model.calibration.is_fitted(kind)]
    return {
        "model": str(path),
        **({"warning": model.warning} if model.warning else {}),
        "size": f"{Path(path).stat().st_size / 1e6:.1f} MB",
        "sha256": model.sha256,
        "digest": model.digest if model.has_digest else f"{NOT_RECORDED} (0.4 and earlier)",
        "encoder": model.settings["encoder_name"],
        "encoder_licence": model.encoder_licence,
        "encoder_weights_digest": model.weights_digest or "none: random weights",
        "settings": {name: value for name, value in model.settings.items() if name not in SHOWN_APART},
        "components": f"{model.mixture.n_active} of {model.mixture.n_components} active",
        "calibrated_scores": calibrated or "none",
        "calibrated_false_positive_rates": rates or "none",
        "held_out_cases": int((~model.calibration.regions.case_local_peaks.isnan()).sum(1).max())
        if model.calibration.regions.case_local_peaks.numel()
        else f"{NOT_RECORDED} (0.6 and earlier)",
        "field_of_view": _millimetres(model.settings["field_of_view_mm"]),
        "acquisition": model.acquisition or NOT_RECORDED,
    }


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
