"""The engine of an inference run: case by case, whatever happens to one of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

from .cases import raise_failed, sentence
from .errors import InputError
from .inferer import DPMMInferer
from .scoring import FAILED, ScoredCases

logger = logging.getLogger(__name__)


class CaseEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` that goes on after a case that fails, and says so at the end.

    Its iterations are cases that `ScoredCases` has scored in other threads meanwhile; the rest, postprocessing and
    handlers, is done here.

    Args:
        device: where the network is.
        val_data_loader: a dataset such as `CaseDataset`.
        network: see `ScoredCases`.
        inferer: likewise.
        arguments: those of a `SupervisedEvaluator`.

    Attributes:
        failed: a sentence by case.
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: Sequence[dict[str, Any]],
        network: Any,
        inferer: DPMMInferer,
        **arguments: Any,
    ) -> None:
        self.scored = ScoredCases(val_data_loader, network, inferer, device)
        super().__init__(device, self.scored, network, inferer=inferer, decollate=False, **arguments)
        self.failed: dict[str, str] = {}

    def run(self, global_epoch: int = 1) -> None:
        """Run all cases.

        Raises:
            InputError: one or more of them failed; the others are finished.
        """
        self.failed.clear()
        try:
            super().run(global_epoch)
        except BaseException:  # Ctrl-C for one
            self.fire_event(Events.TERMINATE)
            raise
        finally:
            self.scored.stop()
        raise_failed(self.failed.items(), self.state.epoch_length, "the others are finished")

    def _iteration(self, engine: CaseEvaluator, batchdata: dict[str, Any]) -> None:
        case = batchdata["case"]
        try:
            if "error" in batchdata:
                raise InputError(batchdata["error"])
            engine.state.output = [{key: batchdata.pop(key) for key in ("image", "pred")}]
            engine.state.batch = [batchdata]
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            engine.fire_event(IterationEvents.MODEL_COMPLETED)
        except Exception as error:
            self.failed[case] = sentence(error, *FAILED)
            logger.error(f"{case}: {self.failed[case]}")
            logger.debug("the whole of it", exc_info=True)
        finally:
            engine.state.batch = None  # the case is done with: room for the next one
