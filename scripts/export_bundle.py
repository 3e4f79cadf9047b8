"""Command that exports the bundle with a fitted model, for MONAI Label, MONAI Deploy or another machine.

Examples::

    python -m scripts.export_bundle --ckpt_path demo_output/model.pt --output shipped/anomaly
    python -m scripts.export_bundle --ckpt_path demo_output/model.pt --output shipped/anomaly
    python -m scripts.export_bundle --ckpt_path demo_output/model.pt --output shipped/anomaly --false_regions 0.1
The copy needs no flags: its configs hold the settings of the fit and any other given config ids. Compiled and quantised
encoders of the model are copied too. A model does not store its ``spatial_dim``: give it if the slices are not axial.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path, PurePath
from typing import Any

import fire
from monai.bundle import ConfigParser

from .config.settings import check_settings
from .errors import InputError, reason
from .files import replace_directory, write_json
from .models.checkpoint import load_network, read_network
from .models.fitted_state import fitted_settings
from .runtimes.cache import compiled_for

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("configs", "docs", "scripts", "LICENSE", "README.md", "large_files.yml", "requirements.txt")


def export_bundle(ckpt_path: str | os.PathLike, output: str | os.PathLike, **settings: Any) -> None:
    """Copy the bundle, with a fitted model as its ``models/model.pt``.

    Args:
        ckpt_path: the fitted model.
        output: the copy; an older copy is replaced if all of its files are unchanged.
        settings: values by config id, which replace the values in the configs.

    Raises:
        InputError: there is no fitted model, an id is unknown, a value is wrong, or the folder holds something else or
            cannot be written.
    """
    if not str(output):
        raise InputError("output must name a folder for the copy; got an empty name.")
    target = Path(output).resolve()
    inside = any(target.is_relative_to(ROOT / name) for name in SHIPPED)
    if (target.exists() and not is_copy(target)) or ROOT.is_relative_to(target) or inside:
        raise InputError(f"{output} is not a copy of the bundle and is left alone; give a new folder.")
    fitted = fitted_settings(read_network(ckpt_path)["_extra_state"])
    fitted.pop("field_of_view_mm")  # inference reads it from the model, and other fits measure their own
    configs = {name: json.loads((ROOT / "configs" / f"{name}.json").read_text()) for name in ("train", "inference")}
    known = {name for config in configs.values() for name in config}
    settings = check_settings(settings, known)
    try:
        with replace_directory(target, _is_by_product) as copy:
            _fill(copy, ckpt_path, configs, {**fitted, **settings})
    except (OSError, shutil.Error) as error:
        raise InputError(f"output {target} cannot be written ({reason(error)}); give another folder.") from error


def copy_bundle(copy: Path) -> None:
    """Copy the bundle, without weights and without a model, into an empty folder."""
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    (copy / "models").mkdir()


def _fill(copy: Path, ckpt_path: str | os.PathLike, configs: dict[str, Any], values: dict[str, Any]) -> None:
    """Copy the bundle and the model into an empty folder, set values in the configs, and load the model."""
    copy_bundle(copy)
    shutil.copy(ckpt_path, copy / "models" / "model.pt")
    if compiled_for(ckpt_path).is_dir():
        shutil.copytree(compiled_for(ckpt_path), compiled_for(copy / "models" / "model.pt"))
    for name, config in configs.items():
        values_of_config = {key: value for key, value in values.items() if key.split("#")[0] in config}
        write_json(with_values(config, values_of_config), copy / "configs" / f"{name}.json")
    check(copy)


def _is_by_product(path: PurePath) -> bool:
    """Return whether the use of a copy, and not its export, makes a file; its path is that in the copy."""
    return "__pycache__" in path.parts or path.is_relative_to(compiled_for("models/model.pt"))


def is_copy(folder: Path) -> bool:
    """Return whether a folder is a copy of this bundle and not a git checkout of it."""
    metadata = [root / "configs" / "metadata.json" for root in (folder, ROOT)]
    names = [json.loads(file.read_text()).get("name") if file.is_file() else None for file in metadata]
    return names[0] == names[1] and not (folder / ".git").exists()


def with_values(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a config with other values at some of its ids."""
    parser = ConfigParser(config)
    for name, value in values.items():
        parser.set(value, name)
    return parser.get()


def check(bundle: Path) -> None:
    """Load the model of a copy as its inference does.

    Raises:
        InputError: the model does not fit the configs.
    """
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    load_network(parser.get_parsed_content("network_def"), bundle / "models" / "model.pt")


if __name__ == "__main__":
    fire.Fire(export_bundle)
