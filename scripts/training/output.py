"""Output files of a fit: checked before it begins, and locked against other runs until it ends."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from filelock import FileLock
from torch import nn

from ..errors import InputError, reason
from ..files import RecordedDirectory
from ..models.checkpoint import check_model_path, check_writable

logger = logging.getLogger(__name__)

LAST_EPOCH = "last_epoch.pt"
FIT_REPORTS = ("fit_report.json", "fit_report.png")
CALIBRATION_REPORT = "calibration_report.json"
SPARE = 64 * 10**6  # bytes: reports, TensorBoard's figures

# Locks of this process: a failed run leaves its lock to the next one. They are kept at a class of another package, as
# MONAI Label imports this module anew before each run.
_locks: dict[Path, ExitStack] = getattr(FileLock, "held_by_fits", {})
FileLock.held_by_fits = _locks  # type: ignore[attr-defined]


class FitOutput:
    """Write the files of a fit into a directory with a record; the file of the model is checked only.

    Args:
        output_dir: the directory.
        ckpt_path: file of the model.
        network: network that the model will hold, for its size; None if the size is negligible.
        names: files that the run writes into the directory.
        resume: whether the run resumes from the state of the last one.
        log_dir: directory of TensorBoard's files; None for none.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        ckpt_path: str | os.PathLike,
        network: nn.Module | None = None,
        names: Sequence[str] = (LAST_EPOCH, *FIT_REPORTS),
        resume: bool = False,
        log_dir: str | os.PathLike | None = None,
    ) -> None:
        self.directory = RecordedDirectory(output_dir)
        self.ckpt_path = Path(ckpt_path).absolute()
        self.network = network
        self.names = tuple(names)
        self.resume = resume
        self.log_dir = None if log_dir is None else Path(log_dir).absolute()

    def open(self) -> None:
        """Check that all files of the run can be written, and lock the directory until `close`.

        The first process does this while the others wait.

        Raises:
            InputError: a file cannot be written or would replace a file of others, or another run writes there.
        """
        if idist.get_rank() == 0:
            self._open()
        idist.barrier()

    def close(self) -> None:
        """Unlock the directory."""
        if stack := _locks.pop(self.directory.path, None):
            stack.close()

    def save(self, content: Any, name: str) -> None:
        """Write an object into the directory by `torch.save`.

        Raises:
            InputError: it cannot be written.
        """
        with self.write(name) as partial, partial.open("wb") as file:
            torch.save(content, file)

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Write a file into the directory, whole or not at all; see `RecordedDirectory.write`.

        Raises:
            InputError: it cannot be written.
        """
        try:
            with self.directory.write(name) as partial:
                yield partial
        except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
            raise InputError(
                f"{name} cannot be written into output_dir {self.directory.path} ({reason(error)}); make room there "
                "and run again, a fit with --resume True."
            ) from error

    def _open(self) -> None:
        check_model_path(self.ckpt_path)
        self.close()
        try:
            self.directory.open()
        except OSError as error:
            raise InputError(
                f"output_dir {self.directory.path} cannot be read ({reason(error)}); give another place."
            ) from error
        if self.log_dir is not None:
            check_writable(self.log_dir, f"log_dir {self.log_dir}")
        with ExitStack() as stack:
            stack.enter_context(self.directory.lock())
            for name in self.names:
                self.directory.check_replaceable(name)
            self._check_space()
            _locks[self.directory.path] = stack.pop_all()
        last_epoch = self.directory.path / LAST_EPOCH
        if LAST_EPOCH in self.names and last_epoch.exists() and not self.resume:
            logger.warning(
                f"{last_epoch} of an earlier fit is replaced after the first epoch; stop now and give --resume True to "
                "go on from it instead."
            )

    def _check_space(self) -> None:
        tensors = self.network.state_dict().values() if self.network else ()
        needed = SPARE + 2 * sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))
        for folder, option in ((self.directory.path, "output_dir"), (self.ckpt_path.parent, "ckpt_path")):
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise InputError(
                    f"{option} needs about {needed / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB; make room or "
                    "give another place."
                )
