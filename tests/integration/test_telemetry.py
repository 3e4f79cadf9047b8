"""Absence of telemetry in the libraries that a run imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_bundle import ROOT

pytestmark = pytest.mark.slow


LISTENS = """
import json, os, socket, sys

names = set()
lookup = socket.getaddrinfo
def listens(host, *arguments, **options):
    names.add(str(host))
    raise OSError("no network here")
socket.getaddrinfo = listens
for name in ("CI", "NNCF_CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "PYTEST_CURRENT_TEST"):
    os.environ.pop(name, None)  # these turn telemetry off in some libraries

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


class TestTelemetry:
    def test_no_library_looks_up_a_host(self):
        for module in ("openvino", "nncf", "mlflow"):
            pytest.importorskip(module)
        done = subprocess.run([sys.executable, "-c", LISTENS], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1] == "None MagicMock []"

    def test_onnxruntime_writes_no_file(self, tmp_path):
        pytest.importorskip("onnxruntime")
        names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
        folders = {name: str(tmp_path / name) for name in names}
        for folder in folders.values():
            Path(folder).mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        subprocess.run(
            [sys.executable, "-c", "import scripts, onnxruntime"], check=True, cwd=ROOT, env={**environment, **folders}
        )
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
