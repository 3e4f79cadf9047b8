"""`python deploy/app -i STUDY -o RESULTS -m MODELS`: read a DICOM study, write the results as DICOM objects."""

import argparse
import importlib
import logging
import sys
from pathlib import Path

from models_folder import find_bundle
from monai.deploy.core import init_app_context

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python deploy/app",
        usage="%(prog)s -i STUDY -o RESULTS -m MODELS [--series PATTERN] [options of the SDK]",
        allow_abbrev=False,
    )
    parser.add_argument("--series", default="", help="pattern for the description of the series, or all")
    parser.add_argument("-o", "--output", type=Path, help="folder of the results")  # the SDK makes it with a traceback
    options, others = parser.parse_known_args()
    context = init_app_context([sys.argv[0], *others])
    context.output_path = options.output or context.output_path
    try:
        sys.path.insert(0, str(find_bundle(Path(context.model_path)).resolve()))
    except ValueError as error:
        logging.getLogger("anomaly_app").error(error)
        sys.exit(1)
    app = importlib.import_module("app")  # needs the bundle's scripts
    sys.exit(app.run(context, Path(sys.path[0]), options.series))
