"""A MONAI Label server in its own environment, as `python -m label` starts it."""

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import requests

from tests.tiny_bundle import ROOT

PYTHON = ROOT / ".venv-label" / "bin" / "python"


class LabelServer:
    """Requests to a server, and its log."""

    def __init__(self, address: str, log: Path) -> None:
        self.address = address
        self.log = log

    def get(self, path: str, **params) -> requests.Response:
        return requests.get(f"{self.address}/{path}", params=params, timeout=300)

    def send(self, method: str, path: str, **arguments) -> requests.Response:
        """Send a request without normalising its path."""
        request = requests.Request(method, self.address, **arguments).prepare()
        _, _, query = (request.url or "").partition("?")
        request.url = f"{self.address}/{path}" + (f"?{query}" if query else "")
        with requests.Session() as session:
            return session.send(request, timeout=300)

    def infer(self, model: str, image: str, output: str, files=None, **params) -> requests.Response:
        return requests.post(
            f"{self.address}/infer/{model}",
            params={"image": image, "output": output} if image else {"output": output},
            data={"params": json.dumps(params)},
            files=files,
            timeout=300,
        )

    def infer_in_session(self, model: str, image: str, path: Path) -> requests.Response:
        """Infer as 3D Slicer does for a volume that it loaded itself."""
        with path.open("rb") as file:
            answer = requests.put(f"{self.address}/session/", files={"files": (path.name, file)}, timeout=60)
        params = {"image": image, "session_id": answer.json()["session_id"], "output": "image"}
        return requests.post(f"{self.address}/infer/{model}", params=params, timeout=300)

    def train(self, model: str, **params) -> requests.Response:
        return requests.post(f"{self.address}/train/{model}", params={"run_sync": "true"}, json=params, timeout=600)

    def train_in_background(self, model: str, **params) -> list[str]:
        """Train as 3D Slicer does, and return the last lines of the task."""
        requests.post(f"{self.address}/train/{model}", json=params, timeout=60).raise_for_status()
        while (task := self.get("train/").json())["status"] in ("SUBMITTED", "RUNNING"):
            time.sleep(1)
        assert task["status"] == "DONE", task
        return task["details"]

    def put_label(self, image: str, path: Path) -> None:
        with path.open("rb") as file:
            files = {"label": (path.name, file)}
            url = f"{self.address}/datastore/label"
            requests.put(url, params={"image": image}, files=files, timeout=60).raise_for_status()


@contextlib.contextmanager
def label_server(folder: Path, *flags: str):
    """Start a server, and end it afterwards; skip if its environment is missing."""
    if not PYTHON.is_file():
        pytest.skip("NOT TESTED: MONAI Label is not installed; make .venv-label/installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.with_name(f"{folder.name}.log")
    command = [str(PYTHON), "-m", "label", "--output_dir", str(folder), "--port", str(port), *flags]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": ""}
        )
    try:
        while f"answers at http://127.0.0.1:{port}" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield LabelServer(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(60)
