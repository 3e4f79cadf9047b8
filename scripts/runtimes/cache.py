"""On-disk cache of exported and quantised encoders, next to the checkpoint."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from ..files import atomic_write, file_sha256
from ..models.encoder import PatchEncoder
from .encoder import export_blocks

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the export changes
KEY = re.compile(r"\d+-[0-9a-f]{16}")  # names of the folders made here; others are kept


class RuntimeCache:
    """Files under ``<model>.compiled/<key>/``; the key is a hash of the checkpoint.

    If the folder is not writable, a temporary folder takes its place.

    Args:
        ckpt_path: the checkpoint.

    Attributes:
        folder: folder of the files.
    """

    def __init__(self, ckpt_path: str | os.PathLike) -> None:
        self._all = compiled_for(ckpt_path)
        self.folder = self._all / f"{FORMAT}-{file_sha256(Path(ckpt_path))[:16]}"
        self._temporary: tempfile.TemporaryDirectory | None = None

    @property
    def quantized(self) -> Path:
        """The int8 blocks, see `scripts.runtimes.quantization`."""
        return self.folder / "blocks_int8.onnx"

    @property
    def thresholds(self) -> Path:
        """The state of the `ScoreCalibration` for int8 scores."""
        return self.folder / "limits_int8.pt"

    @property
    def agreement(self) -> Path:
        """Flip rates of the runtimes, see `scripts.runtimes.auto.AgreementCache`."""
        return self.folder / "verdicts.json"

    @property
    def is_quantized(self) -> bool:
        """Whether the int8 blocks and their decision thresholds exist."""
        return self.quantized.is_file() and self.thresholds.is_file()

    def blocks(self, encoder: PatchEncoder) -> Path:
        """Return the ONNX file of the blocks, exported if it is missing.

        Args:
            encoder: the encoder of the fitted model.

        Returns:
            The file.

        Raises:
            InputError: the export failed, see `export_blocks`.
        """
        name = "blocks.onnx"
        if not (self.folder / name).is_file():
            self.prepare()
            logger.info(f"exporting the encoder to {self.folder / name}, once for this model")
            with atomic_write(self.folder / name) as partial:
                export_blocks(encoder, partial)
        return self.folder / name

    def prepare(self) -> None:
        """Make the folder, and remove the folders of earlier checkpoints with this path."""
        if self._temporary is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(f"{self.folder} is not writable")
        except OSError as error:
            logger.warning(f"Compiled files cannot be kept beside the model ({error}); they are made anew each time.")
            self._temporary = tempfile.TemporaryDirectory()
            self.folder = Path(self._temporary.name)
            return
        for stale in self._all.iterdir():
            if stale != self.folder and KEY.fullmatch(stale.name) and not stale.is_symlink():
                shutil.rmtree(stale, ignore_errors=True)


def compiled_for(ckpt_path: str | os.PathLike) -> Path:
    """Return the cache folder of a checkpoint."""
    return Path(ckpt_path).with_suffix(".compiled")
