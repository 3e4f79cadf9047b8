"""The command that copies the bundle with a fitted model in it.

For MONAI Label, MONAI Deploy or another machine::

    python -m scripts.ship --ckpt_path demo_output/model.pt --output shipped/anomaly
    python -m scripts.ship --ckpt_path demo_output/model.pt --output shipped/anomaly --target_fpr 0.002

The copy needs no flags: what a model says of its fit, and any other config ids that are given, stand in its configs.
What was compiled of the model for faster runtimes, or quantised, goes with it. A
model does not say its ``spatial_dim``: where slices were not axial, give it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser

from .checkpoint import load_network, read_network
from .errors import InputError
from .runtimes.artefacts import compiled_for
from .settings import check_settings
from .whole_file import whole_folder, write_json

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("configs", "docs", "scripts", "LICENSE", "README.md", "large_files.yml", "requirements.txt")


def ship(ckpt_path: str | os.PathLike, output: str | os.PathLike, **settings: Any) -> None:
    """Copy the bundle, with a fitted model as its ``models/model.pt``.

    Args:
        ckpt_path: the fitted model.
        output: the copy; an older one is replaced.
        settings: values of config ids, in place of those that stand in the configs.

    Raises:
        InputError: no fitted model, an id that the configs do not have, a wrong value, or a folder that holds something
            else.
    """
    target = Path(output).resolve()
    inside = any(target.is_relative_to(ROOT / name) for name in SHIPPED)
    if (target.exists() and not is_copy(target)) or ROOT.is_relative_to(target) or inside:
        raise InputError(f"{output} is not a copy of the bundle and is left alone; give a new folder.")
    fitted = read_network(ckpt_path)["_extra_state"]["settings"]
    configs = {name: json.loads((ROOT / "configs" / f"{name}.json").read_text()) for name in ("train", "inference")}
    known = {name for config in configs.values() for name in config}
    settings = check_settings(settings, known)
    with whole_folder(target) as copy:
        for name in SHIPPED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy)
        (copy / "models").mkdir()
        shutil.copy(ckpt_path, copy / "models" / "model.pt")
        if compiled_for(ckpt_path).is_dir():
            shutil.copytree(compiled_for(ckpt_path), compiled_for(copy / "models" / "model.pt"))
        for name, config in configs.items():
            chosen = {key: value for key, value in {**fitted, **settings}.items() if key.split("#")[0] in config}
            write_json(with_values(config, chosen), copy / "configs" / f"{name}.json")
        check(copy)


def is_copy(folder: Path) -> bool:
    """Whether a folder is a copy of this bundle, and nobody's checkout of it."""
    metadata = [root / "configs" / "metadata.json" for root in (folder, ROOT)]
    names = [json.loads(file.read_text()).get("name") if file.is_file() else None for file in metadata]
    return names[0] == names[1] and not (folder / ".git").exists()


def with_values(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A config with other values at some of its ids."""
    parser = ConfigParser(config)
    for name, value in values.items():
        parser.set(value, name)
    return parser.get()


def check(bundle: Path) -> None:
    """Load a copy's model as its inference does.

    Raises:
        InputError: it does not fit the configs.
    """
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    load_network(parser.get_parsed_content("network_def"), bundle / "models" / "model.pt")


if __name__ == "__main__":
    fire.Fire(ship)
