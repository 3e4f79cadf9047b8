"""The work on studies, one at a time: run the app, send its results."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from gateway.app_process import App
from gateway.files import sync
from gateway.record import Result
from gateway.sender import Destination, UnreachableError, read_result, send
from gateway.studies import Studies, Study

logger = logging.getLogger("gateway")

TICK = 0.2  # s
PAUSE_AFTER_ERROR = 10.0  # s


class Worker:
    """Processes studies until it is stopped.

    Args:
        studies: the studies.
        app: how the app is run.
        destination: where results go.
        ae_title: title of the gateway.
    """

    def __init__(self, studies: Studies, app: App, destination: Destination, ae_title: str) -> None:
        self.studies = studies
        self.app = app
        self.destination = destination
        self.ae_title = ae_title

    def work(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; an error of the disk is logged, and the work repeated later."""
        while not stop.is_set():
            try:
                is_busy = self.step(stop)
            except OSError as error:
                logger.error(f"the work folder cannot be written ({error.strerror}); next attempt in a while")
                stop.wait(PAUSE_AFTER_ERROR)
                continue
            if not is_busy:
                stop.wait(TICK)

    def step(self, stop: threading.Event) -> bool:
        """Send the results of one study, otherwise run the app on one, otherwise tidy up.

        Returns:
            Whether there was something to do.

        Raises:
            OSError: the work folder cannot be written.
        """
        if study := self.studies.next_delivery():
            self.deliver(study, stop)
        elif study := self.studies.next_run():
            self.run(study, stop)
        else:
            self.studies.remove_old()
            return False
        return True

    def run(self, study: Study, stop: threading.Event) -> None:
        """Run the app on a study, and record its results.

        Raises:
            OSError: the work folder cannot be written.
        """
        output = self.studies.begin_run(study)
        if output is None:
            return
        n_images = sum(1 for _ in study.images.iterdir())
        logger.info(f"study {study.key}: the app is run on {n_images} files")
        sentence = self.app.run(study.images, output, stop)
        if sentence is None:
            self.studies.stop_run(study)
            return
        results = []
        for path in sorted(output.rglob("*.dcm")):
            for place in (path, *(parent for parent in path.parents if parent.is_relative_to(output))):
                sync(place)  # before the record says that the results are there
            result = self._read(path, study)
            sentence = sentence if result else "The app has written a damaged result."
            results += [result] if result else []
        self.studies.end_run(study, results, sentence or ("" if results else "The app has written no results."))

    def deliver(self, study: Study, stop: threading.Event) -> None:
        """Send the results of a study that were not sent yet; each answer is recorded at once.

        Raises:
            OSError: the work folder cannot be written.
        """
        left = [result for result in study.record.results if not result.sent and not result.refusal]
        for result in left:
            if not self._read(study.folder / result.path, study):
                result.refusal = "A result is missing on the disk, or damaged."
        left = [result for result in left if not result.refusal]
        try:
            for _ in send(left, study.folder, self.destination, self.ae_title):
                self.studies.keep_record(study)
                if stop.is_set():
                    return
        except UnreachableError as error:
            pause = self.studies.postpone(study)
            logger.warning(f"study {study.key}: the PACS cannot be sent results, {error}; next attempt in {pause:g} s")
            return
        self.studies.end_delivery(study)

    def _read(self, path: Path, study: Study) -> Result | None:
        try:
            return read_result(path, study.folder)
        except Exception:  # pydicom raises almost anything
            return None
