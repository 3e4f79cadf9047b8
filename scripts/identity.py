"""Digests of objects, the same in every process."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from .files import file_sha256


def digest_of(thing: Any) -> str | None:
    """Compute a digest of all that an object does, as far as its classes and its state tell.

    Args:
        thing: anything; of classes and functions their names and the files that define them count.

    Returns:
        Hexadecimal digits; None where nothing describes the object, or a part of it, reliably.
    """
    try:
        text = json.dumps(_describe(thing, ()), sort_keys=True)
    except Exception:  # whatever a class's own way to say its state raises
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(thing: Any, above: tuple[int, ...]) -> Any:
    """Describe an object in what JSON can hold; see `digest_of`.

    Args:
        thing: the object.
        above: ids of the objects that it is a part of.
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
    reduced = special(thing) if special else thing.__reduce_ex__(4)  # what a copy would be made of
    if isinstance(reduced, str):
        return _describe_name(getattr(thing, "__module__", None) or type(thing).__module__, reduced, thing)
    state = [list(part) if index > 2 and part is not None else part for index, part in enumerate(reduced)]
    return ["object", *(_describe(part, above) for part in state)]


def _describe_name(module: str, name: str, thing: Any) -> Any:
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)  # a lambda, or a definition inside a function, is not found
    if found is not thing:
        raise ValueError(f"{module}.{name} is another object.")
    return [module, name, _source_digest(module)]


@functools.cache
def _source_digest(module: str) -> str | None:
    path = getattr(sys.modules[module], "__file__", None)
    return file_sha256(path) if path and Path(path).is_file() else None
