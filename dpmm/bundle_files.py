"""The bundle that the command runs: its folder, configs and overlays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.errors import InputError, reason_of

PACKAGE = Path(__file__).resolve().parent
INSTALLED = PACKAGE / "bundle"  # in a wheel; a clone has the bundle around the package
BUNDLE_ROOT = "bundle_root"


def own_root() -> Path:
    """Return the folder of the bundle that this package comes with."""
    return INSTALLED if INSTALLED.is_dir() else PACKAGE.parent


def root_of(arguments: Sequence[str]) -> Path:
    """Return the folder that ``--bundle_root`` names if a bundle is there, otherwise that of `own_root`."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") == BUNDLE_ROOT:
            root = Path(value if equals else following).absolute()
            if (root / "scripts").is_dir() and (root / "configs").is_dir():
                return root
    return own_root()


def is_clone(root: Path) -> bool:
    """Return whether a bundle stands in a clone of the repository, and not in a wheel."""
    return root != INSTALLED


def config_file(root: Path, name: str) -> Path:
    """Return the file of a config.

    Args:
        root: folder of the bundle.
        name: name of a config of the bundle, such as ``paper``, or a file.
    """
    own = root / "configs" / f"{name}.json"
    return own if own.is_file() else Path(name)


def read_configs(files: Iterable[Path]) -> dict[str, Any]:
    """Read configs that overlay one another, without evaluating them.

    Args:
        files: JSON files, or those in YAML.

    Returns:
        The content by id at the top; parts of an id, such as ``network_def#encoder``, are left out.

    Raises:
        InputError: a file is not readable, or holds no values by id.
    """
    merged: dict[str, Any] = {}
    for file in files:
        content = _read(file)
        if not isinstance(content, dict) or not all(isinstance(name, str) and name for name in content):
            raise InputError(f"The config {file} must hold values by id, as those in configs/ do; correct it.")
        merged.update({name: value for name, value in content.items() if name[0] != "+" and "#" not in name})
    return merged


def _read(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return json.loads(text)
        import yaml

        return yaml.safe_load(text)
    except Exception as error:  # YAML has errors of its own
        raise InputError(f"The config {file} cannot be read ({reason_of(error)}); correct it.") from error
