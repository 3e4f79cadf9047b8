"""What a command stands for: a module and its arguments."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundle_files import config_file
from .commands import Command
from .weights import weights_folder


@dataclass(frozen=True)
class Invocation:
    """A run of ``python -m``.

    Attributes:
        module: the module.
        arguments: its arguments.
        root: folder of the bundle, which must be on Python's path.
    """

    module: str
    arguments: tuple[str, ...]
    root: Path

    def __str__(self) -> str:
        """Return the command for a POSIX shell."""
        command = " ".join(["python", "-m", self.module, *map(_quoted, self.arguments)])
        finds_scripts = self.module == "monai.bundle" and self.arguments[0] == "run"
        return command if finds_scripts else f"PYTHONSAFEPATH=1 PYTHONPATH={_quoted(str(self.root))} {command}"


def assemble(command: Command, root: Path, overlays: Sequence[str], values: dict[str, str]) -> Invocation:
    """Assemble what a command stands for.

    Args:
        command: the command.
        root: folder of the bundle.
        overlays: further configs, by name or file.
        values: texts by id or option.
    """
    files = [str(path) for path in config_files(command, root, overlays)]
    configs = files[0] if len(files) == 1 else str(files).replace("', '", "','")
    configs_and_root = {"config_file": configs, "bundle_root": str(root)}
    if command.run_id:
        return _invocation(command.module, ["run", command.run_id], {**configs_and_root, **values}, root)
    if command.name == "export":
        return _export(command, root, configs_and_root, values)
    if command.name == "info":
        return Invocation(command.module, (values["ckpt_path"],), root)
    if command.name == "weights":
        return _invocation(command.module, [], {"models_dir": str(weights_folder(root))}, root)
    return _invocation(command.module, [], values, root)


def config_files(command: Command, root: Path, overlays: Sequence[str]) -> list[Path]:
    """Return the configs of a run: the complete one, the user's overlays, and those that the command itself adds."""
    first, own = command.configs[:1], command.configs[1:]
    return [config_file(root, name) for name in (*first, *overlays, *own)]


def _export(command: Command, root: Path, configs: dict[str, str], values: dict[str, str]) -> Invocation:
    others = {name: value for name, value in values.items() if name != "filepath"}
    files = {"filepath": values["filepath"], "ckpt_file": values["ckpt_path"]}
    files["meta_file"] = str(root / "configs" / "metadata.json")
    if values["filepath"].endswith(".onnx"):
        arguments = {"args_file": str(root / "configs" / "onnx_export.json"), **files, **configs, **others}
        return _invocation(command.module, ["onnx_export"], arguments, root)
    arguments = {"net_id": "network_def", **files, **configs, **others}
    return _invocation(command.module, ["ckpt_export"], arguments, root)


def _invocation(module: str, first: list[str], values: dict[str, str], root: Path) -> Invocation:
    arguments = list(first)
    for name, value in values.items():
        arguments += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
    return Invocation(module, tuple(arguments), root)


def _quoted(text: str) -> str:
    """Quote a word for a POSIX shell, in double quotes if it holds single ones."""
    return f'"{text}"' if "'" in text and not set(text).intersection('"$`\\!') else shlex.quote(text)
