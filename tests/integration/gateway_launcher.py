"""Start of gateways by fork, after the imports, which take longer than a test.

Each line of the input is JSON: arguments and log of a gateway, which is answered by its process, or the number of a
process that has ended, which is answered by its status.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import pynetdicom  # noqa: F401

GATEWAY = Path(__file__).resolve().parents[2] / "deploy" / "gateway"


def become_gateway(arguments, log):
    """Run the gateway in this process, and end with its status."""
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((null, handle, handle)):
            os.dup2(source, target)
        sys.argv = [str(GATEWAY), *arguments]
        runpy.run_path(str(GATEWAY), run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
        elif (answer := os.fork()) == 0:
            become_gateway(*request)
        print(answer, flush=True)
