"""Attacks and their outcomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple


class Attack(NamedTuple):
    """Bad input in a folder.

    Attributes:
        what: short description.
        must_fail: whether a result would be wrong, so that the run must end in a sentence.
    """

    what: str
    must_fail: bool = False


class Trial(NamedTuple):
    """Outcome of an attack.

    Attributes:
        kind: kind of the attack.
        seed: seed that repeats it.
        what: short description.
        problems: violated conditions; empty if the trial passed.
    """

    kind: str
    seed: int
    what: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"--kind {self.kind} --seed {self.seed}: {self.what}", *self.problems]
        return "\n    ".join(line.encode("unicode_escape").decode()[:500] for line in lines)


Prepare = Callable[[Random, Path], Attack]
Try = Callable[[Random, Path], tuple[str, list[str]]]
