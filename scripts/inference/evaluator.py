"""The engine of an inference run: case by case, whatever happens to one of them."""

from __future__ import annotations

import errno
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

from ..data.cases import raise_failed, sentence
from ..errors import InputError, reason
from .inferer import DPMMInferer
from .loader import FAILED, AnomalyMapLoader
from .results_directory import ResultsDirectory

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CaseEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` that goes on after a case that fails, and says so at the end.

    Its iterations are cases that `AnomalyMapLoader` has scored in other threads meanwhile; the rest, postprocessing and
    handlers, is done here. Handlers of `IterationEvents.MODEL_COMPLETED` write into ``batch["directory"]``, and put
    into ``batch["about"]`` what its record is to say, among it ``entry``, the case's entry of the summary. When the
    last of them is done, the directory takes the place of that of an earlier run. Handlers of
    `Events.ITERATION_COMPLETED` find a ``state.batch`` only where all of that went well; of a case that an earlier run
    has finished it holds ``case`` and ``entry`` alone.

    Args:
        results: where results go.
        device: where the network is.
        val_data_loader: a dataset such as `RemainingCases` or `CaseDataset`.
        network: see `AnomalyMapLoader`.
        inferer: likewise.
        arguments: those of a `SupervisedEvaluator`.

    Attributes:
        failed: a sentence by case.
        n_finished: how many cases have results, those of an earlier run included.
        n_kept: how many of them are an earlier run's.
    """

    def __init__(
        self,
        results: ResultsDirectory,
        device: torch.device,
        val_data_loader: Sequence[dict[str, Any]],
        network: Any,
        inferer: DPMMInferer,
        **arguments: Any,
    ) -> None:
        self.results = results
        self.scored = AnomalyMapLoader(val_data_loader, network, inferer, device)
        super().__init__(device, self.scored, network, inferer=inferer, decollate=False, **arguments)
        self.logger.setLevel(logging.CRITICAL)  # what ends a run is said once, by `run`
        self.failed: dict[str, str] = {}
        self.n_finished = self.n_kept = 0

    def run(self, global_epoch: int = 1) -> None:
        """Run all cases.

        Raises:
            InputError: one or more of them failed, or the results of the run as a whole could not be written; the
                others are finished.
            KeyboardInterrupt: the run was stopped, by Ctrl-C or SIGTERM; says how many cases are finished.
        """
        self.failed.clear()
        self.n_finished = self.n_kept = 0
        with self.results.opened(), _terminated_like_interrupted():
            try:
                super().run(global_epoch)
            except BaseException as error:
                self.fire_event(Events.TERMINATE)
                progress = f"{self.n_finished} of {self.state.epoch_length} cases are finished"
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt(f"Stopped; {progress}, run again to go on.") from None
                if isinstance(error, OSError):
                    raise InputError(
                        f"output_dir {self.results.path} cannot be written ({reason(error)}); {progress}, so make "
                        "room and run again to go on."
                    ) from error
                raise
            finally:
                self.scored.stop()
        if self.n_kept:
            kept = f"{self.n_kept} of {self.state.epoch_length} cases"
            logger.info(f"{kept} are kept from an earlier run; --overwrite True makes all anew")
        others = "the others are finished" if self.n_finished else "none was finished"
        raise_failed(self.failed.items(), self.state.epoch_length, others)

    def _iteration(self, engine: CaseEvaluator, batchdata: dict[str, Any]) -> None:
        case = batchdata["case"]
        engine.state.batch = None
        try:
            if "error" in batchdata:
                raise InputError(batchdata["error"])
            if "entry" in batchdata:
                self.n_kept += 1
            else:
                self._write(engine, batchdata)
            engine.state.batch = [batchdata]  # until the next one is asked for
            self.n_finished += 1
        except Exception as error:
            self.failed[case] = _why(error)
            logger.error(f"{case}: {self.failed[case]}")
            logger.debug("the whole of it", exc_info=True)

    def _write(self, engine: CaseEvaluator, batchdata: dict[str, Any]) -> None:
        """Let the handlers write the results of a case, which appear when they are complete."""
        about = batchdata["about"] = {"key": batchdata.get("key")}
        with self.results.write_directory(self.results.name_of(batchdata["case"]), about) as directory:
            batchdata["directory"] = directory
            engine.state.output = [{key: batchdata.pop(key) for key in ("image", "pred")}]
            engine.state.batch = [batchdata]
            try:
                engine.fire_event(IterationEvents.FORWARD_COMPLETED)
                engine.fire_event(IterationEvents.MODEL_COMPLETED)
            finally:
                engine.state.batch = engine.state.output = None  # the case is done with: room for the next one


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end the run like Ctrl-C meanwhile, so that what is half written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"its results could not be written ({reason(error)}); make room and run again"
    return sentence(error, *FAILED)
