"""The gateway between a PACS and the Deploy app, with a stand-in for the app, and with the app itself and Orthanc."""

import copy
import importlib
import os
import random
import signal
import socket
import time
from collections import Counter

import numpy as np
import pydicom
import pytest
import requests
from pydicom.uid import ParametricMapStorage, RLELossless, SecondaryCaptureImageStorage, generate_uid

from demo.dicom_series import write_series
from tests.integration.deploy_studies import study_of_contrasts
from tests.integration.gateway_process import (
    KINDS,
    PYTHON,
    Gateway,
    Launcher,
    Pacs,
    associate,
    is_running,
    send,
    wait_until,
)
from tests.integration.orthanc_server import ADDRESS, orthanc_server, store
from tests.tiny_bundle import ROOT
from tests.tiny_cases import PATIENT

SUCCESS = {0: 4}
DICOM_PORT = 4242  # of Orthanc


@pytest.fixture
def pacs():
    pacs = Pacs()
    pacs.start()
    yield pacs
    pacs.stop()


@pytest.fixture(scope="module")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.end()


@pytest.fixture
def gateway(pacs, tmp_path, launcher):
    gateway = Gateway(tmp_path, f"127.0.0.1:{pacs.port}:PACS", launcher)
    gateway.make_models()
    yield gateway
    gateway.end(signal.SIGKILL)


def make_study(folder):
    """Return four slices of a study, and its UID."""
    image = np.random.default_rng(0).integers(0, 1000, (16, 16, 4))
    uid = f"2.25.{random.randrange(3 * 10**38, 4 * 10**38)}"
    slices = write_series(folder, image, np.eye(4), PatientName=PATIENT, PatientID="4711", StudyInstanceUID=uid)
    return [pydicom.dcmread(data.filename) for data in slices], uid


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study")


class TestWay:
    def test_results_of_a_study_come_back(self, gateway, pacs, study):
        slices, uid = study
        gateway.start("--", "--series", "all")
        assert associate(gateway, []).send_c_echo().Status == 0
        assert send(gateway, slices) == SUCCESS
        gateway.delivered(uid)
        kinds = {data.SeriesDescription.split()[1].strip(",") for data in pacs.of(uid)}
        assert kinds == {"mask", "map", "measurements"} and len(pacs.objects) == 3
        assert [n for _, n in gateway.runs()] == [4]
        kept = [pydicom.dcmread(path) for path in (gateway.work / "studies" / uid / "images").iterdir()]
        assert sorted(d.SOPInstanceUID for d in kept) == sorted(d.SOPInstanceUID for d in slices)
        assert kept[0].file_meta.TransferSyntaxUID == slices[0].file_meta.TransferSyntaxUID
        assert (gateway.work.stat().st_mode & 0o777, gateway.record(uid)["sentence"]) == (0o700, "")
        assert all(path.stat().st_mode & 0o077 == 0 for path in gateway.work.rglob("*"))

        # The same study again, and the results as a PACS that routes everything sends them: nothing to do.
        assert send(gateway, slices) == SUCCESS
        for data in pacs.objects:
            data.file_meta = copy.deepcopy(slices[0].file_meta)
        assert send(gateway, pacs.objects) == {0: 3}
        time.sleep(1.5)
        assert len(gateway.runs()) == 1 and len(pacs.objects) == 3
        assert gateway.log.count("came back and is ignored") == 3

        # An image that arrives late: a run over the whole study.
        late = copy.deepcopy(slices[0])
        late.SOPInstanceUID = late.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        assert send(gateway, [late]) == {0: 1}
        wait_until(lambda: len(pacs.objects) == 6, lambda: gateway.log)
        assert [n for _, n in gateway.runs()] == [4, 5]
        assert len({data.SOPInstanceUID for data in pacs.objects}) == 6
        assert gateway.end() == 0 and gateway.log.endswith("ended\n")
        assert "Doe" not in gateway.log and "4711" not in gateway.log.replace(uid, "")

    def test_two_studies_at_a_time_on_several_associations(self, gateway, pacs, study, tmp_path):
        (first, first_uid), (second, second_uid) = study, make_study(tmp_path / "second")
        for data in second:
            data.compress(RLELossless, generate_instance_uid=False)
            data.save_as(data.filename)
        compressed = [pydicom.dcmread(data.filename) for data in second]
        gateway.start(quiet_seconds=1)
        for pair in zip(first, compressed, strict=True):
            for data in pair:
                assert send(gateway, [data]) == {0: 1}
        gateway.delivered(first_uid)
        gateway.delivered(second_uid)
        assert [n for _, n in gateway.runs()] == [4, 4]
        assert (len(pacs.of(first_uid)), len(pacs.of(second_uid))) == (3, 3)
        kept = next((gateway.work / "studies" / second_uid / "images").iterdir())
        assert pydicom.dcmread(kept).file_meta.TransferSyntaxUID == RLELossless

    def test_images_during_a_run_get_one_of_their_own(self, gateway, pacs, study):
        slices, uid = study
        gateway.behave("hang")
        gateway.start(time_limit=2)
        send(gateway, slices[:2])
        wait_until(gateway.runs, "no run")
        send(gateway, slices[2:])
        gateway.behave("work")
        gateway.delivered(uid)
        assert [n for _, n in gateway.runs()] == [2, 4] and len(pacs.objects) == 3


class TestFailures:
    def test_failures_of_the_app(self, gateway, pacs, study, tmp_path):
        slices, uid = study
        gateway.behave("crash")
        gateway.start(time_limit=1)
        send(gateway, slices)
        assert gateway.failed(uid) == "The app was killed by signal 6.\n"
        assert len(list((gateway.work / "failed" / uid / "images").iterdir())) == 4

        hanging, hanging_uid = make_study(tmp_path / "hanging")
        gateway.behave("hang")
        send(gateway, hanging)
        assert gateway.failed(hanging_uid) == "The app took longer than 1 s and was ended.\n"
        assert not is_running(gateway.runs()[1][0])
        child = int((gateway.models / "child").read_text())
        wait_until(lambda: not is_running(child), "a child of the app goes on")

        refused, refused_uid = make_study(tmp_path / "refused")
        gateway.behave("refuse")
        send(gateway, refused)
        assert gateway.failed(refused_uid) == "the series has a single slice; expected several.\n"
        assert not pacs.objects

        # A failed study that is sent again is run again.
        gateway.behave("work")
        send(gateway, slices)
        gateway.delivered(uid)
        assert len(pacs.of(uid)) == 3 and not (gateway.work / "failed" / uid).exists()
        assert "Doe" not in gateway.log

    def test_pacs_that_is_down(self, gateway, pacs, study):
        slices, uid = study
        pacs.stop()
        gateway.start()
        send(gateway, slices)
        gateway.says("next attempt in 0.6 s")
        assert gateway.record(uid)["state"] == "sending"
        pacs.start()
        gateway.delivered(uid)
        assert len(pacs.of(uid)) == 3 and len(gateway.runs()) == 1

    def test_some_series_scored_and_results_lost(self, gateway, pacs, study, tmp_path):
        (slices, uid), (others, others_uid) = study, make_study(tmp_path / "others")
        gateway.behave("partly")
        gateway.start()
        send(gateway, slices)
        assert gateway.failed(uid) == "series 2 (1.2): the series has a single slice; expected several.\n"
        assert len(pacs.of(uid)) == 3

        gateway.behave("work")
        pacs.status = {sop_class: 0xA700 for sop_class, _ in KINDS.values()}
        send(gateway, others)
        gateway.says("it is out of resources; next attempt in 0.6 s")
        first, second, _ = (gateway.work / "studies" / others_uid / "results").rglob("*.dcm")
        first.unlink()
        second.write_bytes(b"")
        pacs.status = {}
        assert gateway.failed(others_uid) == "A result is missing on the disk, or damaged.\n"
        assert len(pacs.of(others_uid)) == 1

    def test_pacs_that_refuses_an_object(self, gateway, pacs, study):
        slices, uid = study
        pacs.stop()
        pacs.classes.remove(ParametricMapStorage)
        pacs.status["1.2.840.10008.5.1.4.1.1.66.4"] = 0xC001
        pacs.start()
        gateway.start()
        send(gateway, slices)
        assert gateway.failed(uid) == (
            "The PACS does not accept objects of the class Parametric Map Storage. "
            "The PACS refused the Segmentation Storage with status 0xC001.\n"
        )
        assert [data.SeriesDescription for data in pacs.objects] == ["Anomaly measurements, not for diagnosis"]


class TestKills:
    def test_before_the_run_and_during_it(self, gateway, pacs, study):
        slices, uid = study
        gateway.start(quiet_seconds=60)
        assert send(gateway, slices) == SUCCESS
        gateway.end(signal.SIGKILL)

        gateway.behave("hang")
        gateway.start()
        wait_until(gateway.runs, lambda: gateway.log)
        gateway.end(signal.SIGKILL)
        wait_until(lambda: not is_running(gateway.runs()[0][0]), "the app outlives the gateway")

        gateway.behave("work")
        gateway.start()
        gateway.delivered(uid)
        assert [n for _, n in gateway.runs()] == [4, 4] and len(pacs.objects) == 3

    def test_end_during_a_run(self, gateway, pacs, study):
        slices, uid = study
        gateway.behave("hang")
        gateway.start()
        send(gateway, slices)
        wait_until(gateway.runs, lambda: gateway.log)
        assert gateway.end() == 0
        assert not is_running(gateway.runs()[0][0])
        assert gateway.record(uid)["state"] == "running" and gateway.record(uid)["interruptions"] == -1

    def test_between_run_and_delivery(self, gateway, pacs, study):
        slices, uid = study
        pacs.stop()
        gateway.start()
        send(gateway, slices)
        gateway.says("next attempt in")
        gateway.end(signal.SIGKILL)
        made = {result["sop_instance"] for result in gateway.record(uid)["results"]}
        pacs.start()
        gateway.start()
        gateway.delivered(uid)
        assert {data.SOPInstanceUID for data in pacs.objects} == made and len(pacs.objects) == 3
        assert len(gateway.runs()) == 1

    def test_between_two_results(self, gateway, pacs, study):
        slices, uid = study
        pacs.before = lambda: len(pacs.objects) == 2 and gateway.end(signal.SIGKILL)
        gateway.start()
        send(gateway, slices)
        wait_until(lambda: gateway.process.poll() is not None, lambda: gateway.log)
        pacs.before = None
        gateway.start()
        gateway.delivered(uid)
        made = [result["sop_instance"] for result in gateway.record(uid)["results"]]
        sent = [data.SOPInstanceUID for data in pacs.objects]
        assert set(sent) == set(made) and sent[:2] == made[:2] and sent.count(made[0]) == sent.count(made[1]) == 1
        assert len(gateway.runs()) == 1


class TestReceiver:
    def test_refusals(self, gateway, pacs, study, tmp_path):
        slices, _ = study
        gateway.start(allow="SCANNER,PACS", max_pending=1, quiet_seconds=60)
        assert not associate(gateway, [], title="STRANGER").is_established
        assert not associate(gateway, [], called="OTHER").is_established
        gateway.says("an association of 'STRANGER' was refused")
        garbage = [b"GET / HTTP/1.1\r\n\r\n", np.random.default_rng(0).bytes(4096), b"\x01\x00\xff\xff\xff\xff"]
        for data in garbage:
            with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
                connection.sendall(data)
        assert send(gateway, slices) == SUCCESS
        other, _ = make_study(tmp_path / "other")
        assert send(gateway, other) == {0xA700: 4}
        gateway.says("1 studies are pending")
        without_study = copy.deepcopy(slices[0])
        without_study.StudyInstanceUID = ""
        assert send(gateway, [without_study]) == {0xA900: 1}
        assert list((gateway.work / "incoming").iterdir()) == []
        assert gateway.end() == 0
        gateway.start(min_free_gb=1e9)
        assert send(gateway, [copy.deepcopy(slices[0])]) == {0xA700: 1}
        gateway.says("too little free disk space")

    def test_objects_that_are_no_images_start_no_run_and_names_are_no_paths(self, gateway, pacs, study):
        slices, _ = study
        gateway.start()
        capture = copy.deepcopy(slices[0])
        capture.SOPClassUID = capture.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        assert send(gateway, [capture]) == {0: 1}
        strange = copy.deepcopy(slices[1])
        strange.StudyInstanceUID = "../../Doe"
        assert send(gateway, [strange]) == {0: 1}
        wait_until(lambda: len(pacs.objects) == 3, lambda: gateway.log)
        assert [n for _, n in gateway.runs()] == [1]
        names = {path.name for path in (gateway.work / "studies").iterdir()}
        assert len(names) == 2 and not any("Doe" in name for name in names)
        assert "Doe" not in gateway.log

    def test_old_studies_are_removed_and_files_of_others_stay(self, gateway, pacs, study, tmp_path):
        slices, uid = study
        gateway.start(keep_hours=0.5 / 3600)
        send(gateway, slices)
        wait_until(lambda: len(pacs.objects) == 3, lambda: gateway.log)
        gateway.says("removed, as it was delivered long ago")
        assert not (gateway.work / "studies" / uid).exists() and not list((gateway.work / "removing").iterdir())
        second, second_uid = make_study(tmp_path / "second")
        pacs.before = lambda: (gateway.work / "studies" / second_uid / "notes.txt").touch()
        send(gateway, second)
        gateway.says("holds files of others, which stay")
        assert [path.name for path in (gateway.work / "removing").rglob("*") if path.is_file()] == ["notes.txt"]


class TestStart:
    def test_work_folder_of_others(self, gateway, tmp_path):
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "thesis.txt").touch()
        assert "holds something else" in gateway.refusal(work_dir=tmp_path / "foreign")
        assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.txt"]
        gateway.start()
        assert "is used by another gateway" in gateway.refusal()
        assert "cannot be listened at" in gateway.refusal(work_dir=tmp_path / "new")

    def test_wrong_settings(self, gateway, tmp_path):
        assert "holds 0 bundles" in gateway.refusal(models=tmp_path / "nothing")
        assert "--send_to" in gateway.refusal(send_to="127.0.0.1:PACS")
        assert "--ae_title" in gateway.refusal(ae_title="A TITLE THAT IS TOO LONG")
        assert "--quiet_seconds" in gateway.refusal(quiet_seconds=-1)


class Killed(BaseException):
    pass


class TestAnyMoment:
    """Kills at each change of the disk, in this process."""

    @pytest.fixture
    def modules(self, monkeypatch):
        monkeypatch.syspath_prepend(ROOT / "deploy")
        return [importlib.import_module(f"gateway.{name}") for name in ("studies", "work_folder", "record")]

    @pytest.fixture
    def kill_at(self, monkeypatch):
        """Return a function that has the n-th change of the disk from now on end the process, before or after it."""
        count = {"left": -1, "is_before": True}

        def dying(change):
            def changed(*arguments, **options):
                count["left"] -= 1
                if count["left"] == 0 and count["is_before"]:
                    raise Killed
                try:
                    return change(*arguments, **options)
                finally:
                    if count["left"] == 0:  # after an error, for example of a file that is not there, too
                        raise Killed

            return changed

        monkeypatch.setattr(os, "fsync", lambda handle: None)  # no change, and slow
        for name in ("replace", "mkdir", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, dying(getattr(os, name)))

        def kill_at(left, is_before):
            count.update(left=left, is_before=is_before)

        return kill_at

    def live(self, modules, root, todo, sent, runs):
        """Live as a gateway until everything is done."""
        studies_module, work_folder, _ = modules
        marker = work_folder.open_work_folder(root)
        try:
            studies = studies_module.Studies(root, studies_module.Limits(quiet=0, free=0, pending=2))
            while todo:
                studies.add(*todo[0], True)
                todo.pop(0)  # the sender has been told
                if len(todo) in (1, 2):
                    self.work(modules, studies, sent, runs)
            while self.work(modules, studies, sent, runs):
                pass
        finally:
            marker.close()

    def work(self, modules, studies, sent, runs):
        if study := studies.next_delivery():
            for result in study.record.results:
                if not result.sent:
                    sent.append(result.sop_instance)
                    result.sent = True
                    studies.keep_record(study)
            studies.end_delivery(study)
        elif study := studies.next_run():
            output = studies.begin_run(study)
            if output is None:
                return True
            (output / "a.dcm").write_bytes(b"result")
            runs.append({path.name: path.read_bytes() for path in study.images.iterdir()})
            instance = f"{output.name}.1"
            result = modules[2].Result(str((output / "a.dcm").relative_to(study.folder)), "1.2", instance)
            is_bad = runs[-1].get("1.2.dcm") == b"bad"
            studies.end_run(study, [] if is_bad else [result], "It is bad." if is_bad else "")
        else:
            return False
        return True

    @pytest.mark.parametrize("is_before", [True, False])
    def test_nothing_is_lost_and_nothing_is_sent_twice(self, modules, kill_at, tmp_path, is_before):
        images = [("1.1", "1.1", b"first"), ("1.1", "1.2", b"bad"), ("1.1", "1.2", b"second"), ("1.1", "1.3", b"third")]
        n = 0
        has_died = True
        while has_died:
            n += 1
            root, todo, sent, runs = tmp_path / str(n), list(images), [], []
            kill_at(n, is_before)
            try:
                self.live(modules, root, todo, sent, runs)
                has_died = False
            except Killed:
                kill_at(-1, is_before)
                self.live(modules, root, todo, sent, runs)
            assert runs[-1] == {"1.1.dcm": b"first", "1.2.dcm": b"second", "1.3.dcm": b"third"}, n
            (study,) = (root / "studies").iterdir()
            record = modules[2].Record.read(study)
            assert record.state == "delivered" and sent[-1] == f"{record.run}.1", n
            assert max(Counter(sent).values()) <= 1 + has_died, n
            assert not list((root / "failed").iterdir()) and not list((root / "incoming").iterdir()), n
        assert n > 30

    def test_a_study_that_kills_the_gateway_is_given_up(self, modules, tmp_path):
        studies_module, work_folder, _ = modules
        for n_runs in range(4):
            marker = work_folder.open_work_folder(tmp_path / "work")
            studies = studies_module.Studies(tmp_path / "work", studies_module.Limits(quiet=0, free=0))
            if n_runs == 0:
                studies.add("1.1", "1.2", b"image", True)
            output = studies.begin_run(studies.next_run())
            assert (output is None) == (n_runs == 3)
            marker.close()
        reason = (tmp_path / "work" / "failed" / "1.1" / "reason.txt").read_text()
        assert reason == "The gateway was killed 3 times while it processed the study.\n"


@pytest.mark.deploy
@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason=f"NOT TESTED: no {PYTHON}; `make test-deploy` makes it")
def test_orthanc_on_both_ends_and_the_app(shipped, tmp_path):
    """Send a study of eight series from Orthanc to the gateway, whose results go to Orthanc."""
    study_of_contrasts(tmp_path / "study", *[{}] * 8)
    files = sorted((tmp_path / "study").rglob("*.dcm"))
    gateway = Gateway(tmp_path, f"127.0.0.1:{DICOM_PORT}:ORTHANC")
    gateway.models = shipped
    settings = {
        "DicomServerEnabled": True,
        "DicomAet": "ORTHANC",
        "DicomPort": DICOM_PORT,
        "DicomModalities": {"dpmm": ["DPMM", "127.0.0.1", gateway.port]},
    }
    with orthanc_server(tmp_path / "orthanc", **settings):
        try:
            store(files)
            gateway.start("--", "--series", "all", allow="ORTHANC", quiet_seconds=2)
            (study,) = ask("GET", "studies")
            uid = ask("GET", f"studies/{study}")["MainDicomTags"]["StudyInstanceUID"]
            sent = ask("POST", "modalities/dpmm/store", study)
            assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (len(files), 0)
            gateway.says("24 results delivered", 240)  # on a busy machine
            series = [
                ask("GET", f"series/{name}")["MainDicomTags"] for name in ask("GET", f"studies/{study}")["Series"]
            ]
            assert Counter(tags["Modality"] for tags in series) == {"MR": 8, "SEG": 8, "OT": 8, "SR": 8}
            assert {tags["SeriesNumber"] for tags in series if tags["Modality"] == "SEG"} == {
                f"{number}91" for number in range(1, 9)
            }
            # A PACS that sends the whole study again, with the results: nothing is run.
            again = ask("POST", "modalities/dpmm/store", study)
            assert (again["InstancesCount"], again["FailedInstancesCount"]) == (len(files) + 24, 0)
            gateway.says("came back and is ignored")
            time.sleep(3)
            assert gateway.record(uid)["state"] == "delivered"
            assert gateway.log.count("the app is run") == 1
            assert gateway.end() == 0
            assert "Doe" not in gateway.log
        finally:
            gateway.end(signal.SIGKILL)


def ask(method, path, content=None):
    """Ask Orthanc's REST interface."""
    answer = requests.request(method, f"{ADDRESS}/{path}", data=content, timeout=60)
    answer.raise_for_status()
    return answer.json()
