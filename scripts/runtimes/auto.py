"""The fastest runtime that keeps the mask."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import reason, reason_of
from ..files import write_json
from ..models.encoder import DINOv2PatchEncoder
from .cache import RuntimeCache
from .encoder import EncoderBackend, RunBlocks
from .torch_backend import TorchBlocks

logger = logging.getLogger(__name__)

REFERENCE = "torch fp32"
# About a Dice of 0.9 between the two masks; see `decision_flip_rate`.
MAX_FLIP_RATE = 0.2


class AgreementCache:
    """`decision_flip_rate` of each runtime, kept with the model.

    Args:
        artefacts: those of the model.
    """

    def __init__(self, artefacts: RuntimeCache) -> None:
        self.artefacts = artefacts
        self._changed = read_verdicts(artefacts.verdicts)

    def get(self, name: str) -> float | None:
        """The share for a runtime and precision, such as ``"openvino bf16"``; None where it is not known yet."""
        return 0.0 if name == REFERENCE else self._changed.get(name)

    def put(self, name: str, changed: float) -> None:
        """Keep what was found for a runtime and precision, on disk where it can be written."""
        self._changed[name] = changed
        self.artefacts.prepare()
        try:
            write_json(self._changed, self.artefacts.verdicts)
        except OSError as error:
            logger.warning(f"What was found of {name} cannot be kept ({reason(error)}); it is found anew each time.")


def read_verdicts(path: Path) -> dict[str, float]:
    """Read the shares of patches that change sides, by runtime; empty where the file is missing or damaged."""
    try:
        changed = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(changed, dict) and all(_is_share(value) for value in changed.values()):
        return changed
    return {}


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


class AutoBackend(EncoderBackend):
    """An encoder in the first of several runtimes that starts and keeps the mask.

    A runtime of which nothing is known yet is compared with torch in single precision on the first images that come.

    Args:
        encoder: in whose place it comes.
        candidates: what starts each runtime, by name, fastest first; the last is ``REFERENCE``.
        exceeds_threshold: embeddings ``[B,D,h,w]`` -> which of the patches lie beyond the decision threshold.
        target_fpr: share of normal patches beyond it.
        verdicts: what is known.
    """

    def __init__(
        self,
        encoder: DINOv2PatchEncoder,
        candidates: Mapping[str, Callable[[], RunBlocks]],
        exceeds_threshold: Callable[[torch.Tensor], torch.Tensor],
        target_fpr: float,
        verdicts: AgreementCache,
    ) -> None:
        super().__init__(encoder, TorchBlocks(encoder), REFERENCE)
        self.candidates = dict(candidates)
        self.exceeds_threshold = exceeds_threshold
        self.target_fpr = target_fpr
        self.verdicts = verdicts
        self._choose(None)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See `DINOv2PatchEncoder`."""
        if self.candidates:
            self._choose(images)
        return super().forward(images)

    def _choose(self, images: torch.Tensor | None) -> None:
        """Go through the candidates; without images, up to the first of which nothing is known."""
        while self.candidates:
            name = next(iter(self.candidates))
            known = self.verdicts.get(name)
            if known is None and images is None:
                return
            start = self.candidates.pop(name)
            if known is not None and known > MAX_FLIP_RATE:
                logger.info(f"{name} would not keep the mask: {_finding(known)}")
                continue
            try:
                blocks = start()
                changed = self._compare(name, blocks, images) if known is None else known
            except Exception as error:
                logger.warning(f"{name} does not run the encoder here ({reason_of(error)}); taking the next.")
                continue
            if changed > MAX_FLIP_RATE:
                logger.warning(f"{name} would not keep the mask: {_finding(changed)}; taking the next.")
                continue
            logger.info(f"the encoder runs in {name}, the fastest here that keeps the mask: {_finding(changed)}")
            self.run_blocks, self.backend_name = blocks, name
            self.candidates.clear()
            return
        self.run_blocks = TorchBlocks(self)
        logger.warning(f"None of what was asked for keeps the mask; the encoder runs in {REFERENCE}.")

    def _compare(self, name: str, blocks: RunBlocks, images: Any) -> float:
        """How many patches of images change sides, which is kept."""
        beyond = []
        for run_blocks in (TorchBlocks(self), blocks):
            self.run_blocks = run_blocks
            beyond.append(self.exceeds_threshold(super().forward(images)))
        changed = decision_flip_rate(beyond[0], beyond[1], self.target_fpr)
        self.verdicts.put(name, changed)
        return changed


def decision_flip_rate(expected: torch.Tensor, found: torch.Tensor, target_fpr: float) -> float:
    """How many patches change sides of the decision threshold, as a share of those beyond it.

    Args:
        expected: which patches lie beyond it, of any shape.
        found: likewise, in another runtime.
        target_fpr: share of normal patches beyond it; the patches beyond are taken to be no fewer.

    Returns:
        The share, without unit; 0.2 is about a Dice of 0.9.
    """
    beyond = max(float(expected.float().mean()), target_fpr)
    return float((expected != found).float().mean()) / beyond


def _finding(changed: float) -> str:
    return f"where it was checked, patches that change sides are {changed:.1%} of those beyond the decision threshold"
