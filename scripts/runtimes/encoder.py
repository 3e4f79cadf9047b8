"""The part of the encoder that runtimes take over, and its export."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..models.encoder import DINOv2PatchEncoder

# Images [B,3,H,W] and positions [1,N,D] -> patch tokens [B,N,D] of each layer, see `DINOv2PatchEncoder.block_tokens`.
RunBlocks = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]

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


class EncoderBackend(DINOv2PatchEncoder):
    """An encoder whose blocks run elsewhere; all else is that of the encoder it takes the place of, weights included.

    Args:
        encoder: in whose place it comes.
        run_blocks: what runs the blocks.
        backend_name: the runtime and the precision, for people.
    """

    def __init__(self, encoder: DINOv2PatchEncoder, run_blocks: RunBlocks, backend_name: str) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(encoder.__dict__)  # shared, not copied
        self.run_blocks = run_blocks
        self.backend_name = backend_name

    def block_tokens(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """See `DINOv2PatchEncoder`."""
        return [tokens.to(images) for tokens in self.run_blocks(images, positions)]


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
