"""Selection of the series that are scored."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, MRImageStorage
from study import Header, whole_number

from scripts.data.acquisition import Acquisition, normalized_description
from scripts.errors import InputError

logger = logging.getLogger("anomaly_app")

TAKEN = (MRImageStorage, CTImageStorage, EnhancedMRImageStorage, EnhancedCTImageStorage)
ALL = "all"


def choose_series(headers: Sequence[Header], selection: str, fitted: Mapping[str, Any] | None) -> list[list[Header]]:
    """Choose MR or CT volumes without localizers, and log the choice.

    Of several series that do not contradict the fit, those with a description of the fit are preferred.

    Args:
        headers: headers of a study.
        selection: shell-style pattern for the SeriesDescription, ignoring case; empty for any; ``all`` for each series
            that could be taken.
        fitted: see `scripts.data.acquisition.fitted_acquisition`; None if the model does not know.

    Returns:
        Headers of the series, by their number; one series, unless ``all`` is selected.

    Raises:
        InputError: no series can be taken, or more than one.
    """
    is_for_all = selection.casefold() == ALL
    by_uid: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        by_uid[header.SeriesInstanceUID].append(header)
    series = sorted(by_uid.values(), key=lambda s: (whole_number(s[0], "SeriesNumber", 0), s[0].SeriesInstanceUID))
    images = [slices for slices in series if slices[0].SOPClassUID in TAKEN]
    views = [slices for slices in images if not any(map(is_localizer, slices))]
    volumes = [slices for slices in views if is_volume(slices)] or views
    described = volumes if is_for_all else [slices for slices in volumes if matches(slices[0], selection)]
    against = [Acquisition.of(slices[0]).contradictions(fitted) if fitted else [] for slices in described]
    candidates = [slices for slices, phrases in zip(described, against, strict=True) if not phrases]
    if not candidates:
        kinds = Counter(str(slices[0].get("Modality") or "no modality") for slices in series)
        reasons = "".join(
            f"; {name_of(slices)}: {', '.join(phrases)}" for slices, phrases in zip(described, against, strict=True)
        )
        raise InputError(
            f"None of the {len(series)} series can be taken ({len(images)} are MR or CT, {len(views)} of them no "
            f"localizer, {len(described)} of them described as {selection!r}, 0 of them like those that the model was "
            f"fitted on{reasons}; modalities: {dict(kinds)}); expected an MR or CT volume of the model's contrast, "
            "so give such a study, or fit a model on this one's."
        )
    known = [slices for slices in candidates if fitted and normalized_description(slices[0]) in fitted["descriptions"]]
    chosen = candidates if is_for_all else known or candidates
    if len(chosen) > 1 and not is_for_all:
        raise InputError(
            f"{len(chosen)} series could be taken ({', '.join(map(name_of, chosen))}); expected one, so choose with "
            "--series and a pattern for its description, or have each of them scored with --series all."
        )
    for slices in chosen:
        logger.info(
            f"{name_of(slices)} with {len(slices)} files is taken, out of {len(candidates)} that could be and "
            f"{len(series)} in the input"
        )
    return chosen


def name_of(slices: Sequence[Header]) -> str:
    """Name a series by number and UID; its description may name the patient."""
    return f"series {whole_number(slices[0], 'SeriesNumber', 0)} ({slices[0].SeriesInstanceUID})"


def matches(header: Header, pattern: str) -> bool:
    """Return whether the SeriesDescription matches a shell-style pattern, ignoring case; an empty one matches all."""
    return not pattern or fnmatchcase(normalized_description(header), pattern.casefold())


def is_localizer(header: Header) -> bool:
    """Return whether the ImageType of a slice is that of a localizer."""
    return "LOCALIZER" in str(header.get("ImageType", "")).upper()


def is_volume(slices: Sequence[Header]) -> bool:
    """Return whether a series has several slices or frames."""
    return len(slices) > 1 or whole_number(slices[0], "NumberOfFrames", 1) > 1
