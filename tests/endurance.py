"""Command ``python -m tests.endurance``: good and bad requests, several at a time, to a MONAI Label server.

It serves the sample model and two heads, and fails if the server ends, if bad input is answered with a status of 500 or
more, if a good request fails, or if the memory of the server grows by more than 5 % after the first fifth.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

from tests.integration.label_server import LabelServer, label_server

CASES = Path("demo_output/heads/cases")
MAX_GROWTH = 0.05
BAD_PARAMS = (
    {"smoothing_mm": 1e9},
    {"threshold": None},
    {"threshold": [1, 2]},
    {"threshold": "2.0"},
    {"extent": -1},
    {"unknown": 1},
    {"image": "/etc/hostname"},
    {"result_extension": "/../x.nii.gz"},
    {"threshold": "$print()"},
    {"device": "cuda:77"},
)


def good_requests(server: LabelServer, cases: list[str]) -> list:
    """Return functions that send requests which must succeed."""
    path = CASES / f"{cases[0]}.nii.gz"

    def upload() -> requests.Response:
        with path.open("rb") as file:
            return server.infer("anomaly", "", "image", {"file": (path.name, file)})

    return [
        lambda: server.infer("anomaly", random.choice(cases), "json"),
        lambda: server.infer("anomaly", random.choice(cases), "image", threshold=random.choice([1.0, 2.0])),
        lambda: server.infer("anomaly", random.choice(cases), "map"),
        lambda: server.infer_in_session("anomaly", "Volume", path),
        lambda: server.get("info/"),
        lambda: server.get("datastore/", output="all"),
        lambda: server.send("POST", "activelearning/random", json={}),
        upload,
    ]


def bad_requests(server: LabelServer, cases: list[str]) -> list:
    """Return functions that send requests which must be refused."""
    text = {"file": ("x.nii.gz", b"text")}
    return [
        lambda: server.infer("anomaly", random.choice(cases), "json", **random.choice(BAD_PARAMS)),
        lambda: server.infer("anomaly", "nobody", "json"),
        lambda: server.infer("anomaly", "../x", "json"),
        lambda: server.infer("nothing", cases[0], "json"),
        lambda: server.infer("anomaly", cases[0], "dicom_seg"),
        lambda: server.infer("anomaly", "", "image", text),
        lambda: server.send("DELETE", "datastore/", params={"id": cases[0]}),
        lambda: server.send("PUT", "datastore/label", params={"image": cases[0]}, files={"label": text["file"]}),
        lambda: server.send("POST", "infer/anomaly", params={"session_id": "bogus"}),
        lambda: server.send("POST", "infer/anomaly", data={"params": "{"}, params={"image": cases[0]}),
        lambda: server.send("POST", "train/anomaly", json={"max_epochs": "many"}),
        lambda: server.send("GET", "info/", headers={"Origin": "http://evil.example"}),
    ]


def main() -> None:
    """Send the requests and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at_once", type=int, default=8)
    options = parser.parse_args()
    cases = sorted(path.name.removesuffix(".nii.gz") for path in CASES.glob("*.nii.gz"))
    with tempfile.TemporaryDirectory() as folder, label_server(Path(folder, "served")) as server:
        process = serving(server)
        good, bad = good_requests(server, cases), bad_requests(server, cases)
        statuses: Counter[tuple[str, int]] = Counter()
        memory, info = [], []

        def send(index: int) -> None:
            kind, functions = ("bad", bad) if index % 3 == 0 else ("good", good)
            function = functions[index // 3 % len(functions)]
            answer = function()
            statuses[kind, answer.status_code] += 1
            start = time.monotonic()
            server.get("info/")
            info.append(time.monotonic() - start)
            memory.append(process.memory_info().rss)

        with ThreadPoolExecutor(options.at_once) as pool:
            list(pool.map(send, range(options.requests)))
        fifth = max(len(memory) // 5, 1)
        growth = max(memory[-fifth:]) / max(memory[:fifth]) - 1
        figures = {
            "statuses": {f"{kind} {status}": count for (kind, status), count in sorted(statuses.items())},
            "memory_gb": [round(max(memory[:fifth]) / 1e9, 3), round(max(memory[-fifth:]) / 1e9, 3)],
            "growth": round(growth, 4),
            "info_seconds": {"median": sorted(info)[len(info) // 2], "maximum": max(info)},
        }
        print(json.dumps(figures, indent=2))
        wrong = [pair for pair in statuses if (pair[0] == "good") != (pair[1] == 200) or pair[1] >= 500]
        if wrong or growth > MAX_GROWTH or not process.is_running():
            raise SystemExit(f"failed: {wrong or 'memory grows, or the server ended'}")


def serving(server: LabelServer) -> psutil.Process:
    """Return the process that listens at the address of a server."""
    port = int(server.address.rpartition(":")[2])
    (connection,) = [
        each for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port
    ]
    return psutil.Process(connection.pid)


if __name__ == "__main__":
    main()
