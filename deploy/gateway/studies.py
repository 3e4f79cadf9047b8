"""Studies that were received, on disk: what has to be run, sent, kept and removed.

The folder of a study is in ``studies``, or in ``failed`` after a failure. ``new`` holds the images that no run has
seen, ``images`` those of the last run, ``results`` the output of the app, and `record` says what has been done. Every
change is a single rename or write of the record, in an order that leaves work to be done, never work forgotten, if the
process is killed between two of them.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from gateway.files import make_folder, move, remove_known, write_part, write_whole
from gateway.record import DELIVERED, FAILED, RUNNING, SENDING, WAITING, Record, Result

logger = logging.getLogger("gateway")

MAX_INTERRUPTIONS = 3
LONGEST_PAUSE = 3600.0  # s between two attempts to send
COVERED = (RUNNING, SENDING, DELIVERED)  # states in which the images of the study are those of a run
FILES = ("new/*.dcm", "images/*.dcm", "record.json", "reason.txt")


class FullError(Exception):
    """There is no room for an image; the message says of what kind."""


@dataclass(frozen=True)
class Limits:
    """Limits of the work folder.

    Attributes:
        pending: studies that are not delivered and have not failed.
        free: bytes on the disk that are left free.
        keep: time that a delivered or failed study is kept, s.
        quiet: time without a new image after which a study is complete, s.
        pause: time between the first two attempts to send, s; it doubles each time.
    """

    pending: int = 100
    free: float = 2e9
    keep: float = 24 * 3600.0
    quiet: float = 30.0
    pause: float = 30.0


@dataclass
class Study:
    """A study.

    Attributes:
        key: name of its folder; see `key_of`.
        folder: its folder.
        record: its record.
        is_new: whether it holds images that no run has seen.
        received: when the last of them arrived, s of the monotonic clock.
        attempts: failed attempts to send since the start.
        due: when to send next, s of the monotonic clock.
    """

    key: str
    folder: Path
    record: Record
    is_new: bool = False
    received: float = field(default_factory=time.monotonic)
    attempts: int = 0
    due: float = 0.0

    @property
    def is_pending(self) -> bool:
        """Return whether something has to be done."""
        return self.is_new or self.record.state in (RUNNING, SENDING)

    @property
    def images(self) -> Path:
        """Return the folder of the images of the last run."""
        return self.folder / "images"


def key_of(uid: str) -> str:
    """Return a name for files: a valid UID itself, otherwise its hash, as it may be a path or hold a name."""
    is_valid = len(uid) <= 64 and re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+", uid)
    return uid if is_valid else hashlib.sha256(uid.encode(errors="surrogateescape")).hexdigest()


class Studies:
    """Studies in a work folder; the methods may be called from several threads.

    Args:
        root: the folder, opened by `open_work_folder`.
        limits: its limits.

    Raises:
        ValueError: a record is damaged.
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        self.root = root
        self.limits = limits
        self._lock = threading.RLock()
        self._studies: dict[str, Study] = {}
        for left in (root / "removing").iterdir():
            _remove(left)
        for folder in (*(root / "studies").iterdir(), *(root / "failed").iterdir()):
            if folder.is_dir():
                self._load(folder)

    def add(self, study_uid: str, sop_uid: str, data: bytes, is_image: bool) -> bool:
        """Store a received file.

        A file that is there already is ignored, unless its study has failed or is to be run; another one of the same
        UID replaces it.

        Args:
            study_uid: study instance UID.
            sop_uid: SOP instance UID.
            data: content of the file.
            is_image: whether the app may score it, so that the study has to be run.

        Returns:
            Whether the file is a new one.

        Raises:
            FullError: there are too many studies or too few bytes left.
            OSError: the file cannot be written.
        """
        key, name = key_of(study_uid), f"{key_of(sop_uid)}.dcm"
        if shutil.disk_usage(self.root).free < self.limits.free + len(data):
            raise FullError("too little free disk space")
        part = write_part(self.root / "incoming", data)
        try:
            with self._lock:
                return self._file(key, name, part, data, is_image)
        finally:
            part.unlink(missing_ok=True)

    def next_run(self) -> Study | None:
        """Return the study that has waited longest of those that are quiet and have to be run, or None."""
        latest = time.monotonic() - self.limits.quiet
        with self._lock:
            waiting = [
                study
                for study in self._studies.values()
                if (study.record.state == RUNNING or (study.is_new and study.record.state != SENDING))
                and study.received <= latest
            ]
        return min(waiting, key=lambda study: study.received, default=None)

    def next_delivery(self) -> Study | None:
        """Return the study whose results are to be sent next, or None."""
        with self._lock:
            due = [s for s in self._studies.values() if s.record.state == SENDING and s.due <= time.monotonic()]
        return min(due, key=lambda study: study.due, default=None)

    def begin_run(self, study: Study) -> Path | None:
        """Record a run, and give the app all images of the study.

        Args:
            study: the study.

        Returns:
            New folder for the output; None if the run was interrupted so often that the study has failed.

        Raises:
            OSError: the record or a folder cannot be written.
        """
        with self._lock:
            interruptions = study.record.interruptions + 1 if study.record.state == RUNNING else 0
            if interruptions >= MAX_INTERRUPTIONS:
                self._fail(study, f"The gateway was killed {interruptions} times while it processed the study.")
                return None
            run = uuid.uuid4().hex
            study.record = Record(RUNNING, run, interruptions)
            study.record.write(study.folder)  # before the images move, so that a restart knows that they need a run
            make_folder(study.images)
            for path in (study.folder / "new").glob("*.dcm"):
                move(path, study.images / path.name)
            study.is_new = False
        shutil.rmtree(study.folder / "results", ignore_errors=True)  # of a run that was delivered or interrupted
        output = study.folder / "results" / run
        make_folder(output)
        return output

    def stop_run(self, study: Study) -> None:
        """Record that the gateway itself stopped a run, which is no interruption."""
        study.record.interruptions -= 1
        study.record.write(study.folder)

    def end_run(self, study: Study, results: list[Result], sentence: str) -> None:
        """Record the end of a run.

        Args:
            study: the study.
            results: results to send.
            sentence: why the run failed, in whole or in part; empty if it did not.
        """
        with self._lock:
            study.attempts, study.due = 0, 0.0
            if not results:
                self._fail(study, sentence)
                return
            study.record = Record(SENDING, study.record.run, sentence=sentence, results=results)
            study.record.write(study.folder)

    def keep_record(self, study: Study) -> None:
        """Write the record of a study after a change."""
        study.record.write(study.folder)

    def postpone(self, study: Study) -> float:
        """Have a delivery repeated later.

        Returns:
            The time until then, s.
        """
        pause = min(self.limits.pause * 2 ** min(study.attempts, 20), LONGEST_PAUSE)
        study.attempts += 1
        study.due = time.monotonic() + pause
        return pause

    def end_delivery(self, study: Study) -> None:
        """Record that all results were sent or refused."""
        with self._lock:
            refusals = {result.refusal: None for result in study.record.results if result.refusal}
            sentence = " ".join([study.record.sentence, *refusals]).strip()
            if sentence:
                self._fail(study, sentence)
                return
            study.record.state = DELIVERED
            study.record.write(study.folder)
            logger.info(f"study {study.key}: {len(study.record.results)} results delivered")

    def remove_old(self) -> None:
        """Remove studies that nothing has to be done for and that have been kept long enough."""
        with self._lock:
            now = time.time()
            for study in list(self._studies.values()):
                is_fresh = study.record.state == WAITING and time.monotonic() - study.received < self.limits.keep
                if study.is_pending or is_fresh or now - study.record.changed < self.limits.keep:
                    continue
                del self._studies[study.key]
                target = self.root / "removing" / uuid.uuid4().hex
                move(study.folder, target)
                if _remove(target):
                    logger.info(f"study {study.key}: removed, as it was {study.record.state} long ago")
                else:
                    logger.warning(f"study {study.key}: {target} holds files of others, which stay")

    def _file(self, key: str, name: str, part: Path, data: bytes, is_image: bool) -> bool:
        """Move a received file to its place."""
        study = self._studies.get(key)
        is_covered = study is not None and study.record.state in COVERED
        if study is not None:
            places = ["new", "images"] if is_covered or not is_image else ["new"]
            if any(_holds(study.folder / place / name, data) for place in places):
                return False
        if is_image and (study is None or not study.is_pending):
            n_pending = sum(other.is_pending for other in self._studies.values())
            if n_pending >= self.limits.pending:
                raise FullError(f"{n_pending} studies are pending")
        if study is None:
            study = Study(key, self.root / "studies" / key, Record())
        elif study.record.state == FAILED and is_image:
            study.record = Record()
            study.record.write(study.folder)
            move(study.folder, self.root / "studies" / key)
            study.folder = self.root / "studies" / key
            logger.info(f"study {key}: received again after its failure")
        place = study.folder / ("new" if is_image else "images")
        make_folder(place)
        move(part, place / name)
        study.received = time.monotonic()
        study.is_new |= is_image
        self._studies[key] = study
        return True

    def _fail(self, study: Study, sentence: str) -> None:
        """Record a failure, and put the study among the failed ones unless new images have to be run."""
        logger.error(f"study {study.key}: {sentence}")
        if study.is_new:
            study.record = Record()
            study.record.write(study.folder)
            return
        study.record = Record(FAILED, study.record.run, sentence=sentence, results=study.record.results)
        study.record.write(study.folder)
        self._set_aside(study)

    def _set_aside(self, study: Study) -> None:
        write_whole(study.folder / "reason.txt", f"{study.record.sentence}\n".encode())
        move(study.folder, self.root / "failed" / study.key)
        study.folder = self.root / "failed" / study.key

    def _load(self, folder: Path) -> None:
        """Take up a study of an earlier process, and end the move in which that may have been killed."""
        study = Study(folder.name, folder, Record.read(folder))
        if study.key in self._studies:
            raise ValueError(f"The study {study.key} is in studies and in failed; move one of them away.")
        study.is_new = any((folder / "new").glob("*.dcm"))
        if study.record.state == FAILED and folder.parent.name == "studies":
            self._set_aside(study)
        elif study.record.state != FAILED and folder.parent.name == "failed":
            study.folder = self.root / "studies" / study.key
            move(folder, study.folder)
        self._studies[study.key] = study
        if study.is_pending:
            logger.info(f"study {study.key}: taken up again, {study.record.state}")


def _holds(path: Path, data: bytes) -> bool:
    """Return whether a file has this content."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _remove(folder: Path) -> bool:
    return remove_known(folder, FILES, trees=["results"])
