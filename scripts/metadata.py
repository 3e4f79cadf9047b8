"""``configs/metadata.json``, the one place that states the version of the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def read_metadata(bundle: Path = ROOT) -> dict[str, Any]:
    """Read the metadata of a bundle, by default of this one."""
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def bundle_version(bundle: Path = ROOT) -> str:
    """Return the version of a bundle, by default of this one."""
    return str(read_metadata(bundle)["version"])
