"""Entry point of the command ``dpmm``, which ``python -m dpmm`` runs as well."""

from __future__ import annotations

import sys

from .bundle_files import root_of


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    arguments = sys.argv[1:]
    sys.path.insert(0, str(root_of(arguments)))
    from .command_line import run_command  # its modules import `scripts` of the bundle

    sys.exit(run_command(arguments))


if __name__ == "__main__":
    main()
