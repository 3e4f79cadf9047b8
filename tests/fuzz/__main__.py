"""Try new attacks until the time is over: `python -m tests.fuzz --minutes 10 [--kind nifti] [--seed 17]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .attack import Trial
from .kinds import KINDS
from .worker import SECONDS, Worker


def main() -> None:
    """Try attacks of all kinds for the same time; print every failure, and a table at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long")
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS), help="which kinds")
    parser.add_argument("--seed", type=int, help="repeat this one")
    parser.add_argument("--start", type=int, default=int(time.time()) * 1000, help="first seed; the time by default")
    parser.add_argument("--number", type=int, help="so many of each kind, instead of minutes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which an attack hangs")
    options = parser.parse_args()
    first, number = (options.seed, 1) if options.seed is not None else (options.start, options.number)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, Worker(Path(folder), options.seconds) as worker:
        trials = try_all(worker, options.kind, first, number, 60 * options.minutes)
    print(f"\n{table(trials)}\n\nseeds from {first}; repeat one by `python -m tests.fuzz --kind KIND --seed SEED`")
    sys.exit(any(trial.problems for trial in trials))


def try_all(worker: Worker, kinds: Sequence[str], first: int, number: int | None, seconds: float) -> list[Trial]:
    """Try attacks, always of the kind that has used the least time.

    Args:
        worker: process for the attacks.
        kinds: kinds of attack.
        first: first seed of every kind.
        number: number per kind; None for as many as the time allows.
        seconds: time limit without a number.

    Returns:
        Their outcomes.
    """
    spent = dict.fromkeys(kinds, 0.0)
    tried = dict.fromkeys(kinds, 0)
    trials = []
    while spent and (number is not None or sum(spent.values()) < seconds):
        kind = min(spent, key=lambda each: spent[each])
        start = time.monotonic()
        trial = worker.try_attack(kind, first + tried[kind])
        spent[kind] += time.monotonic() - start
        tried[kind] += 1
        trials.append(trial)
        if trial.problems:
            print(trial, flush=True)
        if tried[kind] == number:
            del spent[kind]
    return trials


def table(trials: Sequence[Trial]) -> str:
    """Return a Markdown table with the numbers of attacks per kind, tried and passed."""
    rows = ["| kind | tried | held |", "|---|---|---|"]
    for kind in KINDS:
        trials_of_kind = [trial for trial in trials if trial.kind == kind]
        if trials_of_kind:
            rows.append(f"| {kind} | {len(trials_of_kind)} | {sum(not trial.problems for trial in trials_of_kind)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
