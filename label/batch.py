"""Inference on many images of the studies, one after another, in the server itself.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

logger = logging.getLogger(__name__)

N_KEPT = 20  # finished tasks, and lines of each, as in MONAI Label


class BatchInference:
    """Runs of inference on many images. Only one runs at a time, and a failed image does not stop it."""

    def __init__(self) -> None:
        self.tasks: deque[dict[str, Any]] = deque(maxlen=N_KEPT)
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def running(self) -> dict[str, Any] | None:
        """The task that runs, if any."""
        return next((task for task in self.tasks if task["status"] == "RUNNING"), None)

    def start(
        self, images: Sequence[str], infer: Callable[[str], Any], request: dict[str, Any], is_awaited: bool = False
    ) -> dict[str, Any] | None:
        """Start a run.

        Args:
            images: names of the images.
            infer: segments an image and saves its label.
            request: description of the run, for its status.
            is_awaited: whether to return after the end of the run.

        Returns:
            The task, in MONAI Label's format with ``progress``; None if another one runs.
        """
        with self._lock:
            if self.running:
                return None
            self._stopped.clear()
            task = {
                "id": str(uuid.uuid4()),
                "status": "RUNNING",
                "request": request,
                "start_ts": _now(),
                "progress": {"done": 0, "failed": 0, "total": len(images)},
                "details": deque(maxlen=N_KEPT),
            }
            self.tasks.append(task)
        thread = threading.Thread(target=self._run, args=(task, images, infer), name="batch", daemon=True)
        thread.start()
        if is_awaited:
            thread.join()
        return task

    def stop(self) -> dict[str, Any] | None:
        """Stop the run after its current image; None if none runs."""
        task = self.running
        if task:
            self._stopped.set()
        return task

    def _run(self, task: dict[str, Any], images: Sequence[str], infer: Callable[[str], Any]) -> None:
        progress = task["progress"]
        for image in images:
            if self._stopped.is_set():
                break
            try:
                infer(image)
                progress["done"] += 1
                outcome = "done"
            except Exception as error:
                progress["failed"] += 1
                outcome = f"failed: {getattr(error, 'detail', error)}"
            line = f"{image}: {outcome} ({progress['done'] + progress['failed']} of {progress['total']})"
            task["details"].append(line)
            logger.info(line)
        task["end_ts"] = _now()
        task["status"] = "STOPPED" if self._stopped.is_set() else "ERROR" if progress["failed"] else "DONE"


def _now() -> str:
    return datetime.today().strftime("%Y-%m-%d %H:%M:%S")
