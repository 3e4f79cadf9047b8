"""The part of the encoder that runtimes take over, and its export."""

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
from ..models.encoder import DINOv2PatchEncoder

INSTALL = "`pip install -r requirements-fast.txt`"


class EncoderBlocks(nn.Module):
    """`DINOv2PatchEncoder.block_tokens` as a module, for exporters.

    Args:
        encoder: whose blocks they are.
    """

    def __init__(self, encoder: DINOv2PatchEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """See `DINOv2PatchEncoder.block_tokens`."""
        return self.encoder.block_tokens(images, positions)


@torch.no_grad()
def export_blocks(encoder: DINOv2PatchEncoder, path: Path) -> None:
    """Write the blocks as ONNX: inputs ``images`` and ``positions``, an output for each layer, of free sizes.

    Position embeddings are an input, so that one file does for images of every size.

    Args:
        encoder: whose blocks they are.
        path: the file.

    Raises:
        InputError: onnxscript is not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:  # imported by torch where it is needed, and slow to
        raise InputError(f"To export the encoder onnxscript is needed and not installed; {INSTALL}.")
    device = encoder.mean.device
    h, w = 3, 4
    images = torch.zeros(2, 3, 14 * h, 14 * w, device=device)
    free = torch.export.Dim.DYNAMIC
    with _quiet():
        torch.onnx.export(
            EncoderBlocks(encoder).eval(),
            (images, encoder.patch_positions(h, w)),
            str(path),
            input_names=["images", "positions"],
            dynamic_shapes={"images": {0: free, 2: free, 3: free}, "positions": {1: free}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print and log."""
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
