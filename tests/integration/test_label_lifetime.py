"""A MONAI Label server that is killed, asked by web pages, opened to other machines, or used by many at once."""

import http.server
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests

from label.fit_record import CANDIDATE, RECORD, recorded_fit, settle_fit
from tests.integration.label_server import PYTHON, label_server
from tests.tiny_cases import brain, save

SERVED = 17


def flags(folder, shipped):
    return ("--bundles", str(shipped), "--studies", str(folder / "in"), "--normals", str(folder / "normals"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lifetime")
    for seed in range(SERVED - 4):
        save(folder / "in" / f"case-{seed:02}.nii.gz", brain(seed))
    for seed in range(4):
        save(folder / "normals" / f"normal-{seed}.nii.gz", brain(20 + seed))
    return folder


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


class TestFitRecord:
    def test_model_is_replaced_with_its_record(self, tmp_path):
        model = tmp_path / "anomaly" / "models" / "model.pt"
        model.parent.mkdir(parents=True)
        model.write_bytes(b"old")
        assert settle_fit(model) == ""
        with recorded_fit(model, 5) as candidate:
            candidate.parent.mkdir()
            candidate.write_bytes(b"new")
            assert model.read_bytes() == b"old"
        assert model.read_bytes() == b"new" and not candidate.parent.exists()
        assert "was fitted here on 5 images" in settle_fit(model)
        model.write_bytes(b"of somebody else")
        assert "is not that of its last fit here" in settle_fit(model)

    def test_two_fits_of_a_model_do_not_mix(self, tmp_path):
        model = tmp_path / "anomaly" / "models" / "model.pt"
        model.parent.mkdir(parents=True)
        model.write_bytes(b"old")
        with recorded_fit(model, 5) as candidate:
            candidate.parent.mkdir()
            candidate.write_bytes(b"new")
            with pytest.raises(ValueError, match="runs already"), recorded_fit(model, 5):
                pass
        assert model.read_bytes() == b"new" and "was fitted here" in settle_fit(model)
        (model.parent / RECORD).write_text("")
        assert "was interrupted" in settle_fit(model)

    def test_failed_fit_keeps_the_model(self, tmp_path):
        model = tmp_path / "anomaly" / "models" / "model.pt"
        model.parent.mkdir(parents=True)
        model.write_bytes(b"old")
        with pytest.raises(RuntimeError, match="left no model"), recorded_fit(model, 5):
            pass
        assert model.read_bytes() == b"old" and "failed" in settle_fit(model)

    @pytest.mark.parametrize("is_complete", [False, True])
    def test_killed_fit_is_settled(self, tmp_path, is_complete):
        model = tmp_path / "anomaly" / "models" / "model.pt"
        candidate = model.parent / CANDIDATE / model.name
        candidate.parent.mkdir(parents=True)
        model.write_bytes(b"old")
        candidate.write_bytes(b"new")
        digest = "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"  # of b"new"
        record = {"state": "complete" if is_complete else "begun", "began": "today", "images": 5, "replaces": "x"}
        (model.parent / RECORD).write_text(json.dumps(record | {"ended": "today", "model": digest}))
        said = settle_fit(model)
        assert ("was fitted here" if is_complete else "was interrupted") in said
        assert model.read_bytes() == (b"new" if is_complete else b"old") and not candidate.parent.exists()
        assert ("was fitted here" if is_complete else "interrupted") in settle_fit(model)


@pytest.mark.label
class TestServer:
    @pytest.fixture(scope="class")
    def server(self, folder, shipped):
        with label_server(folder / "served", *flags(folder, shipped)) as running:
            yield running

    def test_batch_is_finished_in_order(self, server, folder):
        url = f"{server.address}/batch/infer/{next(iter(server.get('info/').json()['models']))}"
        defaults = {"device": "cuda", "multi_gpu": True, "gpus": "all", "max_workers": 1, "max_batch_size": 0}
        damaged = next((folder / "served").glob("studies-*")) / "damaged.nii.gz"
        damaged.write_text("put there by hand")
        wait_for(lambda: "damaged" in server.get("datastore/", output="all").json()["objects"])
        task = requests.post(url, json=defaults, timeout=60).json()
        assert task["status"] == "RUNNING" and task["progress"]["total"] == SERVED + 1
        assert requests.post(url, json={}, timeout=60).status_code == 429
        wait_for(lambda: server.get("batch/infer").json()["status"] != "RUNNING")
        task = server.get("batch/infer").json()
        assert task["progress"] == {"done": SERVED, "failed": 1, "total": SERVED + 1} and task["status"] == "ERROR"
        assert any("damaged: failed: " in line for line in task["details"])
        labels = sorted(path.name for path in damaged.parent.glob("labels/original/*"))
        assert len(labels) == SERVED
        damaged.unlink()
        assert requests.post(url, json={"false_region": 1}, timeout=60).status_code == 422
        assert server.send("DELETE", "batch/infer").status_code == 200

    def test_info_answers_during_inference(self, server):
        (model,) = server.get("info/").json()["models"]
        cases = [f"case-{index:02}" for index in range(8)]
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(server.infer, model, case, "json") for case in cases]
            while not all(answer.done() for answer in answers):
                assert server.get("info/").status_code == 200
        assert {answer.result().status_code for answer in answers} == {200}

    def test_other_pages_get_no_answer(self, server):
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example"},
            {"Host": ""},
            {"Host": "[::1"},
            {"Origin": "http://["},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
            {"Origin": "http://evil.example", "Access-Control-Request-Method": "DELETE"},
        ):
            for method in ("GET", "OPTIONS", "DELETE", "POST"):
                for path in ("info/", "datastore/image?image=case-00", "static/favicon.ico"):
                    answer = server.send(method, path, headers=headers)
                    assert answer.status_code in (400, 403), (headers, method, path)
                    assert "access-control-allow-origin" not in answer.headers
        assert server.send("GET", "info/", headers={"Origin": server.address}).status_code == 200

    def test_anomaly_map_is_an_answer(self, server, tmp_path):
        (model,) = server.get("info/").json()["models"]
        answer = server.infer(model, "case-00", "map")
        (tmp_path / "map.nii.gz").write_bytes(answer.content)
        scores = nib.load(tmp_path / "map.nii.gz")
        assert scores.get_data_dtype() == np.float32 and len(np.unique(scores.dataobj)) > 100


@pytest.mark.label
class TestAccess:
    def test_pages_are_named_and_tokens_checked(self, folder, shipped, monkeypatch):
        made = subprocess.run([PYTHON, "-c", TOKENS], capture_output=True, text=True, check=True)
        tokens = json.loads(made.stdout)

        class Realm(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"public_key": tokens["public_key"]}).encode())

            def log_message(self, *_):
                pass

        realm = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Realm)
        threading.Thread(target=realm.serve_forever, daemon=True).start()
        monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
        monkeypatch.setenv("MONAI_LABEL_AUTH_REALM_URI", f"http://127.0.0.1:{realm.server_port}")
        page = "http://viewer.example:3000"
        monkeypatch.setenv("MONAI_LABEL_CORS_ORIGINS", json.dumps([page]))
        try:
            with label_server(folder / "tokens", "--host", "0.0.0.0", *flags(folder, shipped)) as server:

                def status(method, path, token):
                    headers = {"Authorization": f"Bearer {tokens[token]}"} if token else {}
                    return server.send(method, path, headers=headers).status_code

                assert status("GET", "info/", "") == status("GET", "info/", "forged") == 401
                assert status("GET", "info/", "expired") == status("GET", "info/", "unsigned") == 401
                assert status("GET", "info/", "user") == 200
                assert status("DELETE", "batch/infer", "user") == 403
                assert status("DELETE", "batch/infer", "admin") == 200
                assert status("POST", "infer/nothing", "") == 401, "nothing is told without a token"
                headers = {"Authorization": f"Bearer {tokens['user']}"}
                answer = server.send("GET", "info/", headers={**headers, "Origin": page})
                assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page
                other = server.send("GET", "info/", headers={**headers, "Origin": "http://viewer.example"})
                assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
        finally:
            realm.shutdown()


TOKENS = """
import base64, json, time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

key, other = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
def token(roles, key=key, expires=3600, algorithm="RS256"):
    payload = {"preferred_username": "x", "realm_access": {"roles": roles}, "exp": time.time() + expires}
    return jwt.encode(payload, key, algorithm=algorithm)
user = ["monailabel-user"]
print(json.dumps({
    "public_key": base64.b64encode(key.public_key().public_bytes(encoding, form)).decode(),
    "user": token(user), "admin": token([*user, "monailabel-admin"]), "forged": token(user, other),
    "expired": token(user, expires=-60), "unsigned": token(user, None, algorithm="none"),
}))
"""


@pytest.mark.label
def test_fit_ends_with_the_server(folder, shipped):
    def start_fit(server):
        (model,) = server.get("info/").json()["models"]
        requests.post(f"{server.address}/train/{model}", json={"max_epochs": 100_000}, timeout=60)
        wait_for(lambda: [path for path in output.glob("bundles/*/models/fit.json") if '"begun"' in path.read_text()])

    output = folder / "killed"
    with label_server(output, *flags(folder, shipped)) as server:
        start_fit(server)
        command = next(process for process in psutil.process_iter() if is_running(process, output))
        family = command.children(recursive=True)
        assert len(family) >= 2
        command.kill()  # so the server is ended by its command, and the fit by the server
        _, alive = psutil.wait_procs(family, 30)
        assert not alive
    (file,) = output.glob("bundles/*/models/model.pt")
    assert file.read_bytes() == (shipped / "models" / "model.pt").read_bytes()
    with label_server(output, *flags(folder, shipped)) as server:
        assert "was interrupted; its model is the one from before" in server.log.read_text()
        start_fit(server)  # the end of the server does not wait for it


def is_running(process, output):
    try:
        return "label" in process.cmdline() and str(output) in process.cmdline()
    except psutil.Error:
        return False
