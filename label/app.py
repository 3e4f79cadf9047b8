"""MONAI Label's app for bundles, with read-only studies and bundles that stay loaded.

The module is installed as ``main.py`` of the app, and MONAI Label's original one as ``bundle_app.py``.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import bundle_app
import monailabel.interfaces.app
from answers import algorithm_of
from batch import BatchInference
from bundle_tasks import AnomalyInference, AnomalyTraining, is_anomaly_bundle, load_itk
from dicomweb_studies import DicomWebStudies
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from parent_process import end_with_parent
from read_only_studies import ReadOnlyStudies

logger = logging.getLogger(__name__)

SETTLING = 60  # seconds in which a session may be incomplete

monailabel.interfaces.app.DICOMWebDatastore = DicomWebStudies  # MONAI Label makes the datastore by this name


class AnomalyApp(bundle_app.MyApp, MONAILabelApp):
    """App of the server; MONAI Label finds it by the name of its base class.

    Attributes:
        batch: runs of inference on many images.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        end_with_parent()
        # All work on images is done by one thread: requests wait for their turn, in order, and need no further memory.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self.batch = BatchInference()
        super().__init__(app_dir, studies, conf)

    def init_datastore(self) -> Datastore:
        """Open a folder of studies, or connect to a DICOMweb server."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return ReadOnlyStudies(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Make the inference of each bundle, of this program and of others."""
        tasks = {
            name: AnomalyInference(Path(path)) if is_anomaly_bundle(Path(path)) else BundleInferTask(path, self.conf)
            for name, path in self.models.items()
        }
        datastore, ours = self.datastore(), [task for task in tasks.values() if isinstance(task, AnomalyInference)]
        if isinstance(datastore, DicomWebStudies) and ours:
            datastore.algorithm = partial(algorithm_of, ours[0])
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """Make the fit of each bundle that has one."""
        trainers = {
            name: (AnomalyTraining if is_anomaly_bundle(Path(path)) else BundleTrainTask)(path, self.conf)
            for name, path in self.models.items()
        }
        return {name: trainer for name, trainer in trainers.items() if trainer.is_valid()}

    def cleanup_sessions(self) -> None:
        """Remove uploaded images whose time is over, and sessions that cannot be read."""
        sessions = self._sessions
        if sessions is None or not Path(sessions.store_path).is_dir():
            return
        for folder in Path(sessions.store_path).iterdir():
            if time.time() - folder.stat().st_mtime < SETTLING:
                continue
            try:
                is_readable = sessions.get_session(folder.name, update_ts=False, fetch_cache=False) is not None
            except (OSError, ValueError, TypeError):
                is_readable = False
            if not is_readable:
                sessions.remove_session(folder.name)
        sessions.remove_expired()

    def preload(self) -> None:
        """Load models and ITK, so that the first request need not wait for them."""
        for task in self._infers.values():
            if isinstance(task, AnomalyInference) and task.is_valid():
                self.submit(task.load).add_done_callback(_log_failure)
        self.submit(load_itk)

    def anomaly_inference(self, model: str) -> AnomalyInference | None:
        """Return the inference of a bundle of this program; None for other models."""
        task = self._infers.get(model)
        return task if isinstance(task, AnomalyInference) else None

    def submit(self, function: Any, *arguments: Any, **keywords: Any) -> Future:
        """Let the worker call a function, after what it was given before."""
        return self._worker.submit(function, *arguments, **keywords)

    @property
    def n_waiting(self) -> int:
        """Number of calls that wait for the worker."""
        return self._worker._work_queue.qsize()

    def train(self, request: dict[str, Any]) -> Any:
        """Fit a model; in the server, the worker does it."""
        return self.submit(super().train, request).result() if self._server_mode else super().train(request)

    def infer_and_save(self, model: str, image: str, request: dict[str, Any]) -> None:
        """Segment an image of the studies and save the mask as its label."""
        wanted = {**request, "model": model, "image": image, "save_label": True}
        result = self.submit(super().infer, wanted).result()
        Path(result["file"]).unlink(missing_ok=True)


def _log_failure(done: Future) -> None:
    if error := done.exception():
        logger.warning(f"A model cannot be used: {error}")
