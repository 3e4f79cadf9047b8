"""A gateway as a process, and a PACS in this process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ParametricMapStorage,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from tests.integration.gateway_app import INSTANCE, STUDY
from tests.tiny_bundle import ROOT
from tests.tiny_cases import PATIENT

STAND_IN = Path(__file__).with_name("gateway_app.py")
KINDS = {
    "segmentation": (SegmentationStorage, "Anomaly mask, not for diagnosis"),
    "parametric_map": (ParametricMapStorage, "Anomaly map, not for diagnosis"),
    "measurements": (Comprehensive3DSRStorage, "Anomaly measurements, not for diagnosis"),
}
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"
GATEWAY = ROOT / "deploy" / "gateway"
PATIENCE = 20  # s


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def wait_until(is_true, what, patience=PATIENCE):
    """Wait until a condition holds, and return its value."""
    end = time.monotonic() + patience
    while not (value := is_true()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.05)
    return value


def template(sop_class, description):
    """Return a result without content."""
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, INSTANCE
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, generate_uid()
    data.PatientName, data.PatientID = PATIENT, "4711"
    data.SeriesDescription, data.Manufacturer = description, "stand-in"
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = sop_class, INSTANCE
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


class Pacs:
    """A PACS that keeps what it is sent.

    Attributes:
        objects: the data sets in the order of their arrival.
        status: status that it answers, by SOP class or for all.
        before: called before each answer.
    """

    def __init__(self):
        self.port = free_port()
        self.objects = []
        self.status = {}
        self.before = None
        self.server = None
        self.classes = [context.abstract_syntax for context in AllStoragePresentationContexts]

    def start(self):
        entity = AE("PACS")
        for sop_class in self.classes:
            entity.add_supported_context(sop_class, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
        handlers = [(evt.EVT_C_STORE, self._store)]
        self.server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def stop(self):
        if self.server:
            self.server.shutdown()
            self.server = None

    def _store(self, event):
        if self.before:
            self.before()
        status = self.status.get(event.dataset.SOPClassUID, 0)
        if not status:
            self.objects.append(event.dataset)
        return status

    def of(self, study):
        return [data for data in self.objects if data.StudyInstanceUID == study]


class Launcher:
    """Starts gateways in less time than a new Python needs."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("gateway_launcher.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


class Forked:
    """A process of the launcher, with the methods of `subprocess.Popen`."""

    def __init__(self, launcher, arguments, log):
        self.launcher = launcher
        self.pid = launcher.ask([arguments, str(log)])
        self.returncode = None

    def poll(self):
        if self.returncode is None and not is_running(self.pid):
            self.returncode = self.launcher.ask(self.pid)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, patience):
        wait_until(lambda: self.poll() is not None, "the gateway does not end", patience)


class Gateway:
    """A gateway.

    Attributes:
        folder: holds its work folder, its models and its log.
        launcher: what starts it; None for its command in the environment of the app.
    """

    def __init__(self, folder, destination, launcher=None):
        self.folder = folder
        self.work = folder / "work"
        self.models = folder / "models"
        self.log_path = folder / "log"
        self.port = free_port()
        self.destination = destination
        self.launcher = launcher
        self.process = None

    def make_models(self):
        """Write what the gateway takes for a bundle."""
        (self.models / "configs").mkdir(parents=True)
        (self.models / "configs" / "metadata.json").write_text(json.dumps({"authors": "stand-in"}))
        (self.models / "scripts" / "inference").mkdir(parents=True)
        (self.models / "scripts" / "inference" / "dicom_objects.py").touch()
        (self.models / "runs").touch()
        (self.models / "templates").mkdir()
        for kind, (sop_class, description) in KINDS.items():
            template(sop_class, description).save_as(
                self.models / "templates" / f"{kind}.dcm", enforce_file_format=True
            )
        self.behave("work")

    def behave(self, behaviour):
        (self.models / "behaviour").write_text(behaviour)

    def arguments(self, *for_app, **settings):
        settings = {
            "port": self.port,
            "models": self.models,
            "send_to": self.destination,
            "work_dir": self.work,
            "quiet_seconds": 0.5,
            "retry_seconds": 0.3,
            "min_free_gb": 0,
            **({"app": STAND_IN} if self.launcher else {}),
            **settings,
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return [str(part) for part in (*options, *for_app)]

    def launch(self, *for_app, **settings):
        arguments = self.arguments(*for_app, **settings)
        if self.launcher:
            return Forked(self.launcher, arguments, self.log_path)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log_path.open("a") as log:
            return subprocess.Popen([PYTHON, GATEWAY, *arguments], stdout=log, stderr=log, env=environment)

    def start(self, *for_app, **settings):
        n_before = self.log.count(" listens at ")
        self.process = self.launch(*for_app, **settings)
        wait_until(lambda: self.log.count(" listens at ") > n_before or self.process.poll() is not None, "no start")
        assert self.process.poll() is None, self.log

    def refusal(self, **settings):
        """Return what it says when it does not start."""
        n_before = len(self.log)
        process = self.launch(**settings)
        process.wait(PATIENCE)
        assert process.returncode in (1, 2) and "Traceback" not in self.log
        return self.log[n_before:]

    def end(self, number=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE)
        return self.process and self.process.returncode

    @property
    def log(self):
        return self.log_path.read_text() if self.log_path.exists() else ""

    def says(self, text, patience=PATIENCE):
        wait_until(lambda: text in self.log, lambda: self.log, patience)

    def runs(self):
        """Return process and number of files of each run."""
        return [tuple(map(int, line.split())) for line in (self.models / "runs").read_text().splitlines()]

    def record(self, study, place="studies"):
        path = self.work / place / study / "record.json"
        return json.loads(path.read_text()) if path.exists() else None

    def delivered(self, study):
        wait_until(lambda: (self.record(study) or {}).get("state") == "delivered", lambda: self.log)

    def failed(self, study):
        wait_until(lambda: (self.work / "failed" / study).exists(), lambda: self.log)
        return (self.work / "failed" / study / "reason.txt").read_text()


def associate(gateway, classes, title="SCANNER", syntaxes=(ExplicitVRLittleEndian,), called="DPMM"):
    entity = AE(title)
    for sop_class in dict.fromkeys([Verification, *classes]):
        entity.add_requested_context(sop_class, list(syntaxes))
    return entity.associate("127.0.0.1", gateway.port, ae_title=called)


def send(gateway, datasets, **settings):
    """Send data sets in an association of their own; return the statuses."""
    syntaxes = {str(data.file_meta.TransferSyntaxUID) for data in datasets}
    association = associate(gateway, [data.SOPClassUID for data in datasets], syntaxes=syntaxes, **settings)
    assert association.is_established
    try:
        return Counter(association.send_c_store(data).get("Status") for data in datasets)
    finally:
        association.release()


def is_running(pid):
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
