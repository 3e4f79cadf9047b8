"""Engine of an inference run; a failed case does not stop the others."""

from __future__ import annotations

import errno
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

from ..data.cases import raise_failed, sentence
from ..distributed import gather
from ..errors import InputError, reason
from .inferer import DPMMInferer
from .loader import FAILED, AnomalyMapLoader
from .results_directory import ResultsDirectory

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CaseEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` that continues after a failed case and reports all failures at the end.

    Each iteration is a case that `AnomalyMapLoader` has scored in other threads; postprocessing and handlers run here.
    Handlers of `IterationEvents.MODEL_COMPLETED` write into ``batch["directory"]`` and add to ``batch["about"]``, the
    content of the directory's record; its ``entry`` is the case's entry of the summary. After the last handler the
    directory replaces that of an earlier run. Handlers of `Events.ITERATION_COMPLETED` find a ``state.batch`` only if
    all of this succeeded; for a case that an earlier run has finished it holds only ``case`` and ``entry``.

    Args:
        results: directory of the results.
        device: device of the network.
        val_data_loader: loader of scored cases.
        network: the network that scores them.
        inferer: the inferer that they are scored with.
        arguments: further arguments of `SupervisedEvaluator`.

    Attributes:
        failed: reason of each failure, by case.
        n_finished: number of cases with results, including those of an earlier run.
        n_kept: number of cases with results of an earlier run.
    """

    def __init__(
        self,
        results: ResultsDirectory,
        device: torch.device,
        val_data_loader: AnomalyMapLoader,
        network: Any,
        inferer: DPMMInferer,
        **arguments: Any,
    ) -> None:
        self.results = results
        self.loader = val_data_loader
        super().__init__(device, val_data_loader, network, inferer=inferer, decollate=False, **arguments)
        self.logger.setLevel(logging.CRITICAL)  # `run` reports what ends a run, once
        self.failed: dict[str, str] = {}
        self.n_finished = self.n_kept = 0

    def run(self, global_epoch: int = 1) -> None:
        """Score all cases and write their results.

        Raises:
            InputError: one or more cases failed (the others are finished), which of several processes the first one
                reports; or the results of the run as a whole could not be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM stopped the run; the message has the number of finished cases.
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
                self.loader.stop()
        # Waits for the files about all cases
        counts = gather([(self.state.epoch_length, self.n_finished, self.n_kept)])
        n_cases, n_finished, n_kept = map(sum, zip(*counts, strict=True))
        failed = sorted(gather([*self.failed.items()]), key=lambda pair: self.results.position_of(pair[0]))
        if n_kept:
            logger.info(f"{n_kept} of {n_cases} cases are kept from an earlier run; --overwrite True makes all anew")
        if self.results.share is not None:
            logger.info(f"This was share {self.results.share}; a run without --share makes summary and report of all.")
        if idist.get_rank() == 0:  # says it for all processes
            raise_failed(failed, n_cases, "the others are finished" if n_finished else "none was finished")

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
            engine.state.batch = [batchdata]  # until the next case
            self.n_finished += 1
        except Exception as error:
            self.failed[case] = _why(error)
            logger.error(f"{case}: {self.failed[case]}")
            logger.debug("the whole of it", exc_info=True)

    def _write(self, engine: CaseEvaluator, batchdata: dict[str, Any]) -> None:
        """Let the handlers write the results of a case; the directory appears when they are complete."""
        about = batchdata["about"] = {"key": batchdata.get("key")}
        with self.results.write_directory(self.results.name_of(batchdata["case"]), about) as directory:
            batchdata["directory"] = directory
            engine.state.output = [{key: batchdata.pop(key) for key in ("image", "pred")}]
            engine.state.batch = [batchdata]
            try:
                engine.fire_event(IterationEvents.FORWARD_COMPLETED)
                engine.fire_event(IterationEvents.MODEL_COMPLETED)
            finally:
                engine.state.batch = engine.state.output = None  # free the memory for the next case


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that incomplete files are removed."""
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
        remedy = "make room"
    elif isinstance(error, PermissionError):
        remedy = "close programs that show older ones"
    else:
        return sentence(error, *FAILED)
    return f"its results could not be written ({reason(error)}); {remedy} and run again"
