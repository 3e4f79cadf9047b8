"""Choice of the fastest backend that leaves the mask unchanged."""

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
from ..models.encoder import EncoderBackend, PatchEncoder
from .cache import RuntimeCache
from .torch_backend import TorchBackend

logger = logging.getLogger(__name__)

REFERENCE = "torch fp32"
# About a Dice of 0.9 between the two masks; see `decision_flip_rate`.
MAX_FLIP_RATE = 0.2


class AgreementCache:
    """The `decision_flip_rate` of each runtime and precision, kept with the model.

    Args:
        cache: that of the model.
    """

    def __init__(self, cache: RuntimeCache) -> None:
        self.cache = cache
        self._flip_rates = read_agreement(cache.agreement)

    def get(self, name: str) -> float | None:
        """Return the rate of a runtime and precision, such as ``"openvino bf16"``; None if it is unknown."""
        return 0.0 if name == REFERENCE else self._flip_rates.get(name)

    def put(self, name: str, flip_rate: float) -> None:
        """Keep the rate of a runtime and precision, on disk if the file can be written."""
        self._flip_rates[name] = flip_rate
        self.cache.prepare()
        try:
            write_json(self._flip_rates, self.cache.agreement)
        except OSError as error:
            logger.warning(f"The agreement of {name} cannot be kept ({reason(error)}); it is measured anew each time.")


def read_agreement(path: Path) -> dict[str, float]:
    """Read flip rates by runtime and precision; empty if the file is missing or damaged."""
    try:
        flip_rates = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(flip_rates, dict) and all(_is_rate(value) for value in flip_rates.values()):
        return flip_rates
    return {}


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


class AutoBackend(EncoderBackend):
    """Give an encoder the first of several backends that starts and leaves the mask unchanged.

    A backend of unknown agreement is compared with torch in single precision on the next images. Until one is chosen,
    the encoder runs in torch in single precision; afterwards the chosen backend takes the place of this one.

    Args:
        encoder: receives the backend.
        candidates: functions that start each backend, by name, fastest first; the last is ``REFERENCE``.
        exceeds_threshold: embeddings ``[B,D,h,w]`` -> mask of the patches that reach the decision threshold.
        target_fpr: false-positive rate of the decision threshold, per normal patch.
        agreement: known flip rates.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        candidates: Mapping[str, Callable[[], EncoderBackend]],
        exceeds_threshold: Callable[[torch.Tensor], torch.Tensor],
        target_fpr: float,
        agreement: AgreementCache,
    ) -> None:
        super().__init__(REFERENCE)
        self.encoder = encoder
        self.candidates = dict(candidates)
        self.exceeds_threshold = exceeds_threshold
        self.target_fpr = target_fpr
        self.agreement = agreement
        self.reference = TorchBackend(encoder)

    def attach(self) -> None:
        """Become the backend of the encoder, or choose at once if the agreement of the candidates is known."""
        self.encoder.backend = self
        self._choose(None)

    def prepare(self, images: torch.Tensor) -> None:
        """Choose on a batch of images ``[B,3,H,W]``."""
        self._choose(images)

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Compute in torch in single precision, see `EncoderBackend`."""
        return self.reference(images, positions)

    def _choose(self, images: torch.Tensor | None) -> None:
        """Go through the candidates; without images, up to the first of unknown agreement."""
        while self.candidates:
            name = next(iter(self.candidates))
            known = self.agreement.get(name)
            if known is None and images is None:
                return
            start = self.candidates.pop(name)
            if known is not None and known > MAX_FLIP_RATE:
                logger.info(f"{name} would not keep the mask: {_finding(known)}")
                continue
            try:
                backend = start()
                flip_rate = self._compare(backend, images) if known is None else known
            except Exception as error:
                logger.warning(f"{name} does not run the encoder here ({reason_of(error)}); taking the next.")
                continue
            if flip_rate > MAX_FLIP_RATE:
                logger.warning(f"{name} would not keep the mask: {_finding(flip_rate)}; taking the next.")
                continue
            logger.info(f"the encoder runs in {name}, the fastest here that keeps the mask: {_finding(flip_rate)}")
            self.encoder.backend = backend
            return
        self.encoder.backend = self.reference
        logger.warning(f"None of what was asked for keeps the mask; the encoder runs in {REFERENCE}.")

    def _compare(self, backend: EncoderBackend, images: Any) -> float:
        """Measure and keep the flip rate of a backend on images ``[B,3,H,W]``."""
        expected, decisions = self._decisions(self.reference, images), self._decisions(backend, images)
        flip_rate = decision_flip_rate(expected, decisions, self.target_fpr)
        self.agreement.put(backend.name, flip_rate)
        return flip_rate

    def _decisions(self, backend: EncoderBackend, images: torch.Tensor) -> torch.Tensor:
        """Return the mask of patches that reach the decision threshold with another backend."""
        self.encoder.backend = backend
        try:
            return self.exceeds_threshold(self.encoder.forward(images))  # hooks of the encoder see a batch once
        finally:
            self.encoder.backend = self


def decision_flip_rate(expected: torch.Tensor, decisions: torch.Tensor, target_fpr: float) -> float:
    """Compute the number of patches on another side of the decision threshold, relative to those that reach it.

    Args:
        expected: mask of the patches that reach it, of any shape.
        decisions: the same mask in another runtime.
        target_fpr: lower bound of the share of patches that reach it.

    Returns:
        The ratio; 0.2 is about a Dice of 0.9.
    """
    positive_rate = max(float(expected.float().mean()), target_fpr)
    return float((expected != decisions).float().mean()) / positive_rate


def _finding(flip_rate: float) -> str:
    return f"where it was checked, patches that change sides are {flip_rate:.1%} of those beyond the decision threshold"
