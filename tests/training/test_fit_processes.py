"""Fits in subprocesses: killed and resumed, and distributed among several."""

import json
import os
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.models.mixture import SCORE_KINDS
from tests.tiny_bundle import ROOT

pytestmark = pytest.mark.slow


EPOCHS = 40


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normals")
    for seed in range(7):
        image = np.random.default_rng(seed).normal(500, 100, (30, 30, 3)).astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{seed}.nii.gz")
    return folder


def command(normals, folder, *overrides, configs=("train",), launcher=()):
    files = str([str(ROOT / "configs" / f"{name}.json") for name in configs])
    return [
        *(sys.executable, *launcher, "-m", "monai.bundle", "run", "training", "--config_file", files),
        *("--bundle_root", str(ROOT), "--dataset_dir", str(normals), "--output_dir", str(folder)),
        *("--ckpt_path", str(folder / "model.pt"), "--embedding_store", str(normals.parent / "store")),
        *("--pretrained_encoder", "@encoder", "--encoder#vit_options", "{'depth':2,'embed_dim':32,'num_heads':2}"),
        *("--image_size", "56", "--layers", "[-1]", "--n_components", "6", "--batch_slices", "5"),
        *(
            "--max_epochs",
            str(EPOCHS),
            "--calibration_folds",
            "2",
            "--patience",
            "None",
            "--show_progress",
            "False",
            *overrides,
        ),
    ]


def run(*arguments, **keywords):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(*arguments, **keywords), capture_output=True, text=True, cwd="/", env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def uninterrupted(normals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(normals, folder)
    return torch.load(folder / "model.pt", weights_only=True)


def tensors(state):
    return {name: value.nan_to_num() for name, value in state.items() if isinstance(value, torch.Tensor)}


class TestFitProcesses:
    def test_killed_and_resumed_fit_gives_the_same_model(self, normals, uninterrupted, tmp_path):
        (tmp_path / "dying.py").write_text(
            "import os, signal\n"
            "from ignite.engine import Events\n"
            "class Killer:\n"
            "    def attach(self, engine):\n"
            "        engine.add_event_handler(Events.EPOCH_COMPLETED(once=3), self)\n"
            "    def __call__(self, engine):\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        (tmp_path / "dying.json").write_text(json.dumps({"+train#handlers": [{"_target_": "dying.Killer"}]}))
        folder, paths = tmp_path / "fit", (str(tmp_path), os.environ.get("PYTHONPATH"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        killed = subprocess.run(
            command(normals, folder, configs=("train", tmp_path / "dying")),
            capture_output=True,
            cwd="/",
            env=environment,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:].decode()
        assert not (folder / "model.pt").exists()
        assert "going on after epoch 3" in run(normals, folder, "--resume", "True")
        resumed = tensors(torch.load(folder / "model.pt", weights_only=True))
        for name, value in tensors(uninterrupted).items():
            assert torch.equal(resumed[name], value), name

    def test_two_processes_fit_the_model_of_one(self, normals, uninterrupted, tmp_path):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        run(
            normals,
            tmp_path,
            "--embedding_store",
            str(tmp_path / "own"),
            configs=("train", "multi_gpu_train"),
            launcher=launcher,
        )
        shared = tensors(torch.load(tmp_path / "model.pt", weights_only=True))
        expected = tensors(uninterrupted)
        # a reconstruction error is a small difference of large numbers: rounding has more effect on these thresholds
        subspace = SCORE_KINDS.index("subspace")
        limits, of_one = (state["calibration.quantiles"][subspace] for state in (shared, expected))
        torch.testing.assert_close(limits, of_one, rtol=1e-3, atol=0)
        limits.copy_(of_one)
        for name, value in expected.items():
            torch.testing.assert_close(
                shared[name], value, rtol=1e-5, atol=1e-5, msg=lambda said, name=name: name + said
            )
