"""Cases: what a folder holds, and a dataset in which one bad case does not stop the others."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from monai.data import Dataset
from monai.transforms import LoadImage

from ..errors import InputError, cause_of, printable
from ..recorded_directory import has_record
from .dicom import HeaderError, read_header, validate_series
from .images import ImageFileReader, load_itk, needs_itk

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".mha", ".nrrd")
EXPECTED = f"expected images ({', '.join(IMAGE_SUFFIXES)}), a folder for each case, or folders of DICOM series"
UNREADABLE = "the file is damaged or of a kind that is not supported, so check that it opens in a viewer"
DEEPEST = 100  # folders within one another
LONGEST = 200  # bytes of a case's name, so that "<case>_overlay.png" is a file name


def find_cases(
    path: str | os.PathLike, pattern: str = "*", exclude: str | os.PathLike | None = None
) -> list[dict[str, Any]]:
    """The cases below a folder: every image file, and every folder of DICOM files as one case.

    A case is named after its file; after its folder where that holds no other image; with the folders above it where it
    lies deeper. Hidden files and folders are passed over, and results of this bundle. A folder is entered once, however
    many links lead to it.

    A pattern with folders says in which ones a file must lie. They tell images from labels, not one case from another:
    folders that the pattern spells out are left out of the names, which always end with the file's. So
    ``ill/img/7.png`` by ``"img/*"`` and ``ill/label/7.png`` by ``"label/*"`` are both the case ``ill_7``.

    Args:
        path: a folder, or a single image file.
        pattern: which file names to take, such as ``"FLAIR*"``, or with the folders they lie in, such as ``"img/*"`` or
            ``"img/*/*"``, from the file upwards; for DICOM, which folders. Each part as in `fnmatch`.
        exclude: a folder to pass over with all that is in it, such as that of the results; unless ``path`` itself lies
            in it.

    Returns:
        Dictionaries with ``case``, a name that serves as a folder's, and ``image``, an absolute path (for DICOM a
        folder, and ``n_files``, how many slices it holds); or instead of a path ``error``, why it cannot be used.

    Raises:
        InputError: there is no such folder, no case in it, or an empty pattern; or it holds results of this bundle.
    """
    root = Path(path).absolute()
    if not PurePath(pattern).parts:
        raise InputError("A file pattern must not be empty; give '*' for all files.")
    if not str(path) or not root.exists():
        raise InputError(f"The folder {str(path)!r} does not exist; {EXPECTED}.")
    if root.is_file():
        return [_case(_stem(root), root, root.parent)]
    if has_record(root):
        raise InputError(f"The folder {str(path)!r} holds results of this program; {EXPECTED} to score or fit on.")
    excluded = Path(exclude).resolve() if exclude else None
    if excluded and _is_in(root.resolve(), excluded):
        excluded = None
    cases = [case for folder in _walk(root, excluded) for case in _cases_in(folder, root, pattern, excluded)]
    if not cases:
        raise InputError(f"There are no cases in {str(path)!r} (file names {pattern!r}); {EXPECTED}.")
    taken = {case["case"] for case in cases}
    seen: set[str] = set()
    for case in cases:
        name = case["case"]
        if name in seen:
            case["case"] = next(new for n in itertools.count(2) if (new := f"{name}_{n}") not in taken)
        taken.add(case["case"])
        seen.add(name)
    return cases


def split_cases(
    normals: Sequence[dict[str, Any]],
    validation_dir: str | os.PathLike | None,
    fraction: float,
    seed: int,
    pattern: str = "*",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Set normal cases apart for validation and calibration.

    Args:
        normals: the normal cases.
        validation_dir: folder of held-out normals; where given, all others of ``normals`` are for fitting.
        fraction: share of ``normals`` held out otherwise, in whole cases and at least one.
        seed: of the draw.
        pattern: see `find_cases`.

    Returns:
        Cases to fit on, cases to validate on.

    Raises:
        InputError: too few cases to set one apart, all of them held out, or a fraction out of range.
    """
    if validation_dir:
        held_out = find_cases(validation_dir, pattern)
        return _without(normals, held_out), held_out
    if not 0 < fraction < 1:
        raise InputError(f"validation_fraction must lie between 0 and 1; got {fraction}.")
    if len(normals) < 2:
        raise InputError(
            "Calibration needs held-out normals: give at least two normal cases, or validation_dir; got one."
        )
    n_held_out = min(max(1, round(fraction * len(normals))), len(normals) - 1)
    order = torch.randperm(len(normals), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(order[:n_held_out])
    return (
        [case for index, case in enumerate(normals) if index not in chosen],
        [normals[index] for index in sorted(chosen)],
    )


def _without(normals: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the cases whose files, by whatever links, are among those of held-out cases."""
    places = {place for case in held_out for place in _places(case)}
    kept = [case for case in normals if places.isdisjoint(_places(case))]
    left_out = len(normals) - len(kept)
    if not kept:
        raise InputError(
            f"All {left_out} cases of dataset_dir lie in validation_dir, too, so that none is left to fit on; give "
            "other normal images in one of them."
        )
    if left_out:
        logger.info(f"{left_out} of {len(normals)} cases of dataset_dir are in validation_dir: not fitted on")
    return kept


def _places(case: dict[str, Any]) -> set[Path]:
    """The files of a case, for a folder of DICOM those in it, without links."""
    if "image" not in case:
        return set()
    path = Path(case["image"]).resolve()
    return {file.resolve() for file in path.iterdir() if file.is_file()} if path.is_dir() else {path}


class CaseDataset(Dataset):
    """A dataset of cases that yields what went wrong instead of raising it.

    Items are what the transform makes of a case, or ``{"case": name, "error": sentence}``.

    Args:
        data: cases as from `find_cases`.
        transform: preprocessing.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Any = None) -> None:
        super().__init__(data, transform)
        if any(needs_itk(case["image"]) for case in data if isinstance(case.get("image"), str)):
            load_itk()  # before there are threads

    def _transform(self, index: int) -> Any:
        case = self.data[index]
        if "error" in case:
            return case
        try:
            return super()._transform(index)
        except Exception as error:
            return {
                "case": case.get("case", str(index)),
                "error": sentence(error, "read", UNREADABLE),
            }


class NormalDataset(CaseDataset):
    """A `CaseDataset` of normal cases only.

    A case with a ``label``, as MONAI Label gives them, is normal where the label is empty.

    Args:
        data: cases; those without a name are named after their file.
        transform: preprocessing.

    Raises:
        InputError: not one of them is normal.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Any = None) -> None:
        normals = [
            case for case in data if "label" not in case or not LoadImage()(case["label"], ImageFileReader()).any()
        ]
        if not normals:
            raise InputError(
                f"None of {len(data)} cases is normal; a fit needs two normals at least, one of them held out. In "
                "MONAI Label those labelled images are normal whose label is empty, and val_split must be above 0."
            )
        super().__init__([{"case": _stem(Path(case.get("image", "")))} | case for case in normals], transform)


def sentence(error: BaseException, action: str, advice: str) -> str:
    """What went wrong with a case, in one sentence.

    Args:
        error: what was raised.
        action: what could not be done.
        advice: what to do, where the error does not say it itself.

    Returns:
        The sentence.
    """
    cause = cause_of(error)
    if isinstance(cause, InputError):
        return str(cause)
    logger.debug(f"it could not be {action}", exc_info=error)
    match cause:
        case MemoryError():
            reason = " for lack of memory"
        case OSError(strerror=str(strerror)):
            reason = f" ({strerror})"
        case _:
            reason = ""
    return f"it could not be {action}{reason}; {advice}"


def raise_failed(failed: Collection[tuple[str, str]], n_cases: int, others: str) -> None:
    """Say at the end which cases failed.

    Args:
        failed: cases and a sentence for each.
        n_cases: how many cases there were.
        others: what became of the others.

    Raises:
        InputError: one or more failed.
    """
    if failed:
        listed = "".join(f"\n  {case}: {why}" for case, why in failed)
        raise InputError(f"{len(failed)} of {n_cases} cases failed ({others}):{listed}")


def _walk(root: Path, excluded: Path | None) -> Iterator[Path]:
    """Yield every real folder once, those behind links last."""
    entered: set[Path] = set()
    pending = deque([root])
    while pending:
        start = pending.popleft()
        stack = [start]
        while stack:
            folder = stack.pop()
            real = folder.resolve()
            if real in entered or (excluded and _is_in(real, excluded)) or (folder != root and _is_result(folder)):
                continue
            entered.add(real)
            yield folder
            if len(folder.relative_to(root).parts) > DEEPEST:
                continue
            try:
                inner = [entry for entry in _entries(folder) if entry.is_dir()]
            except OSError:  # `_cases_in` says it
                continue
            pending.extend(entry for entry in inner if entry.is_symlink())
            stack.extend(reversed([entry for entry in inner if not entry.is_symlink()]))


def _cases_in(folder: Path, root: Path, pattern: str, excluded: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the cases of one folder, without those of the folders in it."""
    own_name = (folder.resolve() if folder == root else folder).name
    name = "_".join([*_folders(folder, root, pattern), own_name])
    if len(folder.relative_to(root).parts) > DEEPEST:
        yield {"case": _name(name), "error": f"it lies more than {DEEPEST} folders deep; move it up"}
        return
    try:
        files = [entry for entry in _entries(folder) if entry.is_file()]
        if excluded:
            files = [file for file in files if not file.is_symlink() or not _is_in(file.resolve(), excluded)]
    except OSError as error:
        yield {"case": _name(name), "error": f"the folder cannot be read ({error.strerror}); check its permissions"}
        return
    images = [file for file in files if _suffix(file) and file.match(pattern)]
    headers, wrong = [], ""
    for file in files:
        try:
            if not _suffix(file) and (header := read_header(file)):
                headers.append(header)
        except HeaderError as error:
            wrong = wrong or str(error)
    is_series = bool(headers or wrong)
    for image in images:
        above = "_".join(_folders(image, root, pattern))
        alone = above and len(images) == 1 and not is_series and "/" not in pattern
        yield _case(above if alone else "_".join(filter(None, [above, _stem(image)])), image, root)
    if is_series and folder.match(pattern):
        wrong = wrong or validate_series(headers)
        yield {"case": _name(name), "error": wrong} if wrong else {**_case(name, folder, root), "n_files": len(headers)}


def _case(name: str, path: Path, root: Path) -> dict[str, Any]:
    try:
        str(path.relative_to(root)).encode()
    except UnicodeEncodeError:
        return {"case": _name(name), "error": "its path is not UTF-8; rename the file or folder"}
    return {"case": _name(name), "image": str(path)}


def _name(name: str) -> str:
    """Make a name that serves as a file's and in a message."""
    text = printable(name)
    if len(text.encode()) <= LONGEST:
        return text
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{text.encode()[: LONGEST - 9].decode(errors='ignore')}_{digest}"


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_result(folder: Path) -> bool:
    try:
        return has_record(folder)
    except OSError:
        return False


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _folders(path: Path, root: Path, pattern: str) -> list[str]:
    """The folders between a root and a path below it, without those that a pattern for the path spells out."""
    pairs = itertools.zip_longest(reversed(path.relative_to(root).parts[:-1]), reversed(PurePath(pattern).parts[:-1]))
    return [folder for folder, in_pattern in pairs if folder and folder != in_pattern][::-1]


def _suffix(path: Path) -> str:
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(_suffix(path))]
