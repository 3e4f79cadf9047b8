"""A run of the app as a process with a time limit."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("bound_child.py")
APP = Path(__file__).resolve().parents[1] / "app"
LOG = "app.log"
TICK = 0.1  # s
LOG_END = 100_000  # bytes of the log in which its error is looked for
LONGEST_SENTENCE = 600  # characters


@dataclass(frozen=True)
class App:
    """How the app is run.

    Attributes:
        models: folder with the exported bundle.
        arguments: further arguments of the app.
        time_limit: longest run, s.
        path: the app.
    """

    models: Path
    arguments: Sequence[str] = ()
    time_limit: float = 3600.0
    path: Path = APP

    def run(self, study: Path, output: Path, stop: threading.Event) -> str | None:
        """Run the app on a study; its log is `LOG` in the folder of the output.

        Args:
            study: folder of the images.
            output: folder of the results.
            stop: ends the run when it is set.

        Returns:
            Why it failed, in one sentence; empty if it did not; None if it was stopped.

        Raises:
            OSError: the process cannot be started, or the log not be written.
        """
        arguments = ["-i", str(study), "-o", str(output), "-m", str(self.models)]
        command = [sys.executable, str(CHILD), str(os.getpid()), sys.executable, str(self.path), *self.arguments]
        with (output / LOG).open("wb") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                is_in_time = self._wait(process.pid, stop)
            finally:
                # The group exists until its first process is waited for, so it cannot be that of another program.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if is_in_time is None:
            return None
        if not is_in_time:
            return f"The app took longer than {self.time_limit:g} s and was ended."
        if process.returncode < 0:
            return f"The app was killed by signal {-process.returncode}."
        if process.returncode:
            return error_of(output / LOG) or f"The app ended with status {process.returncode}; see {LOG}."
        return ""

    def _wait(self, pid: int, stop: threading.Event) -> bool | None:
        """Wait for the end of a process without reaping it; return whether it came in time, None if stopped."""
        end = time.monotonic() + self.time_limit
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > end:
                return False
            if stop.wait(TICK):
                return None
        return True


def error_of(log: Path) -> str:
    """Return the errors that the app has logged as sentences; empty if there is none.

    Other lines may be of libraries, and quote the images.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_END))
        text = file.read().decode(errors="replace")
    sentences = re.findall(r"\[ERROR\] \(anomaly_app\) - (.*)", text)
    return "".join(c if c.isprintable() else "_" for c in " ".join(sentences))[:LONGEST_SENTENCE]
