"""What was measured so far: a JSON file for each row, so that a measurement that was interrupted goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.files import write_json

Table = dict[str, dict[str, Any]]  # by row: its figures, or ``error``, why it has none


class Results:
    """The figures in a folder.

    Args:
        folder: of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, table: str, row: str) -> Path:
        """Where a row's figures are."""
        return self.folder / table / f"{slug(row)}.json"

    def keep(self, table: str, row: str, place: int, figures: dict[str, Any]) -> None:
        """Keep a row's figures; ``place`` says which rows stand before it."""
        write_json({"row": row, "place": place, **figures}, self.path(table, row))

    def table(self, name: str) -> Table:
        """The rows of a table in their order."""
        found = [json.loads(path.read_text()) for path in (self.folder / name).glob("*.json")]
        return {row["row"]: row for row in sorted(found, key=lambda row: row["place"])}

    def machine(self) -> dict[str, Any]:
        """Where and on what they were measured; empty where nothing was."""
        path = self.folder / "machine.json"
        return json.loads(path.read_text()) if path.is_file() else {}


def measured(table: Table) -> Table:
    """The rows that have figures."""
    return {name: row for name, row in table.items() if "error" not in row}


def slug(row: str) -> str:
    """A row's name as that of a file."""
    return row.replace(",", "").replace(" ", "-")
