"""The torch backend of the encoder."""

from __future__ import annotations

import logging

import torch

from ..models.encoder import EncoderBackend, PatchEncoder

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend(EncoderBackend):
    """Run the blocks under autocast. If a GPU runs out of memory, use smaller batches, then the CPU.

    Args:
        encoder: the encoder with the blocks.
        precision: one of ``DTYPES``.
        compiled: whether `torch.compile` compiles the blocks, on a GPU to a CUDA graph for each shape.
    """

    def __init__(self, encoder: PatchEncoder, precision: str = "fp32", compiled: bool = False) -> None:
        super().__init__(f"torch {precision}")
        self.encoder = encoder
        self.dtype = DTYPES[precision]
        self.largest_batch: int | None = None
        self.on_cpu = False
        run = encoder.block_tokens
        self.run = torch.compile(run, dynamic=False, mode="reduce-overhead") if compiled else run

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens, see `EncoderBackend`."""
        while not self.on_cpu:
            parts = images.split(self.largest_batch or len(images))
            try:
                outputs = [self._run_once(part, positions) for part in parts]
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                self._reduce_memory(len(parts[0]))
            else:
                return [torch.cat(layer_tokens) for layer_tokens in zip(*outputs, strict=True)]
        return self._run_once(images.cpu(), positions.cpu())

    def _run_once(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return [tokens.float().clone() for tokens in self.run(images, positions)]

    def _reduce_memory(self, batch_size: int) -> None:
        if batch_size > 1:
            self.largest_batch = batch_size // 2
            logger.warning(f"The GPU's memory does not hold {batch_size} slices; going on with {self.largest_batch}.")
        else:
            self.on_cpu = True
            self.encoder.cpu()
            logger.warning("The GPU's memory does not hold one slice; the encoder goes on on the CPU, more slowly.")
