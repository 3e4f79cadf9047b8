"""The former name of `scripts.export_bundle`: ``python -m scripts.ship`` goes on working for a release."""

from __future__ import annotations

import fire

from .export_bundle import export_bundle

if __name__ == "__main__":
    fire.Fire(export_bundle)
