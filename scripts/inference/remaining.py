"""The cases that an earlier run has not finished."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data import Dataset

from ..files import file_sha256
from ..identity import digest_of
from ..models.provenance import versions
from ..recorded_directory import changed_files
from .results_directory import ResultsDirectory

logger = logging.getLogger(__name__)


class RemainingCases:
    """A dataset that does not read cases whose results are there: of the same input, by the same model and settings.

    Items are those of the dataset with ``key``, a digest of all that the results of the case depend on, which goes into
    their record; of a finished case only ``case`` and ``entry``, that of the summary. What cannot be described, such as
    a lambda among the transforms, makes all cases remain.

    Args:
        dataset: gives the cases, such as `CaseDataset`.
        results: where the results are.
        network: scores the cases.
        ckpt_path: the file with everything fitted.
        settings: of the run, and all that changes results: transforms, inferer. They are described now, before
            their use leaves traces in them.
        overwrite: whether all cases remain.
        report: whether there is to be a report, which shows parts that an earlier run has drawn.
    """

    def __init__(
        self,
        dataset: Dataset,
        results: ResultsDirectory,
        network: Any,
        ckpt_path: str | os.PathLike,
        settings: Any,
        overwrite: bool = False,
        report: bool = True,
    ) -> None:
        self.dataset = dataset
        self.results = results
        self.overwrite = overwrite
        self._key: str | None = None
        if Path(ckpt_path).is_file():
            parts = [settings, _structure(network), file_sha256(ckpt_path), versions(), bool(report)]
            self._key = digest_of(parts)
        if self._key is None:
            logger.info("The settings of this run cannot be compared with those of another, so all cases are scored.")

    def __len__(self) -> int:
        """Count the cases, finished ones included."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a case that remains; name one that does not."""
        given = self.dataset.data[index]
        if "image" not in given:
            return self.dataset[index]
        case, key = given["case"], self._key_of(given)
        if key and not self.overwrite and (about := self.results.find(case, key)):
            return {"case": case, "entry": about["entry"]}
        directory = self.results.name_of(case)
        if changed := changed_files(self.results.path / directory):
            why = f"{directory}/{changed[0]} was changed since it was written; rename it to keep it, and run again"
            return {"case": case, "error": why}
        return {**self.dataset[index], "key": key}

    def _key_of(self, case: Mapping[str, Any]) -> str | None:
        if self._key is None:
            return None
        path = Path(case["image"])
        try:
            files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
            contents = [[ascii(file.name), file_sha256(file)] for file in files]
        except OSError:  # reading it says why
            return None
        text = json.dumps([self._key, ascii(case["case"]), contents])
        return hashlib.sha256(text.encode()).hexdigest()


def _structure(network: Any) -> Any:
    """Describe what scores, but for what is in its file."""
    if hasattr(network, "named_modules"):
        parts = [[name, type(module)] for name, module in network.named_modules()]
        limits = {name: value.tolist() for name, value in network.named_buffers() if name.startswith("calibration.")}
        return [parts, limits]  # int8 has limits of its own
    is_ours = type(network).__module__.partition(".")[0] == __name__.partition(".")[0]
    return type(network) if is_ours else network
