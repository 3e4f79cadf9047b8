"""Attacks by files of a model and of an interrupted fit."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.models.checkpoint import load_network

from ..tiny_bundle import ROOT, TINY
from .attack import Attack
from .damage import damage
from .judge import is_printable, judge_sources, snapshot
from .whole_run import fit, fitted, try_run

RESUMED = 0.15  # share of the attacks that are on `last_epoch.pt`


class Malicious:
    """Object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def try_models(random: Random, folder: Path) -> tuple[str, list[str]]:
    """Try a damaged or forged model or state of a fit: it is refused, or gives the same result."""
    resumes = random.random() < RESUMED
    source = fitted() / ("fit/last_epoch.pt" if resumes else "model.pt")
    path = folder / source.name
    attack = random.choice([damaged, damaged, entry, entry, entry, settings, other_object])(random, source, path)
    before = snapshot(folder)
    problems = (_resumed if resumes else _loaded)(path, attack.must_fail)
    if (folder / "made").exists():
        problems.append("code in the file was run")
    if not resumes:
        problems += judge_sources(before, folder)
    return f"{source.name}: {attack.what}", problems


def damaged(random: Random, source: Path, path: Path) -> Attack:
    """Damage the bytes, mostly those of a tensor."""
    content = source.read_bytes()
    if random.random() < 0.5:
        changed, what = damage(random, content)
    else:
        with zipfile.ZipFile(source) as archive:
            part = random.choice([each for each in archive.infolist() if "/data/" in each.filename and each.file_size])
        start = part.header_offset + 30 + len(part.filename)
        start += int.from_bytes(content[part.header_offset + 28 : part.header_offset + 30], "little")
        values = bytearray(content[start : start + part.file_size])
        for _ in range(random.choice([1, 4, 64])):
            values[random.randrange(len(values))] ^= random.randrange(1, 256)
        changed, what = (
            content[:start] + bytes(values) + content[start + part.file_size :],
            f"values of {part.filename}",
        )
    path.write_bytes(changed)
    return Attack(f"damaged: {what}")


def entry(random: Random, source: Path, path: Path) -> Attack:
    """Change the type, shape or values of one entry, or remove it."""
    content = torch.load(source, weights_only=True)
    tensors = _tensors(content)
    place, name = tensors[random.randrange(len(tensors))]
    value = place[name]
    ways: dict[str, Callable[[], Any]] = {
        "int32": lambda: value.nan_to_num().to(torch.int32),
        "float64": lambda: value.double(),
        "float16": lambda: value.half(),
        "complex": lambda: value.to(torch.complex64),
        "NaN": lambda: torch.full_like(value.float(), torch.nan),
        "infinite": lambda: torch.full_like(value.float(), torch.inf),
        "doubled": lambda: value * 2 + 1,
        "flat": lambda: value.reshape(-1),
        "one more axis": lambda: value[None],
        "cut": lambda: value.reshape(-1)[:-1],
        "empty": lambda: torch.empty(0),
        "expanded": lambda: torch.zeros(1).expand(10**12),
        "sparse": lambda: value.reshape(-1).to_sparse(),
        "list": lambda: value.tolist(),
        "None": lambda: None,
        "text": lambda: "abc",
    }
    way = random.choice([*ways, "left out", "one too many"])
    if way == "left out":
        del place[name]
    elif way == "one too many":
        place[f"{name}_2"] = value
    else:
        place[name] = ways[way]()
    torch.save(content, path)
    changed = way in ("left out", "NaN", "infinite", "doubled", "empty", "list", "None", "text", "int32", "complex")
    return Attack(f"{name}: {way}", must_fail=changed and value.numel() > 0 and value.dtype == torch.float32)


def settings(random: Random, source: Path, path: Path) -> Attack:
    """Change the entries that are no tensors."""
    content = torch.load(source, weights_only=True)
    name = "_extra_state" if "_extra_state" in content else "fit"
    inner = content[name]
    described = inner.get("settings", inner)
    key = random.choice(sorted(described))
    way = random.choice(["value", "left out", "list", "None", "text", "more", "all left out", "epoch", "digest"])
    if way == "value":
        described[key] = random.choice(["abc", -1, None, [1], 1e30, float("nan"), {}, "\x1b[31m\n"])
    elif way == "left out":
        del described[key]
    elif way == "more":
        described["new"] = 1
    elif way == "all left out":
        del content[name]
    elif way == "epoch" and "epoch" in content:
        content["epoch"] = random.choice([-1, 0, 10**9, 1.5, "abc", None, [1], float("nan")])
    elif way == "digest" and "weights_digest" in inner:
        inner["weights_digest"] = random.choice(["", "0" * 64, None, 3, ["a"]])
    else:
        content[name] = {"list": [1], "None": None}.get(way, "abc")
    torch.save(content, path)
    return Attack(f"{name}: {way} {key}", must_fail=way in ("all left out", "list", "None", "text"))


def other_object(random: Random, source: Path, path: Path) -> Attack:
    """Write something else under its name."""
    made = path.parent / "made"
    stream = io.BytesIO()
    torch.save({"_extra_state": Malicious(made), "fit": Malicious(made)}, stream)
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    ways: dict[str, Any] = {
        "malicious": stream.getvalue(),
        "malicious pickle": pickle.dumps(Malicious(made)),
        "empty": b"",
        "text": b"not a model",
        "zip": b"PK\5\6" + bytes(18),
        "html": b"<html>404</html>",
        "list": [1, 2],
        "tensor": torch.zeros(3),
        "nested": deep,
        "empty dictionary": {},
        "number": 7,
    }
    way = random.choice([*ways, "folder"])
    if way == "folder":
        path.mkdir()
    elif isinstance(ways[way], bytes):
        path.write_bytes(ways[way])
    else:
        torch.save(ways[way], path)
    return Attack(f"other content: {way}", must_fail=True)


def _loaded(path: Path, must_fail: bool) -> list[str]:
    """Load the file into a network, and compare it with the network of the good file."""
    network, reference = copy.deepcopy(_unfitted()), _reference()
    state = _copied(network)
    try:
        load_network(network, path)
    except InputError as error:
        problems = [] if is_printable(str(error)) else [f"the message has characters that cannot be shown: {error}"]
        if not _same(_copied(network), state):
            problems.append("a part of what was refused was loaded")
        return problems
    except Exception as error:
        return [f"a traceback instead of a sentence: {type(error).__name__}: {error}"]
    if must_fail:
        return ["what must be refused was loaded"]
    if not _same(_copied(network), reference):
        return ["another model was loaded without a word"]
    return []


def _resumed(path: Path, must_fail: bool) -> list[str]:
    """Resume a fit from the file, and compare the model with the one of the good file."""
    output, model = path.parent / "fit", path.parent / "resumed.pt"
    shutil.copytree(fitted() / "fit", output)
    (output / "last_epoch.pt").unlink()
    path.rename(output / "last_epoch.pt")
    error, problems = try_run(
        "training",
        fitted() / "normals",
        dataset_dir=str(fitted() / "normals"),
        output_dir=str(output),
        ckpt_path=str(model),
        resume=True,
        max_epochs=2,
    )
    if error is not None:
        return problems
    if must_fail:
        return ["what must be refused was gone on from"]
    if not _same(_tensors_of(model), _tensors_of(_good_resumed())):
        return ["another model came out without a word"]
    return []


@functools.cache
def _good_resumed() -> Path:
    folder = fitted() / "resumed"
    shutil.copytree(fitted() / "fit", folder)
    fit(folder, fitted() / "resumed.pt", resume=True, max_epochs=2)
    return fitted() / "resumed.pt"


@functools.cache
def _unfitted() -> Any:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inference.json"))
    parser.update(TINY)
    return parser.get_parsed_content("network_def")


@functools.cache
def _reference() -> dict[str, torch.Tensor]:
    return _copied(load_network(copy.deepcopy(_unfitted()), fitted() / "model.pt"))


def _copied(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone() for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)
    }


def _tensors_of(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two states are equal bit by bit; NaN equals NaN."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name].isnan(), other[name].isnan())
        and torch.equal(one[name].nan_to_num(), other[name].nan_to_num())
        for name in one
    )


def _tensors(content: Any) -> list[tuple[Any, str]]:
    """Return the positions of the tensors in nested dictionaries."""
    found: list[tuple[Any, str]] = []
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            found.append((content, name))
        elif isinstance(value, dict):
            found += _tensors(value)
    return found
