"""Runs in processes of their own, and what they say when they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class RowError(Exception):
    """Why a row has no figures, in one sentence."""


def run_bundle(run_id: str, configs: Sequence[str], **settings: Any) -> None:
    """`python -m monai.bundle run`, as users do.

    Args:
        run_id: such as ``training``.
        configs: names of configs that overlay one another.
        settings: config ids and their values.

    Raises:
        RowError: a config is not there, has no such id, or the run failed.
    """
    check(configs, settings)
    files = [f"configs/{name}.json" for name in configs]
    command = ["-m", "monai.bundle", "run", run_id, "--config_file", files[0] if len(files) == 1 else str(files)]
    for name, value in {"bundle_root": ROOT, **settings}.items():
        command += [f"--{name}", str(value)]
    run_python(command)


def measured(module: str, **arguments: Any) -> dict[str, Any]:
    """What a module of this package measures, in a process of its own.

    Args:
        module: its name.
        arguments: of its ``measure``.

    Raises:
        RowError: it failed.
    """
    return json.loads(run_python(["-m", f"benchmarks.inference.{module}", json.dumps(arguments)]).splitlines()[-1])


def run_python(command: Sequence[str]) -> str:
    """What a Python process prints.

    Raises:
        RowError: it failed.
    """
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RowError(reason(done.stderr) or f"the process ended with status {done.returncode}")
    return done.stdout


def reason(stderr: str) -> str:
    """The sentence in what a failed process wrote: after ``error:``, otherwise the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        return " ".join(lines[starts[-1] :]).removeprefix("error: ")
    return lines[-1] if lines else ""


def check(configs: Sequence[str], settings: Mapping[str, Any]) -> None:
    """That configs are there and have the ids that are set: others would be passed over in silence.

    Raises:
        RowError: they are not, or have not.
    """
    ids: set[str] = set()
    for name in configs:
        path = ROOT / "configs" / f"{name}.json"
        if not path.is_file():
            raise RowError(f"there is no configs/{name}.json")
        ids |= set(json.loads(path.read_text()))
    unknown = [name for name in settings if name.split("#")[0] not in ids]
    if unknown:
        raise RowError(f"configs/{configs[0]}.json has no id {unknown[0]}")
