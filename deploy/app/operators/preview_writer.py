"""Writer of the preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Operator, OperatorSpec


class PreviewWriter(Operator):
    """Write ``preview.png``.

    Named input:
        preview: bytes of a PNG file.

    Args:
        fragment: the app.
        args: arguments of `Operator`.
        folder: output folder.
        kwargs: keyword arguments of `Operator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the port."""
        spec.input("preview")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write the file."""
        (self.folder / "preview.png").write_bytes(op_input.receive("preview"))
