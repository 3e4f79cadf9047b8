"""Stand-in for the app in the tests of the gateway, without imports that take long.

`python gateway_app.py [ARGUMENTS] -i STUDY -o OUTPUT -m MODELS`: the file ``behaviour`` in MODELS says what it does;
``runs`` there gets a line for each run: its process and the number of files. Results are those in ``templates`` with
other UIDs of the same length.
"""

import argparse
import logging
import os
import random
import re
import sys
import time
from pathlib import Path

INSTANCE, STUDY = "2.25." + "4" * 39, "2.25." + "5" * 39  # in the templates
STUDY_PATTERN = rb"2\.25\.3\d{38}"  # of the studies in the tests

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("-i", "-o", "-m"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--series")
    options = parser.parse_args()
    logging.basicConfig(format="[%(asctime)s] [%(levelname)s] (%(name)s) - %(message)s")
    files = [path.read_bytes() for path in sorted(options.i.iterdir())]
    with (options.m / "runs").open("a") as runs:
        runs.write(f"{os.getpid()} {len(files)}\n")
    behaviour = (options.m / "behaviour").read_text()
    if behaviour == "hang":
        if (child := os.fork()) != 0:  # it would go on
            (options.m / "child").write_text(str(child))
        time.sleep(600)
    elif behaviour == "crash":
        print(f"quoted by a library: {files[0][:2000]!r}", file=sys.stderr)
        os.abort()
    elif behaviour == "refuse":
        logging.getLogger("anomaly_app").error("the series has a single slice; expected several.")
        sys.exit(1)
    study = re.search(STUDY_PATTERN, files[0])
    for template in sorted((options.m / "templates").iterdir()):
        folder = options.o / "1.2.3" / template.stem
        folder.mkdir(parents=True)
        instance = f"2.25.{random.randrange(10**38, 10**39)}"
        data = template.read_bytes().replace(INSTANCE.encode(), instance.encode())
        (folder / f"{instance}.dcm").write_bytes(data.replace(STUDY.encode(), study[0] if study else STUDY.encode()))
    if behaviour == "partly":
        logging.getLogger("anomaly_app").error("series 2 (1.2): the series has a single slice; expected several.")
        sys.exit(1)
