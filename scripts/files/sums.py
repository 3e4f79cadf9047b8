"""Files of SHA-256 sums, for ``sha256sum --check``."""

from __future__ import annotations

from pathlib import Path

from .record import file_sha256


def write_sums(folder: Path, name: str = "SHA256SUMS") -> Path:
    """Write the SHA-256 sums of all files below a folder, and return the path of the file that has them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    sums = folder / name
    sums.write_text("".join(f"{file_sha256(folder / each)}  {each}\n" for each in names), encoding="utf-8")
    return sums
