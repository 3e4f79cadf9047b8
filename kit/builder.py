"""Content of a kit: wheels, bundle with weights, papers, and the installer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from zipfile import ZipFile

from scripts.download_weights import download as download_weights
from scripts.errors import InputError, reason
from scripts.export_bundle import SHIPPED, copy_bundle, export_bundle
from scripts.files import file_sha256, has_record, replace_directory, write_sums
from scripts.metadata import read_metadata
from scripts.models.weights import FITTED_FILE, MODELS_DIR
from scripts.sbom.page import licence_page

from .bill import bill_of_kit, packages
from .install import BUNDLE, GLIBC_MINOR, SUMS, WHEELS, lock_name
from .wheelhouse import Target, Wheel, download, lock, read_wheel

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parent
REQUIREMENTS = ROOT / "requirements-fast.txt"
PIP = SOURCE / "requirements-pip.txt"  # the pip that installs the others
INSTALLER = ("install.sh", "install.py")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORM = {
    "gpu": "It runs on the CPU, and on NVIDIA's GPUs where a driver is installed.",
    "cpu": "It runs on the CPU alone.",
}
FIT_FIRST = """Fit a model on normal images of your own, then segment:

```bash
/opt/anomaly/dpmm fit /data/normals
/opt/anomaly/dpmm segment /data/cases results
```"""
SEGMENT = """The kit has a fitted model, whose settings are in the configs of `bundle`:

```bash
/opt/anomaly/dpmm segment /data/cases results --bundle_root /opt/anomaly/bundle
/opt/anomaly/dpmm info /opt/anomaly/bundle/models/model.pt
```"""


def build_kit(output: Path, pythons: Sequence[str] = PYTHONS, platform: str = "gpu", model: Path | None = None) -> str:
    """Build a kit.

    Args:
        output: folder for it; an older kit is replaced if all of its files are unchanged.
        pythons: versions of Python, such as ``3.11``.
        platform: ``gpu``, whose wheels run without a GPU too, or ``cpu``.
        model: a fitted model to add.

    Returns:
        SHA-256 sum of the kit's file of sums, hexadecimal.

    Raises:
        InputError: the folder holds something else or cannot be written, or wheels, weights or model cannot be had.
    """
    target = output.absolute()
    is_kit = has_record(target) and (target / INSTALLER[0]).is_file()
    is_foreign = target.exists() and not is_kit and (not target.is_dir() or any(target.iterdir()))
    if is_foreign or any(target.resolve().is_relative_to(ROOT / name) for name in SHIPPED):
        raise InputError(f"{output} is not a kit and is left alone; give a new folder.")
    weights = download_weights(MODELS_DIR)
    try:
        with replace_directory(target) as kit:
            _fill(kit, pythons, platform, weights, model)
            return file_sha256(write_sums(kit, SUMS))
    except (OSError, shutil.Error) as error:
        raise InputError(f"{output} cannot be written ({reason(error)}); give another folder.") from error


def _fill(kit: Path, pythons: Sequence[str], platform: str, weights: Path, model: Path | None) -> None:
    """Fill an empty folder with all but the file of sums."""
    bundle = kit / BUNDLE
    if model:
        export_bundle(model, bundle)
    else:
        bundle.mkdir()
        copy_bundle(bundle)
    shutil.copy(weights, bundle / "models")
    models = [bundle / "models" / name for name in (weights.name, *((FITTED_FILE,) if model else ()))]
    metadata = read_metadata(bundle)
    (kit / WHEELS).mkdir()
    own = build_wheel(kit / WHEELS)
    for python in pythons:
        target = Target(REQUIREMENTS, f"{python}.0", GLIBC_MINOR, platform)
        pip = replace(target, requirements=PIP)
        wheels = [*download(kit / WHEELS, target), *download(kit / WHEELS, pip), own]
        (kit / lock_name(python)).write_text(lock(wheels))
        (kit / f"sbom-{python}.cdx.json").write_text(bill_of_kit(metadata, models, wheels, target.markers))
        (kit / f"licences-{python}.md").write_text(licence_page(f"kit for Python {python}", packages(wheels)))
    for name in INSTALLER:
        shutil.copyfile(SOURCE / name, kit / name)
    shutil.copyfile(ROOT / "LICENSE", kit / "LICENSE")
    page = Template((SOURCE / "README.md").read_text()).substitute(
        version=metadata["version"],
        pythons=" or ".join(pythons),
        platform=PLATFORM[platform],
        size=f"{sum(path.stat().st_size for path in kit.rglob('*')) / 1e9:.1f}",
        unpacked=f"{unpacked_size(wheels) / 1e9:.0f}",
        use=SEGMENT if model else FIT_FIRST,
        model=" and the fitted model" if model else "",
    )
    (kit / "README.md").write_text(page)


def build_wheel(folder: Path) -> Wheel:
    """Build the wheel of this project in a folder.

    Raises:
        InputError: pip fails.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", temporary, str(ROOT)]
        if subprocess.run(command, check=False).returncode:
            raise InputError(f"pip could not build the wheel of {ROOT}; run the command again.")
        (path,) = Path(temporary).glob("*.whl")
        return read_wheel(path.replace(folder / path.name))


def unpacked_size(wheels: Sequence[Wheel]) -> int:
    """Return the size of the content of wheels, in bytes."""
    size = 0
    for wheel in wheels:
        with ZipFile(wheel.path) as archive:
            size += sum(member.file_size for member in archive.infolist())
    return size
