"""No library that a run imports reports to its makers that it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTENS = """
import json, os, socket, sys

names = set()
lookup = socket.getaddrinfo
def listens(host, *arguments, **options):
    names.add(str(host))
    raise OSError("no network here")
socket.getaddrinfo = listens
for name in ("CI", "NNCF_CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "PYTEST_CURRENT_TEST"):
    os.environ.pop(name, None)  # with these some libraries keep silent anyhow

import scripts
import scripts.runtimes.quantization
import mlflow
import nncf
import openvino.tools.ovc
import atexit
atexit._run_exitfuncs()
import threading, time
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
print(sys.modules["openvino_telemetry"], type(nncf.telemetry.telemetry).__name__, json.dumps(sorted(names)))
"""


def test_no_library_looks_up_a_host():
    for module in ("openvino", "nncf", "mlflow"):
        pytest.importorskip(module)
    done = subprocess.run([sys.executable, "-c", LISTENS], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "None MagicMock []"
