"""Writers of JSON and CSV files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .atomic import atomic_write


def write_json(content: Any, path: str | os.PathLike) -> None:
    """Write an object as JSON; see `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def write_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: str | os.PathLike) -> None:
    """Write a table, with empty fields where a row lacks a column or has None; see `atomic_write`."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
