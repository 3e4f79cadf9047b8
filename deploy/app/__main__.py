"""`python deploy -i STUDY -o RESULTS -m MODELS`: a DICOM study in, the results as DICOM objects out."""

import importlib
import logging
import sys
from pathlib import Path

from monai.deploy.core import init_app_context


def find_bundle(models: Path) -> Path:
    """The bundle in the folder that the app is given, or that folder itself.

    Args:
        models: the folder.

    Returns:
        The bundle's folder.

    Raises:
        FileNotFoundError: there is none, or more than one.
    """
    below = sorted(path for path in models.iterdir() if path.name[0] != ".") if models.is_dir() else []
    found = [folder for folder in (models, *below) if (folder / "configs" / "metadata.json").is_file()]
    if len(found) != 1:
        raise FileNotFoundError(
            f"The models folder {models} holds {len(found)} bundles; expected one, so ship it there with "
            "`python -m scripts.export_bundle`, and say with -m where it is."
        )
    return found[0]


if __name__ == "__main__":
    context = init_app_context(sys.argv)
    try:
        sys.path.insert(0, str(find_bundle(Path(context.model_path)).resolve()))
    except FileNotFoundError as error:
        logging.getLogger("anomaly_app").error(error)
        sys.exit(1)
    sys.exit(importlib.import_module("app").run(context, Path(sys.path[0])))  # needs the bundle's scripts
