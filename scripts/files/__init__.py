"""Files and directories that are written whole or not at all, with a record of their contents."""

from .atomic import atomic_directory, atomic_write
from .record import (
    OLD,
    PARTIAL,
    RECORD,
    changed_files,
    describe_file,
    file_digest,
    file_sha256,
    has_record,
    is_intact,
    read_record,
    write_record,
)
from .recorded_directory import LOCK, RecordedDirectory
from .replaced_directory import replace_directory
from .sealed import is_sealed, write_sealed
from .sums import write_sums
from .writers import write_csv, write_json

__all__ = [
    "LOCK",
    "OLD",
    "PARTIAL",
    "RECORD",
    "RecordedDirectory",
    "atomic_directory",
    "atomic_write",
    "changed_files",
    "describe_file",
    "file_digest",
    "file_sha256",
    "has_record",
    "is_intact",
    "is_sealed",
    "read_record",
    "replace_directory",
    "write_csv",
    "write_json",
    "write_record",
    "write_sealed",
    "write_sums",
]
