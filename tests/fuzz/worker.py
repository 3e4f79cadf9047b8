"""Process that tries attacks, which may end it, hang or exhaust the memory."""

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
GIGABYTES = 8  # of address space, in addition to that of the libraries


class Worker:
    """Process for attacks, started again whenever it ends.

    Args:
        workspace: an existing folder.
        seconds: time limit of an attack.
    """

    def __init__(self, workspace: Path, seconds: float = SECONDS) -> None:
        self.workspace = workspace
        self.seconds = seconds
        self._start()

    def try_attack(self, kind: str, seed: int) -> Trial:
        """Try an attack; see `kinds.try_attack`. The end of the process is a problem of the attack, too."""
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
        """End the process, by force if it hangs; a regular end leaves no files behind."""
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
    for stream in (1, 2):  # libraries in C++ print much
        os.dup2(silent, stream)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + GIGABYTES * 2**30,) * 2)
    connection.send(None)
    with suppress(EOFError, BrokenPipeError):  # the parent has ended
        while True:
            connection.send(try_attack(*connection.recv(), workspace))


def _name_of(exitcode: int | None) -> str:
    return signal.Signals(-exitcode).name if exitcode and exitcode < 0 else f"exit status {exitcode}"
