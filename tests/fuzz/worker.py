"""A process that tries attacks: one of them may end it, hang, or want more memory than there is."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from .attack import Trial
from .kinds import try_attack

SECONDS = 120  # for one attack; the slowest takes a few
GIGABYTES = 8  # of addresses, beyond what the libraries take


class Worker:
    """Tries attacks in a process of its own, and starts another where that ends.

    Args:
        workspace: an existing folder.
        seconds: after which an attack hangs.
    """

    def __init__(self, workspace: Path, seconds: float = SECONDS) -> None:
        self.workspace = workspace
        self.seconds = seconds
        self._start()

    def try_attack(self, kind: str, seed: int) -> Trial:
        """Try an attack; see `kinds.try_attack`. That the process ends is a problem of the attack, too."""
        try:
            self.connection.send((kind, seed))
            if self.connection.poll(self.seconds):
                return self.connection.recv()
            problem = f"no end after {self.seconds:g} seconds"
        except (EOFError, OSError):
            self.process.join(self.seconds)
            problem = f"the process ended: {_name_of(self.process.exitcode)}"
        self.stop()
        self._start()
        return Trial(kind, seed, "it ended the process", (problem,))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, by force where it hangs: one that ends by itself leaves no files behind."""
        self.connection.close()
        self.process.join(min(self.seconds, 10))
        self.process.kill()
        self.process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, self.workspace), daemon=True)
        self.process.start()
        other.close()
        self.connection.recv()  # it is ready


def _work(connection: Connection, workspace: Path) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries in C++ say much
        os.dup2(silent, stream)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + GIGABYTES * 2**30,) * 2)
    connection.send(None)
    with suppress(EOFError, BrokenPipeError):  # nobody asks any more
        while True:
            connection.send(try_attack(*connection.recv(), workspace))


def _name_of(exitcode: int | None) -> str:
    return signal.Signals(-exitcode).name if exitcode and exitcode < 0 else f"exit status {exitcode}"
