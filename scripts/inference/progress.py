"""Progress bar over the cases of a run."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

SECONDS_BETWEEN_LINES = 60.0  # where the bar is not redrawn but written to a file, such as that of a batch job


class CaseProgressBar:
    """Show how many cases are done and how long the others will take; lines of the log are written above it.

    Cases that an earlier run has finished count as done, but not for the speed: they take no time.
    """

    def __init__(self) -> None:
        self._open = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`, before the handlers of cases."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        for event in (Events.COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, self._open.close)

    def start(self, engine: Engine) -> None:
        """Show the bar."""
        interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        bar = tqdm(desc="cases", total=engine.state.epoch_length, unit="case", smoothing=0, mininterval=interval)
        self.bar = self._open.enter_context(bar)
        self._open.enter_context(logging_redirect_tqdm())

    def __call__(self, engine: Engine) -> None:
        """Count a case, whether it is finished, kept or failed."""
        state: Any = engine.state
        self.bar.initial += any("entry" in batch for batch in state.batch or [])
        self.bar.update()
