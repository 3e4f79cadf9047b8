"""Dataset of the cases that an earlier run has not finished."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data import Dataset

from ..digests import object_digest
from ..files import changed_files, file_sha256
from ..models.provenance import versions
from .results_directory import ResultsDirectory

logger = logging.getLogger(__name__)


class RemainingCases:
    """A dataset that skips cases with results of the same input, model and settings.

    Items are those of the dataset with ``key``, a digest of everything that the results of the case depend on; the key
    goes into their record. The item of a finished case has only ``case`` and ``entry``, its entry of the summary. If a
    setting cannot be hashed, a lambda among the transforms for example, no case is skipped.

    Args:
        dataset: dataset of the cases, for example a `CaseDataset`.
        results: directory of the results.
        network: the network that scores the cases.
        ckpt_path: the file with everything fitted.
        settings: settings of the run and every object that changes results: transforms, inferer. Hashed at
            construction, before transforms acquire run-time state.
        overwrite: whether to skip no case.
        report: whether there is a report, which shows parts that an earlier run has drawn.
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
            self._key = object_digest(parts)
        if self._key is None:
            logger.info("The settings of this run cannot be compared with those of another, so all cases are scored.")

    def __len__(self) -> int:
        """Count the cases, finished ones included."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a remaining case, or return the name and the entry of a finished one."""
        record = self.dataset.data[index]
        if "image" not in record:
            return self.dataset[index]
        case, key = record["case"], self._key_of(record)
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
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
            contents = [[ascii(file.name), file_sha256(file)] for file in files]
        except OSError:  # reading the case reports it
            return None
        text = json.dumps([self._key, ascii(case["case"]), contents])
        return hashlib.sha256(text.encode()).hexdigest()


def _structure(network: Any) -> Any:
    """Describe a network, except for the content of its file."""
    if hasattr(network, "named_modules"):
        parts = [[name, type(module)] for name, module in network.named_modules()]
        thresholds = {
            name: value.tolist() for name, value in network.named_buffers() if name.startswith("calibration.")
        }
        return [parts, thresholds]  # int8 has its own thresholds
    is_ours = type(network).__module__.partition(".")[0] == __name__.partition(".")[0]
    return type(network) if is_ours else network
