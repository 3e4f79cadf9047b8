"""What MONAI Label's server reads: an app with bundles in it, and a folder of studies."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import LoadImage

from scripts import dicom_series
from scripts.cases import find_cases
from scripts.errors import InputError

SERVER = (Path(__file__).with_name("server.py"), Path(dicom_series.__file__))
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg")  # of the images that MONAI Label takes from a folder


def make_app(folder: Path, bundles: Iterable[Path]) -> None:
    """Make an app's folder: MONAI Label's own app for bundles, our server, and links to bundles under ``model/``.

    Args:
        folder: where; what an earlier start left there is renewed.
        bundles: folders of bundles; their names become those of the models.

    Raises:
        InputError: a bundle that is not there.
    """
    shutil.copytree(sample_app(), folder, dirs_exist_ok=True)
    for module in SERVER:
        shutil.copy(module, folder)
    bundles = list(bundles)
    if len({bundle.name for bundle in bundles}) < len(bundles):
        raise InputError("Two bundles have the same name, which would be that of both models; rename a folder.")
    for bundle in bundles:
        if not (bundle / "configs" / "inference.json").is_file():
            raise InputError(
                f"There is no bundle in {bundle}; make one with `python -m scripts.ship --output {bundle}`."
            )
        link(folder / "model" / bundle.name, bundle)


def sample_app() -> Path:
    """The folder of MONAI Label's app for bundles, which pip and uv install in different places."""
    for file in importlib.metadata.files("monailabel") or []:
        if file.match("sample-apps/monaibundle/main.py"):
            return Path(str(file.locate())).parent
    raise InputError("MONAI Label is installed without its sample apps; install it with `make .venv-label/installed`.")


def link_studies(studies: Path, source: Path) -> list[str]:
    """Fill a folder of studies with links to images, so that MONAI Label writes nothing beside them.

    Args:
        studies: the folder; labels from earlier are kept in it, links are not.
        source: folder of images, or a folder for each case.

    Returns:
        The names of the cases, which are the image ids of MONAI Label.

    Raises:
        InputError: no images, or some that MONAI Label does not take.
    """
    for old in studies.glob("*") if studies.is_dir() else ():
        if old.is_symlink():
            old.unlink()
    return [name for name, _ in _link_all(studies, find_cases(source))]


def link_normals(studies: Path, source: Path, taken: Collection[str] = ()) -> list[str]:
    """Add normal images to a folder of studies, each with an empty label: what a fit in MONAI Label is made on.

    Args:
        studies: see `link_studies`.
        source: folder of normal images, or a folder for each case.
        taken: names of the studies, which normals must not have.

    Returns:
        The names of the cases.

    Raises:
        InputError: see `link_studies`; or a name that is taken.
    """
    cases = find_cases(source)
    twice = sorted({case["case"] for case in cases}.intersection(taken))
    if twice:
        raise InputError(f"Studies and normals both have a case {twice[0]!r}; rename the files of one folder.")
    labels = studies / "labels" / "final"
    labels.mkdir(parents=True, exist_ok=True)
    names = []
    for name, path in _link_all(studies, cases):
        label = labels / f"{name}.nii.gz"
        if not label.exists():  # somebody may have drawn in it
            image = LoadImage()(path)
            nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), np.asarray(image.affine)), label)
        names.append(name)
    return names


def link(place: Path, target: Path) -> None:
    """Make or renew a symbolic link."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    place.symlink_to(target.resolve())


def _link_all(studies: Path, cases: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for case in cases:
        name, path = case["case"], _path_of(case)
        suffix = next(suffix for suffix in SUFFIXES if path.endswith(suffix))
        link(studies / f"{name}{suffix}", Path(path))
        yield name, path


def _path_of(case: dict[str, Any]) -> str:
    path = case.get("image", "")
    if not Path(path).is_file() or not path.endswith(SUFFIXES):
        raise InputError(
            f"MONAI Label does not take {case['case']!r} from a folder; expected files ({', '.join(SUFFIXES)}), so "
            "give DICOM series through a DICOMweb server."
        )
    return path
