"""The demo with the real weights and fewer epochs: lesions score above healthy subjects."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from demo.population import N_HEALTHY, N_LESIONED, lesion, subject
from tests.tiny_bundle import ROOT

pytestmark = pytest.mark.slow


class TestPopulation:
    def test_subject_depends_on_its_seed(self):
        brain = torch.zeros(99, 117, 95)
        brain[20:80, 20:100, 20:80] = 0.7
        (first, mask), (again, _) = subject(brain, 7, True), subject(brain, 7, True)
        other, none = subject(brain, 8, False)
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert mask.any() and not none.any()
        assert first.isfinite().all() and first.min() >= 0

    def test_lesion_lies_inside(self):
        inside = torch.zeros(60, 60, 60, dtype=torch.bool)
        inside[10:50, 10:50, 30:60] = True
        mask = lesion(inside, np.random.default_rng(0))
        assert 0 < mask.sum() < 2000
        assert not mask[~inside].any()


class TestDemo:
    @pytest.mark.real_weights
    def test_lesions_score_above_healthy(self, tmp_path):
        command = [sys.executable, "-m", "demo", "--output_dir", str(tmp_path), "--max_epochs", "3"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Dice" in done.stdout and "python -m monai.bundle run inference" in done.stdout
        summary = json.loads((tmp_path / "results" / "summary.json").read_text())
        assert summary["encoder_weights_digest"]
        scores = {entry["case"]: entry["image_score"] for entry in summary["cases"]}
        healthy = [score for case, score in scores.items() if case.startswith("healthy")]
        lesioned = [score for case, score in scores.items() if case.startswith("lesion")]
        assert len(healthy) == N_HEALTHY and len(lesioned) == N_LESIONED
        assert np.median(lesioned) > max(healthy)
        for case in scores:
            assert (tmp_path / "results" / case / f"{case}_overlay.png").stat().st_size > 10_000
