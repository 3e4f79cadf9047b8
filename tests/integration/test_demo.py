"""The demo with the real weights and fewer epochs: lesions score above healthy subjects."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from demo.__main__ import print_table
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


def save_mask(path, *balls):
    """Write a mask of cubes around these voxels."""
    mask = np.zeros((20, 20, 6), np.uint8)
    for ball in balls:
        mask[tuple(slice(index - 2, index + 2) for index in ball)] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), path)


class TestTable:
    @pytest.fixture
    def rows(self, tmp_path, capsys):
        """Print the table of four cases; return the words of its lines by their first, and its last line."""
        here, there, elsewhere = (5, 5, 3), (14, 14, 3), (5, 14, 3)
        cases = {  # lesion, regions, flagged
            "healthy-01": (None, [], False),
            "healthy-02": (None, [there], None),
            "lesion-01": (here, [here, elsewhere], True),
            "lesion-02": (here, [there], False),
        }
        entries = []
        for case, (lesion_centre, regions, flagged) in cases.items():
            save_mask(tmp_path / "results" / case / f"{case}_mask.nii.gz", *regions)
            if lesion_centre:
                save_mask(tmp_path / "masks" / f"{case}.nii.gz", lesion_centre)
            peaks = [{"peak_voxel": list(region)} for region in regions]
            entries.append({"case": case, "flagged": flagged, "n_regions": len(regions), "regions": peaks})
        (tmp_path / "results" / "summary.json").write_text(json.dumps({"cases": entries}))
        print_table(tmp_path / "results", tmp_path / "masks")
        lines = capsys.readouterr().out.strip().splitlines()
        return {line.split()[0]: line.split()[1:] for line in lines if line}, lines[-1]

    def test_flagged_lesion_false_alarms_and_dice(self, rows):
        assert rows[0]["healthy-01"] == ["no", "-", "0", "-"]
        assert rows[0]["healthy-02"] == ["-", "-", "1", "-"]
        assert rows[0]["lesion-01"] == ["yes", "found", "1", "0.67"]
        assert rows[0]["lesion-02"] == ["no", "missed", "1", "0.00"]

    def test_sum(self, rows):
        assert rows[1] == (
            "2 of 2 healthy cases not flagged, 1 of 2 with a lesion flagged, 1 of 2 lesions found, 3 false alarms"
        )


class TestDemo:
    @pytest.mark.real_weights
    def test_lesions_score_above_healthy(self, tmp_path):
        command = [sys.executable, "-m", "demo", "--output_dir", str(tmp_path), "--max_epochs", "3"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        last = done.stdout.strip().splitlines()[-1]
        assert f"{N_HEALTHY} of {N_HEALTHY} healthy cases not flagged" in last
        assert f"{N_LESIONED} of {N_LESIONED} lesions found" in last
        assert "python -m monai.bundle run inference" in done.stdout
        heads = "1 of 1 healthy cases not flagged, 1 of 1 with a lesion flagged, 1 of 1 lesions found, 0 false alarms"
        assert heads in done.stdout  # by the sample model
        summary = json.loads((tmp_path / "results" / "summary.json").read_text())
        assert summary["encoder_weights_digest"]
        scores = {entry["case"]: entry["image_score"] for entry in summary["cases"]}
        healthy = [score for case, score in scores.items() if case.startswith("healthy")]
        lesioned = [score for case, score in scores.items() if case.startswith("lesion")]
        assert len(healthy) == N_HEALTHY and len(lesioned) == N_LESIONED
        assert np.median(lesioned) > max(healthy)
        for case in scores:
            assert (tmp_path / "results" / case / f"{case}_overlay.png").stat().st_size > 10_000
