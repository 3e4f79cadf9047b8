"""Health check of the image: bundle, manifests and folders are as the app needs them. It takes a few milliseconds."""

import json
import os
import sys
import tempfile
from pathlib import Path

from models_folder import find_bundle


def check(environment: dict[str, str]) -> None:
    """Check what a run needs, without the libraries that take seconds to import.

    Args:
        environment: the ``HOLOSCAN_*`` variables of the image.

    Raises:
        ValueError: there is no bundle that the app can use, it has no model, or a manifest is no JSON.
        OSError: a folder cannot be read or written, or a file cannot be read.
    """
    model = find_bundle(Path(environment["HOLOSCAN_MODEL_PATH"])) / "models" / "model.pt"
    if not model.stat().st_size:
        raise ValueError(f"{model} is empty.")
    for name in ("APP", "PKG"):
        json.loads(Path(environment[f"HOLOSCAN_{name}_MANIFEST_PATH"]).read_text())
    for name, access in (("INPUT", os.R_OK | os.X_OK), ("OUTPUT", os.W_OK | os.X_OK)):
        folder = environment[f"HOLOSCAN_{name}_PATH"]
        if not os.access(folder, access):
            raise PermissionError(f"{folder} cannot be {'read' if name == 'INPUT' else 'written'}.")
    with tempfile.TemporaryFile():
        pass


if __name__ == "__main__":
    try:
        check(dict(os.environ))
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"not healthy: {error}")
    print("healthy")
