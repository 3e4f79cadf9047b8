"""`python deploy/app -i STUDY -o RESULTS -m MODELS`: read a DICOM study, write the results as DICOM objects."""

import importlib
import logging
import sys
from pathlib import Path

from models_folder import find_bundle
from monai.deploy.core import init_app_context

if __name__ == "__main__":
    context = init_app_context(sys.argv)
    try:
        sys.path.insert(0, str(find_bundle(Path(context.model_path)).resolve()))
    except ValueError as error:
        logging.getLogger("anomaly_app").error(error)
        sys.exit(1)
    sys.exit(importlib.import_module("app").run(context, Path(sys.path[0])))  # needs the bundle's scripts
