"""SHA-256 digests of tensors and of objects, the same in every process."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .files import file_sha256

CONVERTED_DIGEST = "0edff7cf2452b33c9791c27b6d03eb610ff64870f34c0a61a3fa3663c97aafe0"  # of dinov2_vits14


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the SHA-256 over names, types, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def object_digest(thing: Any) -> str | None:
    """Compute the SHA-256 over the class and the state of an object, including all of its parts.

    Args:
        thing: any object; classes and functions count by their names and the files that define them.

    Returns:
        Hexadecimal digits; None if the object or one of its parts cannot be described reliably.
    """
    try:
        text = json.dumps(_describe(thing, ()), sort_keys=True)
    except Exception:  # a class may raise anything while its state is read
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(thing: Any, above: tuple[int, ...]) -> Any:
    """Describe an object by lists and strings, for JSON.

    Args:
        thing: the object.
        above: ids of the objects that contain it.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return [type(thing).__name__, repr(thing)]
    if isinstance(thing, bytes | bytearray):
        return ["bytes", hashlib.sha256(thing).hexdigest()]
    if id(thing) in above:
        return ["above", len(above) - above.index(id(thing))]
    above = (*above, id(thing))
    if type(thing) in (list, tuple):
        return [type(thing).__name__, *(_describe(each, above) for each in thing)]
    if type(thing) in (set, frozenset):
        return [type(thing).__name__, *sorted(json.dumps(_describe(each, above)) for each in thing)]
    if type(thing) is dict:
        return ["dict", *([_describe(name, above), _describe(each, above)] for name, each in thing.items())]
    if isinstance(thing, type) or hasattr(thing, "__code__"):
        return _describe_name(thing.__module__, thing.__qualname__, thing)
    special = copyreg.dispatch_table.get(type(thing))
    reduced = special(thing) if special else thing.__reduce_ex__(4)  # the constituents of a copy
    if isinstance(reduced, str):
        return _describe_name(getattr(thing, "__module__", None) or type(thing).__module__, reduced, thing)
    state = [list(part) if index > 2 and part is not None else part for index, part in enumerate(reduced)]
    return ["object", *(_describe(part, above) for part in state)]


def _describe_name(module: str, name: str, thing: Any) -> Any:
    target: Any = sys.modules[module]
    for part in name.split("."):
        target = getattr(target, part)  # fails for lambdas and definitions inside functions
    if target is not thing:
        raise ValueError(f"{module}.{name} is another object.")
    return [module, name, _source_digest(module)]


@functools.cache
def _source_digest(module: str) -> str | None:
    path = getattr(sys.modules[module], "__file__", None)
    return file_sha256(path) if path and Path(path).is_file() else None
