"""State of the git checkout that a release is made from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scripts.errors import InputError, reason_of

REMEDY = "give --allow_dirty to release the files as they are"


def check_committed(root: Path) -> None:
    """Check that all files of a checkout are committed, so that a tag can name what is released.

    Raises:
        InputError: files are changed or new, or git does not know the folder.
    """
    try:
        done = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"git cannot tell what of {root} is committed ({reason_of(error)}); {REMEDY}.") from error
    if changes := done.stdout.splitlines():
        raise InputError(
            f"A release needs a commit, but {len(changes)} files are changed or new, such as {changes[0][3:]}; commit "
            f"them, or {REMEDY}."
        )
