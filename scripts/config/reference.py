"""Command ``python -m scripts.config.reference``, which writes the table of all settings to docs/reference.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .settings import Settings, expected_value

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference.md"
COMMANDS = {
    ("train", "inference"): "Fit and inference",
    ("train",): "Fit",
    ("inference",): "Inference",
    ("evaluate",): "Evaluation",
    ("calibrate",): "Calibration",
}
INTRODUCTION = """# Settings

Every id below is a flag of the command line, `--n_components 200` for one, and an id at the top of a config or of an
overlay. All are checked before a run begins: an id that does not exist, a wrong type or a value out of its range ends
it with a sentence.

- `off` (or `none`) stands for "none", where the table has it.
- Switches take `True`, `yes`, `on` and `1`, or `False`, `no`, `off` and `0`.
- A list of one may be given as a number; more as `"[1.0,0.75]"`.
- Paths are taken as they are typed, `2026` or `a,b` as well. A folder whose name is `off` is written `./off`.
- What begins with `$`, `@` or `%` is an expression or a reference of
  [MONAI's configs](https://docs.monai.io/en/stable/config_syntax.html); a folder of such a name is written `./@name`.
- Parts of a config are reached with `#`, `--mixture#weight_concentration 5` for one.

Encoder, layers, image size, scales, number of components, covariance type and rank belong to a fit: give inference the
same. It says so when they differ. `spatial_dim` belongs to a fit as well; that is not checked.

This page is written by `python -m scripts.config.reference`.
"""


def reference_page() -> str:
    """Return the page of all settings, in Markdown."""
    names = {name for group in COMMANDS for name in group}
    configs = {name: json.loads((ROOT / "configs" / f"{name}.json").read_text()) for name in names}
    whole = {name: content for config in configs.values() for name, content in config.items()}
    pages = [INTRODUCTION]
    for group, title in COMMANDS.items():
        rows = ["| id | default | value | |", "|---|---|---|---|"]
        for setting, field in Settings.model_fields.items():
            if group == tuple(
                name for name in ("train", "inference", "evaluate", "calibrate") if setting in configs[name]
            ):
                row = (
                    f"`{setting}`",
                    default_value(setting, {**whole, **configs[group[0]]}),
                    expected_value(setting),
                    field.description,
                )
                rows.append(f"| {' | '.join(str(cell) for cell in row)} |")
        pages.append("\n".join([f"## {title}\n", *rows, ""]))
    return "\n".join(pages)


def default_value(setting: str, config: dict[str, Any]) -> str:
    """Return the default of a setting in a config, in Markdown, with paths relative to the bundle."""
    raw = config[setting]
    if isinstance(raw, str) and "@" in raw:
        raw = ConfigParser(config).get_parsed_content(setting)
    return "off" if raw is None else f"`{raw}`" if raw != "" else ""


if __name__ == "__main__":
    PAGE.write_text(reference_page())
