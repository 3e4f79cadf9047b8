"""Directory of the results of an inference run: one directory per case, and files about all cases."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import ignite.distributed as idist

from ..distributed import gather, share_of
from ..errors import InputError
from ..files import RecordedDirectory, has_record, is_intact, read_record

logger = logging.getLogger(__name__)

ABOUT_ALL = ("report.html", "metrics.json", "metrics.csv", "metrics_per_case.csv")  # belong to one summary.json
OF_FITS = ("fit_report.json", "fit_report.png", "calibration_report.json", "last_epoch.pt", "embeddings", "tensorboard")
TAKEN = {"summary.json", *ABOUT_ALL, *OF_FITS}  # by default a fit has the same output_dir
LONGEST_NAME = 200  # bytes of the name of a case's directory, to which suffixes are added


class ResultsDirectory(RecordedDirectory):
    """A `RecordedDirectory` of results, checked at construction.

    Args:
        path: the directory; created when the run begins.
        cases: all cases, see `find_cases`.
        share: the share of them that this run writes, see `share_of`; other runs may write others meanwhile. None for
            all, and the files about all cases.

    Raises:
        InputError: the directory cannot be used (see `RecordedDirectory.check`), another run writes into it, or
            a file or directory of somebody else has the name of a case's results.
    """

    def __init__(
        self, path: str | os.PathLike, cases: Sequence[Mapping[str, Any]] = (), share: str | None = None
    ) -> None:
        super().__init__(path)
        self.share = share
        self._names = directory_names(case["case"] for case in cases)
        self._positions = {case: position for position, case in enumerate(self._names)}
        self.check()
        with self._readable():
            for name in share_of([*self._names.values()], share):
                self.check_replaceable_directory(name)
        if has_record(self.path) and idist.get_rank() == 0:
            with self._locked():  # refuse before the model is loaded if another run writes here
                pass
        for case, name in self._names.items():
            if case != name:
                logger.warning(
                    f"The results of the case {case} go to {name}, for its own name cannot be a directory's."
                )

    def name_of(self, case: str) -> str:
        """Return the name of a case's directory, which is the prefix of its files, too.

        Args:
            case: name of the case.
        """
        return self._names.get(case) or directory_names([case])[case]

    def position_of(self, case: str) -> int:
        """Return the place of a case among all cases, in which files about all cases list them."""
        return self._positions.get(case, len(self._positions))

    def find(self, case: str, key: str) -> dict[str, Any] | None:
        """Return the record of an earlier run about a case.

        Args:
            case: name of the case.
            key: digest of everything that its results depend on, see `scripts.inference.remaining`.

        Returns:
            ``key``, ``entry`` (of the summary) and the rest of the record; None unless there are results with this key
            and none of them was changed.
        """
        directory = self.path / self.name_of(case)
        if not has_record(directory):
            return None
        try:
            about = read_record(directory)["about"]
        except InputError:
            return None
        return about if about.get("key") == key and "entry" in about and is_intact(directory) else None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open and lock the directory for a run, and remove an earlier run's files about all cases.

        With several processes the first one does this and the others wait.

        Raises:
            InputError: see `RecordedDirectory.open`.
        """
        with ExitStack() as held:
            problem = None
            if idist.get_rank() == 0:
                try:
                    if self.share is None:
                        self.open()
                    held.enter_context(self._locked())
                    with self._writable():
                        for name in ABOUT_ALL:
                            self.remove(name)
                except InputError as error:
                    problem = str(error)
            problem = gather([problem])[0]
            if problem:
                raise InputError(problem)
            yield

    def _locked(self) -> AbstractContextManager[None]:
        """Lock the directory, or the share of this run in it."""
        return self.lock() if self.share is None else self.open_part(self.share.replace("/", "_of_"))


def directory_names(cases: Iterable[str]) -> dict[str, str]:
    """Choose a name for the directory of each case: the case's own name, if it is valid and not taken.

    Args:
        cases: names of the cases.

    Returns:
        Directory names by case; distinct on case-insensitive file systems, too.
    """
    taken = set(TAKEN)
    names: dict[str, str] = {}
    for case in cases:
        plain = re.sub(r"[/\\\0]", "_", case)
        if not plain or plain.startswith("."):
            plain = f"case_{plain}"
        if len(encoded := os.fsencode(plain)) > LONGEST_NAME:
            digest = hashlib.sha256(encoded).hexdigest()[:16]
            plain = f"{encoded[: LONGEST_NAME - 32].decode(errors='ignore')}_{digest}"
        numbered = itertools.chain([plain], (f"{plain}_{number}" for number in itertools.count(2)))
        names[case] = next(name for name in numbered if _folded(name) not in taken)
        taken.add(_folded(names[case]))
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
