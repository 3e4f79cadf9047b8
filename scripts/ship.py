"""Deprecated name of `scripts.export_bundle`; ``python -m scripts.ship`` still works in this release."""

from __future__ import annotations

import fire

from .export_bundle import export_bundle

if __name__ == "__main__":
    fire.Fire(export_bundle)
