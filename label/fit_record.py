"""Record of a fit in MONAI Label: the model of a bundle is replaced only together with it.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

RECORD = "fit.json"
LOCK = ".fit.lock"
CANDIDATE = "candidate"  # folder of a model that is being fitted; MONAI Label offers all *.pt next to the model


class InputError(ValueError):
    """Invalid input of the user; the server knows such errors of any module by the name of their class."""


def model_digest(path: Path) -> str | None:
    """Compute the SHA-256 of a model; None if the file is missing."""
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else None


@contextmanager
def recorded_fit(model: Path, n_images: int) -> Iterator[Path]:
    """Replace a model by a new fit, if the fit is complete.

    Args:
        model: the model, which stays as it is until the end.
        n_images: number of images of the fit.

    Yields:
        Path for the new model.

    Raises:
        InputError: another fit of the model runs.
    """
    lock = FileLock(model.parent / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError("A fit of this model runs already; wait for its end, or stop it.") from None
    try:
        yield from _fit(model, n_images)
    finally:
        lock.release()


def _fit(model: Path, n_images: int) -> Iterator[Path]:
    candidate = model.parent / CANDIDATE / model.name
    shutil.rmtree(candidate.parent, ignore_errors=True)
    record = {"state": "begun", "began": _now(), "images": n_images, "replaces": model_digest(model)}
    _write(model, record)
    try:
        yield candidate
        if not candidate.is_file():
            raise RuntimeError("The fit left no model.")
    except BaseException:
        _write(model, {**record, "state": "failed", "ended": _now()})
        shutil.rmtree(candidate.parent, ignore_errors=True)
        raise
    _write(model, {**record, "state": "complete", "ended": _now(), "model": model_digest(candidate)})
    _replace(model, candidate)


def settle_fit(model: Path) -> str:
    """Finish or undo what a killed server left of a fit.

    Args:
        model: the model.

    Returns:
        A sentence about the last fit in MONAI Label, or an empty string if there was none.
    """
    path, candidate = model.parent / RECORD, model.parent / CANDIDATE / model.name
    if not path.is_file():
        return ""
    name = model.parent.parent.name
    try:
        record = json.loads(path.read_text())
    except ValueError:  # cut off by a loss of power
        record = {"state": "begun", "began": "an unknown day"}
    if record["state"] == "complete" and candidate.is_file() and model_digest(candidate) == record["model"]:
        _replace(model, candidate)
    shutil.rmtree(candidate.parent, ignore_errors=True)
    if record["state"] == "begun":
        _write(model, {**record, "state": "interrupted"})
        return f"The fit of {name} that began on {record['began']} was interrupted; its model is the one from before."
    if record["state"] != "complete":
        return (
            f"The last fit of {name} ({record['state']}) began on {record['began']}; its model is the one from before."
        )
    if model_digest(model) != record["model"]:
        return f"The model of {name} is not that of its last fit here, which ended on {record['ended']}."
    return f"The model of {name} was fitted here on {record['images']} images; the fit ended on {record['ended']}."


def _replace(model: Path, candidate: Path) -> None:
    os.replace(candidate, model)
    shutil.rmtree(candidate.parent, ignore_errors=True)


def _write(model: Path, record: dict[str, Any]) -> None:
    partial = model.parent / f".{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, model.parent / RECORD)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
