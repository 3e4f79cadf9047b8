"""Cases of a folder, and a dataset in which one bad case does not stop the others."""

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
from ..files import has_record
from .dicom import HeaderError, read_header, validate_series
from .images import ImageFileReader, load_itk, needs_itk

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".mha", ".nrrd")
EXPECTED = f"expected images ({', '.join(IMAGE_SUFFIXES)}), a folder for each case, or folders of DICOM series"
UNREADABLE = "the file is damaged or of a kind that is not supported, so check that it opens in a viewer"
MAX_DEPTH = 100  # of nested folders
MAX_NAME_BYTES = 200  # of a case, so that "<case>_overlay.png" is a file name


def find_cases(
    path: str | os.PathLike, pattern: str = "*", exclude: str | os.PathLike | None = None
) -> list[dict[str, Any]]:
    """Find the cases below a folder: every image file, and every folder of DICOM files as one case.

    A case is named after its file, or after its folder if that holds no other image; deeper cases also after the
    folders above. Hidden files and folders and results of this bundle are skipped. A folder is entered once, however
    many links lead to it.

    A pattern may name the folders of a file. They distinguish images from labels, not one case from another: folders
    that the pattern spells out are left out of the names, which always end with the file's. So ``ill/img/7.png`` by
    ``"img/*"`` and ``ill/label/7.png`` by ``"label/*"`` are both the case ``ill_7``.

    Args:
        path: a folder, or a single image file.
        pattern: file names, for example ``"FLAIR*"``, or with their folders ``"img/*"`` or ``"img/*/*"``, from the file
            upwards; for DICOM, names of folders. Each part as in `fnmatch`.
        exclude: a folder to skip with all its content, for example that of the results; unless ``path`` lies in it.

    Returns:
        Dictionaries with ``case``, a valid name for a folder, and ``image``, an absolute path (for DICOM a folder, and
        ``n_files``, its number of slices); or instead of a path ``error``, the reason why it cannot be used.

    Raises:
        InputError: the folder does not exist, has no case, or holds results of this bundle; or the pattern is empty.
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
    all_names = {case["case"] for case in cases}
    names: set[str] = set()
    for case in cases:
        name = case["case"]
        if name in names:
            case["case"] = next(new for n in itertools.count(2) if (new := f"{name}_{n}") not in all_names)
        all_names.add(case["case"])
        names.add(name)
    return cases


def split_cases(
    normals: Sequence[dict[str, Any]],
    validation_dir: str | os.PathLike | None,
    fraction: float,
    seed: int,
    pattern: str = "*",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Hold out normal cases for validation and calibration.

    Args:
        normals: the normal cases.
        validation_dir: folder of held-out normals; all others of ``normals`` are training cases.
        fraction: fraction of ``normals`` that is held out otherwise, in whole cases and at least one.
        seed: seed of the draw.
        pattern: file names in ``validation_dir``, see `find_cases`.

    Returns:
        Training cases, validation cases.

    Raises:
        InputError: too few cases to hold one out, all of them held out, or a fraction out of range.
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
    held_out_indices = set(order[:n_held_out])
    return (
        [case for index, case in enumerate(normals) if index not in held_out_indices],
        [normals[index] for index in sorted(held_out_indices)],
    )


def _without(normals: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the cases that share a file with a held-out case, links resolved."""
    held_out_files = {file for case in held_out for file in _files(case)}
    kept = [case for case in normals if held_out_files.isdisjoint(_files(case))]
    left_out = len(normals) - len(kept)
    if not kept:
        raise InputError(
            f"All {left_out} cases of dataset_dir lie in validation_dir, too, so that none is left to fit on; give "
            "other normal images in one of them."
        )
    if left_out:
        logger.info(f"{left_out} of {len(normals)} cases of dataset_dir are in validation_dir: not fitted on")
    return kept


def _files(case: dict[str, Any]) -> set[Path]:
    """List the files of a case, for DICOM those of its folder, links resolved."""
    if "image" not in case:
        return set()
    path = Path(case["image"]).resolve()
    return {file.resolve() for file in path.iterdir() if file.is_file()} if path.is_dir() else {path}


class CaseDataset(Dataset):
    """Dataset of cases that returns errors instead of raising them.

    Items are transformed cases, or ``{"case": name, "error": sentence}``.

    Args:
        data: cases of `find_cases`.
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
    """`CaseDataset` of normal cases only.

    A case with a ``label``, as in MONAI Label, is normal if the label is empty.

    Args:
        data: cases; those without a name are named after their file.
        transform: preprocessing.

    Raises:
        InputError: none of them is normal.
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
    """Describe the error of a case in one sentence.

    Args:
        error: the exception.
        action: participle of the action that failed, for example ``read``.
        advice: advice to the user, unless the error has its own.

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
    """Report at the end the cases that failed.

    Args:
        failed: failed cases, with a sentence for each.
        n_cases: number of all cases.
        others: result of the others.

    Raises:
        InputError: one or more cases failed.
    """
    if failed:
        listed = "".join(f"\n  {case}: {reason}" for case, reason in failed)
        raise InputError(f"{len(failed)} of {n_cases} cases failed ({others}):{listed}")


def _walk(root: Path, excluded: Path | None) -> Iterator[Path]:
    """Yield every real folder once, linked folders last."""
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
            if len(folder.relative_to(root).parts) > MAX_DEPTH:
                continue
            try:
                inner = [entry for entry in _entries(folder) if entry.is_dir()]
            except OSError:  # `_cases_in` reports it
                continue
            pending.extend(entry for entry in inner if entry.is_symlink())
            stack.extend(reversed([entry for entry in inner if not entry.is_symlink()]))


def _cases_in(folder: Path, root: Path, pattern: str, excluded: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the cases of one folder, without its subfolders."""
    folder_name = (folder.resolve() if folder == root else folder).name
    name = "_".join([*_folders(folder, root, pattern), folder_name])
    if len(folder.relative_to(root).parts) > MAX_DEPTH:
        yield {"case": _name(name), "error": f"it lies more than {MAX_DEPTH} folders deep; move it up"}
        return
    try:
        files = [entry for entry in _entries(folder) if entry.is_file()]
        if excluded:
            files = [file for file in files if not file.is_symlink() or not _is_in(file.resolve(), excluded)]
    except OSError as error:
        yield {"case": _name(name), "error": f"the folder cannot be read ({error.strerror}); check its permissions"}
        return
    images = [file for file in files if _suffix(file) and file.match(pattern)]
    headers, series_error = [], ""
    for file in files:
        try:
            if not _suffix(file) and (header := read_header(file)):
                headers.append(header)
        except HeaderError as error:
            series_error = series_error or str(error)
    is_series = bool(headers or series_error)
    for image in images:
        parents = "_".join(_folders(image, root, pattern))
        is_single = parents and len(images) == 1 and not is_series and "/" not in pattern
        yield _case(parents if is_single else "_".join(filter(None, [parents, _stem(image)])), image, root)
    if is_series and folder.match(pattern):
        if series_error := series_error or validate_series(headers):
            yield {"case": _name(name), "error": series_error}
        else:
            yield {**_case(name, folder, root), "n_files": len(headers)}


def _case(name: str, path: Path, root: Path) -> dict[str, Any]:
    try:
        str(path.relative_to(root)).encode()
    except UnicodeEncodeError:
        return {"case": _name(name), "error": "its path is not UTF-8; rename the file or folder"}
    return {"case": _name(name), "image": str(path)}


def _name(name: str) -> str:
    """Make a name that is valid for a file and in a message."""
    text = printable(name)
    if len(text.encode()) <= MAX_NAME_BYTES:
        return text
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{text.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{digest}"


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
    """List the folders between a root and a path below it, without those that a pattern spells out."""
    pairs = itertools.zip_longest(reversed(path.relative_to(root).parts[:-1]), reversed(PurePath(pattern).parts[:-1]))
    return [folder for folder, in_pattern in pairs if folder and folder != in_pattern][::-1]


def _suffix(path: Path) -> str:
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(_suffix(path))]
