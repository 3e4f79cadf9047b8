"""ONNX export of the transformer blocks that a backend replaces."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..models.encoder import PatchEncoder

INSTALL = "`pip install -r requirements-fast.txt`"


class EncoderBlocks(nn.Module):
    """`PatchEncoder.block_tokens` as a module, for exporters.

    Args:
        encoder: the encoder with the blocks.
    """

    def __init__(self, encoder: PatchEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens, see `PatchEncoder.block_tokens`."""
        return self.encoder.block_tokens(images, positions)


@torch.no_grad()
def export_blocks(encoder: PatchEncoder, path: Path) -> None:
    """Write the blocks as ONNX with inputs ``images`` and ``positions``, one output per layer, and dynamic sizes.

    Position embeddings are an input, so that one file serves images of every size.

    Args:
        encoder: the encoder with the blocks.
        path: the file.

    Raises:
        InputError: onnxscript is not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:  # torch imports it on use; it is slow to import
        raise InputError(f"To export the encoder onnxscript is needed and not installed; {INSTALL}.")
    device = encoder.mean.device
    h, w = 3, 4
    images = torch.zeros(2, 3, encoder.patch_size * h, encoder.patch_size * w, device=device)
    dynamic = torch.export.Dim.DYNAMIC
    with _quiet():
        torch.onnx.export(
            EncoderBlocks(encoder).eval(),
            (images, encoder.patch_positions(h, w)),
            str(path),
            input_names=["images", "positions"],
            dynamic_shapes={"images": {0: dynamic, 2: dynamic, 3: dynamic}, "positions": {1: dynamic}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the output and logs of exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
