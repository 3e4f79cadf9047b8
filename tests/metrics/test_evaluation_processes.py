"""Inference and evaluations by several processes, with the results of one process."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from scripts.distributed import gather, partition
from scripts.errors import InputError
from tests.metrics.test_handler import run_evaluation
from tests.tiny_bundle import ROOT, TINY, run_bundle
from tests.tiny_cases import brain, save

pytestmark = pytest.mark.slow

LESION = (slice(14, 22), slice(24, 32), slice(1, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make a model, four cases with labels, and one without contrast."""
    folder = tmp_path_factory.mktemp("data")
    label = np.zeros((40, 46, 5), np.uint8)
    label[LESION] = 1
    for seed in range(4):
        save(folder / "normals" / f"{seed}.nii.gz", brain(seed))
        save(folder / "cases" / f"{seed}.nii.gz", brain(10 + seed, lesion=LESION if seed else None))
        save(folder / "labels" / f"{seed}.nii.gz", label * np.uint8(seed > 0))
    save(folder / "cases" / "flat.nii.gz", np.full(label.shape, 7, np.int16))
    paths = {"dataset_dir": "normals", "output_dir": "fit", "ckpt_path": "model.pt"}
    run_bundle("training", **{name: str(folder / path) for name, path in paths.items()}, log_dir=None)
    return folder


def run_in_two_processes(run_id, configs, folder=ROOT, **settings):
    files = [str(ROOT / "configs" / f"{name}.json") if "/" not in name else name for name in configs]
    settings = {**TINY, "score": "cosine", "bundle_root": ROOT, **settings}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "monai.bundle", "run", run_id, "--config_file", str(files)),
        *(argument for name, value in settings.items() for argument in (f"--{name}", str(value))),
    ]
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert done.returncode != 0
    return done.stderr


def report_of(folder):
    return re.sub("Written [^<]*", "", (folder / "report.html").read_text())


class TestProcesses:
    def test_two_processes_equal_one(self, data, tmp_path):
        settings = {"label_dir": str(data / "labels"), "n_resamplings": 30}
        paths = {"dataset_dir": data / "cases", "output_dir": tmp_path / "two", "ckpt_path": data / "model.pt"}
        configs = ("inference", "evaluate", "multi_gpu_inference")
        for message in (
            run_evaluation(data / "model.pt", data / "cases", tmp_path / "one", score="cosine", **settings),
            run_in_two_processes("evaluation", configs, **settings, **paths),
        ):
            assert "flat: every voxel is 7" in message, message[-3000:]
        metrics, shared = (json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("one", "two"))
        assert metrics["pooled"].keys() == shared["pooled"].keys()
        for name, entry in metrics["pooled"].items():
            is_defined = entry["value"] is not None
            assert shared["pooled"][name] == (pytest.approx(entry, rel=1e-9) if is_defined else entry), name
        for name in ("cases", "failed", "unlabelled", "thresholds", "lesion_size_limits"):
            assert shared[name] == metrics[name], name
        assert shared["curves"]["froc"] == metrics["curves"]["froc"]
        summary, shared = (json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("one", "two"))
        assert shared == summary and list(summary["failed"]) == ["flat"]
        pages = [report_of(tmp_path / folder) for folder in ("one", "two")]
        assert pages[0] == pages[1]
        assert pages[0].count('class="viewer"') == 4 and "Comparison with the labels" in pages[0]

    def test_process_that_fails_waits_for_the_report(self, data, tmp_path):
        (tmp_path / "slow.py").write_text(
            "import os, time\n"
            "from ignite.engine import Events\n"
            "class Sleeper:\n"
            "    def attach(self, engine):\n"
            "        engine.add_event_handler(Events.STARTED, self)\n"
            "    def __call__(self, engine):\n"
            "        if not engine.has_event_handler(self.sleep):\n"
            "            engine.add_event_handler(Events.COMPLETED, self.sleep)\n"
            "    def sleep(self, engine):\n"
            "        time.sleep(3 if os.environ['RANK'] == '0' else 0)\n"
        )
        overlay = tmp_path / "overlay.json"
        overlay.write_text(json.dumps({"+handlers": [{"_target_": "slow.Sleeper"}]}))
        shutil.copytree(data / "cases", tmp_path / "in")
        (tmp_path / "in" / "1.nii.gz").write_bytes(b"damaged")  # the second case is the first of the second process
        message = run_in_two_processes(
            "inference",
            ("inference", "multi_gpu_inference", str(overlay)),
            tmp_path,
            dataset_dir=tmp_path / "in",
            output_dir=tmp_path / "out",
            ckpt_path=data / "model.pt",
        )
        assert message.count("2 of 5 cases failed (the others are finished)") == 1, message[-3000:]
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert [entry["case"] for entry in summary["cases"]] == ["0", "2", "3"]
        assert [*summary["failed"]] == ["1", "flat"]
        assert report_of(tmp_path / "out").count('class="viewer"') == 3

    def test_partition(self, monkeypatch):
        assert partition("abcde") == [*"abcde"] and gather("abcde") == [*"abcde"]
        monkeypatch.setattr("scripts.distributed.idist.get_world_size", lambda: 3)
        shares = []
        for rank in range(3):
            monkeypatch.setattr("scripts.distributed.idist.get_rank", lambda rank=rank: rank)
            shares += partition("abcde")
        assert sorted(shares) == [*"abcde"]
        with pytest.raises(InputError, match="3 processes need a case each, at least; got 2"):
            partition("ab")
