"""The bundle as a zip file in the layout of the model zoo, whose bytes depend on its files alone."""

from __future__ import annotations

import datetime
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

FILE_MODE = 0o100644 << 16  # a regular file that its owner may write, in the attributes of a Unix archive
UNIX = 3


def write_archive(bundle: Path, names: Iterable[str], date: str, archive: Path) -> None:
    """Write files of a bundle below one folder with the bundle's name.

    The files are not compressed: weights hardly shrink, and the bytes do not depend on a version of zlib.

    Args:
        bundle: folder of the bundle.
        names: names of the files in it.
        date: time stamp of all files, as ``YYYY-MM-DD``.
        archive: the zip file.
    """
    day = datetime.date.fromisoformat(date)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(names):
            entry = zipfile.ZipInfo(f"{bundle.name}/{name}", (day.year, day.month, day.day, 0, 0, 0))
            entry.create_system, entry.external_attr = UNIX, FILE_MODE
            entry.file_size = (bundle / name).stat().st_size
            with (bundle / name).open("rb") as source, target.open(entry, "w") as part:
                shutil.copyfileobj(source, part)
