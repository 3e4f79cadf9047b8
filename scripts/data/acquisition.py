"""Acquisition of DICOM series: what a model was fitted on, and whether another series contradicts it.

No attribute of a patient is kept. Technologists type names into descriptions, so of these only the ones that occur for
at least two patients are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from ..errors import printable

MIN_PATIENTS = 2  # with a description that is kept
TOLERANCE = 2.0  # times in ms beyond the fitted range by this factor are of another contrast
TIMES = ("EchoTime", "RepetitionTime", "InversionTime")
IN_GROUPS = {  # where enhanced multi-frame images have them
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
}
CONTRAST_KEYWORDS = ("ContrastBolusAgent", "ContrastBolusAgentSequence")


@dataclass(frozen=True)
class Acquisition:
    """What a header says about the contrast of a series.

    Attributes:
        modality: such as MR; empty if missing.
        description: see `normalized_description`.
        times: EchoTime, RepetitionTime and InversionTime in ms, those that are there and positive.
        has_agent: whether a contrast agent was given.
    """

    modality: str
    description: str
    times: Mapping[str, float]
    has_agent: bool

    @classmethod
    def of(cls, header: pydicom.Dataset) -> Acquisition:
        """Read the header of a slice, or of a multi-frame image."""
        times = {name: time for name in TIMES if (time := _time(header, name)) is not None}
        return cls(
            str(header.get("Modality", "")),
            normalized_description(header),
            times,
            any(header.get(keyword) for keyword in CONTRAST_KEYWORDS),
        )

    def contradictions(self, fitted: Mapping[str, Any]) -> list[str]:
        """Explain what speaks against scoring this series.

        Args:
            fitted: see `fitted_acquisition`.

        Returns:
            Phrases without text from the header; empty if nothing does. What a header lacks contradicts nothing, except
            an inversion time that all fitted series have.
        """
        phrases = []
        if self.modality not in fitted["modalities"]:
            phrases.append(f"its modality is not {' or '.join(fitted['modalities'])}")
        for name, (low, high) in fitted["times"].items():
            time = self.times.get(name)
            if time is not None and not low / TOLERANCE <= time <= high * TOLERANCE:
                phrases.append(f"{name} {time:g} ms, fitted on {low:g} to {high:g}")
        has_inversion = "InversionTime" in self.times
        if fitted["inversion"] not in (None, has_inversion):
            phrases.append(f"{'an' if has_inversion else 'no'} inversion time, unlike those fitted on")
        if fitted["agent"] not in (None, self.has_agent):
            phrases.append(f"{'a' if self.has_agent else 'no'} contrast agent, unlike those fitted on")
        return phrases


def normalized_description(header: pydicom.Dataset) -> str:
    """Return the SeriesDescription in lower case, printable, with single spaces."""
    return printable(" ".join(str(header.get("SeriesDescription", "")).split())).casefold()


def read_acquisitions(folders: Iterable[str | Path]) -> list[tuple[Acquisition, str]] | None:
    """Read the acquisition, and the identity of the patient, of the first slice in each folder.

    Args:
        folders: images of cases; a DICOM series is a folder.

    Returns:
        For each its acquisition, and text that differs between patients; None if one of them is not a DICOM series.
    """
    tags = ["PatientID", "PatientName", "Modality", "SeriesDescription", "SeriesInstanceUID", *TIMES]
    tags += [*CONTRAST_KEYWORDS, "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    found = []
    for folder in map(Path, folders):
        header = next(_headers(folder, tags), None) if folder.is_dir() else None
        if header is None:
            return None
        found.append((Acquisition.of(header), f"{header.get('PatientID')} {header.get('PatientName')}"))
    return found


def fitted_acquisition(series: Sequence[tuple[Acquisition, str]]) -> dict[str, Any]:
    """Summarise the series that a model is fitted on.

    Args:
        series: see `read_acquisitions`; at least one.

    Returns:
        ``modalities`` and ``descriptions``, sorted; ``times``, the range in ms of each time that all series have;
        ``inversion`` and ``agent``, whether they have an inversion time or a contrast agent, None where some have it.
    """
    acquisitions = [acquisition for acquisition, _ in series]
    patients: dict[str, set[str]] = {}
    for acquisition, patient in series:
        patients.setdefault(acquisition.description, set()).add(patient)
    times = {name: [a.times[name] for a in acquisitions if name in a.times] for name in TIMES}
    return {
        "modalities": sorted({acquisition.modality for acquisition in acquisitions}),
        "descriptions": sorted(text for text, ids in patients.items() if text and len(ids) >= MIN_PATIENTS),
        "times": {name: [min(t), max(t)] for name, t in times.items() if len(t) == len(acquisitions)},
        "inversion": _same([bool(a.times.get("InversionTime")) for a in acquisitions]),
        "agent": _same([acquisition.has_agent for acquisition in acquisitions]),
    }


def is_fitted_acquisition(value: Any) -> bool:
    """Return whether a value, such as a part of a file, is a result of `fitted_acquisition`."""
    return (
        isinstance(value, dict)
        and set(value) == {"modalities", "descriptions", "times", "inversion", "agent"}
        and all(_is_texts(value[name]) for name in ("modalities", "descriptions"))
        and isinstance(value["times"], dict)
        and set(value["times"]) <= set(TIMES)
        and all(_is_range(limits) for limits in value["times"].values())
        and all(value[name] is None or isinstance(value[name], bool) for name in ("inversion", "agent"))
    )


def _time(header: pydicom.Dataset, name: str) -> float | None:
    """Read a time in ms; None if it is missing, unreadable or not positive."""
    sequence, keyword = IN_GROUPS[name]
    try:
        frames = header.get("PerFrameFunctionalGroupsSequence") or []
        groups = [*frames[:1], *(header.get("SharedFunctionalGroupsSequence") or [])]
        values = [header.get(name), *(item.get(keyword) for group in groups for item in group.get(sequence) or [])]
        value = next(value for value in values if value not in (None, ""))
        time = float(value if isinstance(value, str | int | float) else value[0])
    except (StopIteration, TypeError, ValueError, OverflowError, LookupError, AttributeError):
        return None
    return time if 0 < time < math.inf else None


def _headers(folder: Path, tags: Sequence[str]) -> Iterator[pydicom.Dataset]:
    """Yield the headers of the DICOM images in a folder."""
    for path in sorted(folder.iterdir()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
        except Exception:  # not DICOM, or damaged in almost any way
            continue
        if header.get("SeriesInstanceUID"):
            yield header


def _same(values: Sequence[bool]) -> bool | None:
    return values[0] if len(set(values)) == 1 else None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(limit, float) and math.isfinite(limit) for limit in value)
    )
