"""Command that writes bills of materials of the installed packages, and pages of their licences.

Examples::

    python -m scripts.sbom --output_dir sbom_output
    python -m scripts.sbom --output_dir sbom_output --pins bundle,fast,dev
    python -m scripts.sbom --output_dir sbom_output --pins environment
"""

from __future__ import annotations

import fire

from .writer import write_sbom

if __name__ == "__main__":
    fire.Fire(write_sbom)
