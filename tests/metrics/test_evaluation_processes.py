"""Evaluations by several processes, with the results of one process."""

import json
import os
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


def run_in_two_processes(data, output):
    configs = [str(ROOT / "configs" / f"{name}.json") for name in ("inference", "evaluate", "multi_gpu_inference")]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "monai.bundle", "run", "evaluation", "--config_file", str(configs), "--bundle_root", str(ROOT)),
        *("--dataset_dir", str(data / "cases"), "--label_dir", str(data / "labels"), "--output_dir", str(output)),
        *("--ckpt_path", str(data / "model.pt"), "--n_resamplings", "30", "--score", "cosine"),
        *(argument for name, value in TINY.items() for argument in (f"--{name}", str(value))),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert done.returncode != 0
    return done.stderr


class TestProcesses:
    def test_two_processes_equal_one(self, data, tmp_path):
        settings = {"score": "cosine", "label_dir": str(data / "labels"), "n_resamplings": 30}
        for message in (
            run_evaluation(data / "model.pt", data / "cases", tmp_path / "one", **settings),
            run_in_two_processes(data, tmp_path / "two"),
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
        assert sorted(shared["cases"], key=lambda case: case["case"]) == summary["cases"]
        assert shared["failed"] == summary["failed"] and list(summary["failed"]) == ["flat"]

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
