"""The engine of an inference run: case by case, whatever happens to one of them."""

from __future__ import annotations

import logging
from typing import Any

from monai.engines import SupervisedEvaluator

from .cases import raise_failed, sentence
from .errors import InputError

logger = logging.getLogger(__name__)


class CaseEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` that goes on after a case that fails, and says so at the end.

    It takes batches of one case from a `CaseDataset`.

    Attributes:
        failed: a sentence by case.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed: dict[str, str] = {}

    def run(self, global_epoch: int = 1) -> None:
        """Run all cases.

        Raises:
            InputError: one or more of them failed; the others are finished.
        """
        self.failed.clear()
        super().run(global_epoch)
        raise_failed(self.failed.items(), self.state.epoch_length, "the others are finished")

    def _iteration(self, engine: CaseEvaluator, batchdata: dict[str, Any]) -> Any:
        (case,) = batchdata["case"]
        try:
            if "error" in batchdata:
                raise InputError(batchdata["error"][0])
            return super()._iteration(engine, batchdata)
        except Exception as error:
            self.failed[case] = sentence(error, "scored and written", "see the log at level DEBUG for the whole of it")
            logger.error(f"{case}: {self.failed[case]}")
            logger.debug("the whole of it", exc_info=True)
            return {}
