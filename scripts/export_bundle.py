"""Command that exports the bundle with a fitted model, for MONAI Label, MONAI Deploy or another machine.

Examples::

    python -m scripts.export_bundle --ckpt_path demo_output/model.pt --output shipped/anomaly
    python -m scripts.export_bundle --ckpt_path demo_output/model.pt --output shipped/anomaly
    python -m scripts.export_bundle --ckpt_path demo_output/model.pt --output shipped/anomaly --false_regions 0.1
The copy needs no flags: its configs hold the settings of the fit and any other given config ids. Compiled and quantised
encoders of the model are copied too. A model does not store its ``spatial_dim``: give it if the slices are not axial.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser

from .config.settings import check_settings
from .errors import InputError, reason
from .files import OLD, PARTIAL, RECORD, describe_file, has_record, read_record, write_json, write_record
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
        _restore(target)
        with _replacing(target) as copy:
            _fill(copy, ckpt_path, configs, {**fitted, **settings})
    except (OSError, shutil.Error) as error:
        raise InputError(f"output {target} cannot be written ({reason(error)}); give another folder.") from error


def _fill(copy: Path, ckpt_path: str | os.PathLike, configs: dict[str, Any], values: dict[str, Any]) -> None:
    """Copy the bundle and the model into an empty folder, set values in the configs, and load the model."""
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
        values_of_config = {key: value for key, value in values.items() if key.split("#")[0] in config}
        write_json(with_values(config, values_of_config), copy / "configs" / f"{name}.json")
    check(copy)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Fill a folder, then replace an older copy by it.

    Raises:
        InputError: the older copy holds a file that is not as `export_bundle` wrote it.
    """
    foreign = _foreign(target) if target.exists() else None
    if foreign is not None:
        raise InputError(
            f"{target} holds {foreign}, which was not written with that copy, or was changed since; move it to keep it "
            "and run again, or give a new folder."
        )
    for leftover in target.parent.glob(f"{PARTIAL}{glob.escape(target.name)}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = target.with_name(f"{PARTIAL}{target.name}-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        yield partial
        write_record(partial, {str(path.relative_to(partial)): [describe_file(path)] for path in _files(partial)})
        if target.exists():
            os.replace(target, _old(target))
        os.replace(partial, target)
        _restore(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _restore(target: Path) -> None:
    """Finish an interrupted replacement: restore the older copy, or remove it if the new one is in place."""
    old = _old(target)
    if has_record(old) and not target.exists():
        os.replace(old, target)
    elif has_record(old) and _foreign(old) is None:
        shutil.rmtree(old)


def _old(target: Path) -> Path:
    return target.with_name(f"{OLD}{target.name}")


def _foreign(copy: Path) -> str | None:
    """Return the name of a file in a copy that is not as `export_bundle` wrote it, or None."""
    files = read_record(copy)["files"] if has_record(copy) else {}
    for path in _files(copy):
        name = str(path.relative_to(copy))
        if name != RECORD and (path.is_symlink() or describe_file(path) not in files.get(name, [])):
            return name
    return None


def _files(copy: Path) -> list[Path]:
    """List the files of a copy, without those that its use compiles."""
    compiled = compiled_for(copy / "models" / "model.pt")
    return [
        path
        for path in sorted(copy.rglob("*"))
        if (path.is_symlink() or not path.is_dir())
        and "__pycache__" not in path.parts
        and not path.is_relative_to(compiled)
    ]


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
