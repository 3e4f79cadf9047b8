"""The end of a process with its parent: no server outlives its command, and no fit its server.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

import psutil

PARENT = "DPMM_LABEL_PARENT"  # environment variable with the process id of the parent
INTERVAL = 0.5  # seconds between looks at the parent


def end_with_parent() -> None:
    """End this process and its children when the parent ends, even if it is killed.

    The parent is the process whose id the environment names; from now on it names this process, for its children.
    """
    parent = int(os.environ.get(PARENT) or os.getppid())
    os.environ[PARENT] = str(os.getpid())
    if parent != os.getpid():  # MONAI Label makes the app anew in the same process
        threading.Thread(target=_end_after, args=(parent,), name="parent", daemon=True).start()


def _end_after(parent: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(INTERVAL)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)
