"""Command that makes a kit to install the project where there is no network.

Examples::

    python -m kit
    python -m kit --output kit_output --pythons 3.11 3.12 --model model.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .builder import PYTHONS, build_kit
from .install import SUMS
from .wheelhouse import PLATFORMS


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m kit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("kit_output"), help="folder; an older kit is replaced")
    parser.add_argument("--pythons", nargs="+", choices=PYTHONS, default=PYTHONS, help="versions; default: all")
    parser.add_argument("--platform", choices=PLATFORMS, default="gpu", help="default: gpu, which needs no GPU")
    parser.add_argument("--model", type=Path, help="a fitted model to add")
    options = parser.parse_args()
    digest = build_kit(options.output, options.pythons, options.platform, options.model)
    print(f"{options.output} holds the kit. Its {SUMS} has the SHA-256 sum {digest}, to compare after the transport.")


if __name__ == "__main__":
    main()
