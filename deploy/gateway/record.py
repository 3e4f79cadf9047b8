"""The record of a study on disk."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from gateway.files import write_json

NAME = "record.json"
FORMAT = 1
WAITING, RUNNING, SENDING, DELIVERED, FAILED = "waiting", "running", "sending", "delivered", "failed"
STATES = (WAITING, RUNNING, SENDING, DELIVERED, FAILED)


@dataclass
class Result:
    """A result of the app.

    Attributes:
        path: its file, below the folder of the study.
        sop_class: SOP class UID.
        sop_instance: SOP instance UID.
        sent: whether the PACS has confirmed that it stores the result.
        refusal: the words for a refusal by the PACS; empty if there was none.
    """

    path: str
    sop_class: str
    sop_instance: str
    sent: bool = False
    refusal: str = ""


@dataclass
class Record:
    """What has happened to a study.

    Attributes:
        state: one of `STATES`.
        run: name of the folder of the last run in ``results``; empty before the first.
        interruptions: how often the last run was begun and not ended, because the gateway was killed.
        sentence: why the last run or delivery failed; empty if it did not.
        results: results of the last run.
        changed: time of the last change, s since 1970.
    """

    state: str = WAITING
    run: str = ""
    interruptions: int = 0
    sentence: str = ""
    results: list[Result] = field(default_factory=list)
    changed: float = field(default_factory=time.time)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of a study; a study without one has not been run.

        Args:
            folder: folder of the study.

        Returns:
            The record.

        Raises:
            ValueError: the record is damaged or of another version.
        """
        path = folder / NAME
        if not path.exists():
            return cls(changed=folder.stat().st_mtime)
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT or content["state"] not in STATES:
                raise ValueError("another version")
            content["results"] = [Result(**result) for result in content["results"]]
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The record {path} is damaged or of another version; move the folder of that study away, and send the "
                "study again."
            ) from error

    def write(self, folder: Path) -> None:
        """Write the record into the folder of the study.

        Raises:
            OSError: it cannot be written; the record before is left as it was.
        """
        self.changed = time.time()
        write_json(folder / NAME, {"format": FORMAT, **dataclasses.asdict(self)})
