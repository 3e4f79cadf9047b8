"""A real Orthanc with its DICOMweb plugin, in a private network because it listens on every address."""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ADDRESS = "http://127.0.0.1:8042"
NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@contextlib.contextmanager
def private_network():
    """Put this thread and its children into a network with a loopback only; skip if that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if not hasattr(libc, "unshare") or libc.unshare(NEW_NETWORK):
        pytest.skip(f"NOT TESTED: a private network needs root ({os.strerror(ctypes.get_errno())})")
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        libc.setns(before, NEW_NETWORK)
        os.close(before)


@contextlib.contextmanager
def orthanc_server(folder: Path, **more):
    """Start Orthanc in a private network, with more settings, and end it afterwards; skip if it is not installed."""
    if not (shutil.which("Orthanc") and shutil.which("ip") and PLUGIN.is_file()):
        pytest.skip("NOT TESTED: no Orthanc here; apt-get install orthanc orthanc-dicomweb iproute2")
    folder.mkdir(parents=True)
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": 8042,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with private_network(), (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _answers():
                assert process.poll() is None, (folder / "orthanc.log").read_text()[-3000:]
                time.sleep(0.2)
            yield f"{ADDRESS}/dicom-web"
        finally:
            process.terminate()
            process.wait(60)


def store(files) -> None:
    """Send DICOM files to Orthanc."""
    for file in files:
        requests.post(f"{ADDRESS}/instances", data=Path(file).read_bytes(), timeout=60).raise_for_status()


def _answers() -> bool:
    try:
        return requests.get(f"{ADDRESS}/system", timeout=5).ok
    except requests.ConnectionError:
        return False
