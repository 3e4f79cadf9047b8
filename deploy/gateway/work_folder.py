"""The folder of a gateway: made, marked and locked."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from gateway.files import remove_parts

MARKER = "gateway.lock"
MARK = "Work folder of the anomaly gateway, format 1. It holds images of patients.\n"
FOLDERS = ("incoming", "studies", "failed", "removing")


class WorkFolderError(ValueError):
    """A folder that the gateway cannot use; the message is one sentence."""


def open_work_folder(root: Path) -> IO[str]:
    """Make the folder if need be, mark it as the gateway's own, and lock it against a second gateway.

    Args:
        root: the folder; its access is restricted to the user.

    Returns:
        The open marker, which holds the lock until it is closed or the process ends.

    Raises:
        WorkFolderError: the folder holds something else, is used by another gateway, or cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(root.iterdir()) and not (root / MARKER).is_file():
            raise WorkFolderError(
                f"The work folder {root} holds something else than the work of a gateway; give a new folder."
            )
        handle = os.open(root / MARKER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        marker = os.fdopen(handle, "r+")
        try:
            _prepare(root, marker)
        except BaseException:
            marker.close()
            raise
    except OSError as error:
        raise WorkFolderError(
            f"The work folder {root} cannot be used ({error.strerror}); give another place."
        ) from error
    return marker


def _prepare(root: Path, marker: IO[str]) -> None:
    """Lock and mark the folder, make its folders, and remove what a killed process has left half written."""
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WorkFolderError(
            f"The work folder {root} is used by another gateway; end it, or give another folder."
        ) from error
    text = marker.read()
    if text and text != MARK:
        raise WorkFolderError(f"The work folder {root} was made by another version; give a new folder.")
    root.chmod(0o700)
    if not text:  # new, or left by a process that was killed at this line
        marker.write(MARK)
        marker.flush()
    for name in FOLDERS:
        (root / name).mkdir(exist_ok=True, mode=0o700)
    for folder in (root / "incoming", *(root / "studies").iterdir(), *(root / "failed").iterdir()):
        remove_parts(folder)
