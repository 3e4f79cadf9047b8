"""Export of the bundle for MONAI Label, MONAI Deploy or another machine."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import InputError, cause_of
from scripts.export_bundle import export_bundle
from scripts.files import RECORD
from scripts.models.checkpoint import save_network
from scripts.models.encoder import DINOv2PatchEncoder
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from scripts.models.weights import load_encoder_weights
from tests.tiny_bundle import ROOT, TINY, run_bundle
from tests.tiny_cases import brain, save

pytestmark = pytest.mark.slow


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied(shipped, tmp_path):
    """Return an exported copy, and a function that exports into the same folder again."""
    shutil.copytree(shipped, tmp_path / "b")
    return tmp_path / "b", lambda: export_bundle(shipped / "models" / "model.pt", tmp_path / "b", **TINY)


class TestExportBundle:
    def test_copy_gives_the_same_masks(self, shipped, tmp_path):
        save(tmp_path / "in" / "case.nii.gz", brain(9, lesion=(slice(18, 22), slice(20, 24), slice(2, 3))))
        bundle = tmp_path / "elsewhere"
        shutil.copytree(shipped, bundle)
        command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(bundle)]
        command += ["--config_file", str(bundle / "configs" / "inference.json"), "--dataset_dir", str(tmp_path / "in")]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(bundle)}, check=True)
        model = str(shipped / "models" / "model.pt")
        run_bundle("inference", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"), ckpt_path=model)
        for kind in ("mask", "map"):
            file = f"case/case_{kind}.nii.gz"
            expected, result = (nib.load(folder / file).get_fdata() for folder in (bundle / "output", tmp_path / "out"))
            np.testing.assert_array_equal(expected, result)

    def test_settings_are_written_into_both_configs(self, shipped, tmp_path):
        export_bundle(shipped / "models" / "model.pt", tmp_path / "b", **TINY, target_fpr=0.05, threshold=1.5)
        for name in ("train", "inference"):
            config = json.loads((tmp_path / "b" / "configs" / f"{name}.json").read_text())
            assert (config["target_fpr"], config["n_components"]) == (0.05, 8)
            assert config.get("threshold") == {"train": None, "inference": 1.5}[name]

    def test_runtime_cache_is_copied(self, shipped, tmp_path):
        shutil.copy(shipped / "models" / "model.pt", tmp_path)
        (tmp_path / "model.compiled" / "key").mkdir(parents=True)
        (tmp_path / "model.compiled" / "key" / "blocks.onnx").write_text("compiled")
        export_bundle(tmp_path / "model.pt", tmp_path / "b", **TINY)
        assert (tmp_path / "b" / "models" / "model.compiled" / "key" / "blocks.onnx").read_text() == "compiled"

    def test_foreign_bundle_is_left_alone(self, shipped, tmp_path):
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "metadata.json").write_text('{"name": "of somebody else"}')
        with pytest.raises(InputError, match="is left alone"):
            export_bundle(shipped / "models" / "model.pt", tmp_path, **TINY)
        with pytest.raises(InputError, match="is left alone"):
            export_bundle(shipped / "models" / "model.pt", ROOT / "docs" / "copy", **TINY)

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"ckpt_path": "no.pt"}, "There is no fitted model no.pt"),
            ({"beauty": 3}, "There is no id 'beauty'"),
            ({"treshold": 3}, "did you mean 'threshold'?"),
            ({"threshold": float("nan")}, "threshold must be a number of at least 0; got nan"),
            ({"output": str(ROOT)}, "is left alone"),
            ({"image_size": 70}, "image_size=56"),
            ({"score": "subspaces"}, "score must be one of"),
        ],
    )
    def test_wrong_settings_raise(self, shipped, tmp_path, settings, expected):
        arguments = {"ckpt_path": shipped / "models" / "model.pt", "output": tmp_path / "b", **TINY, **settings}
        with pytest.raises((InputError, RuntimeError)) as caught:
            export_bundle(**arguments)
        assert isinstance(cause_of(caught.value), InputError) and expected in str(cause_of(caught.value))
        assert list(tmp_path.iterdir()) == []

    def test_unwritable_output_raises(self, shipped, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match=r"output .* cannot be written \(.*\); give another folder"):
            export_bundle(shipped / "models" / "model.pt", tmp_path / "file" / "b", **TINY)
        with pytest.raises(InputError, match="output must name a folder"):
            export_bundle(shipped / "models" / "model.pt", "", **TINY)


class TestEncoderWeights:
    def test_encoder_of_the_fitted_model(self, shipped):
        fitted = torch.load(shipped / "models" / "model.pt", weights_only=True)
        encoder = DINOv2PatchEncoder(image_size=56, vit_options=TINY["encoder#vit_options"])
        load_encoder_weights(encoder, models_dir=shipped / "models")
        assert encoder.weights_digest == fitted["_extra_state"]["weights_digest"]
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, fitted[f"encoder.{name}"])

    def test_encoder_with_registers(self, tmp_path):
        name, options = "dinov2_vits14_reg", TINY["encoder#vit_options"]
        fitted, other = (DINOv2PatchEncoder(name, 56, vit_options=options) for _ in range(2))
        save_network(PatchAnomalyNetwork(fitted, DirichletProcessMixture(2, 32)), tmp_path / "model.pt")
        load_encoder_weights(other, models_dir=tmp_path)
        images = torch.rand(1, 3, 56, 56)
        assert torch.equal(other(images), fitted(images))
        for stranger in ("dinov2_vits14", "dinov2_vitb14"):
            with pytest.raises(InputError, match=r"no encoder weights|give weights_path"):
                load_encoder_weights(DINOv2PatchEncoder(stranger, 56, vit_options=options), models_dir=tmp_path)


class TestReplacement:
    def test_failure_keeps_the_older_copy(self, shipped, tmp_path):
        export_bundle(shipped / "models" / "model.pt", tmp_path / "b", **TINY)
        before = (tmp_path / "b" / "models" / "model.pt").stat()
        (tmp_path / "bad.pt").write_bytes(b"no model")
        with pytest.raises(InputError, match="cannot be read"):
            export_bundle(tmp_path / "bad.pt", tmp_path / "b", **TINY)
        assert (tmp_path / "b" / "models" / "model.pt").stat() == before

    def test_unchanged_copy_is_replaced(self, copied):
        copy, ship_again = copied
        (copy / "scripts" / "__pycache__").mkdir()
        (copy / "scripts" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
        (copy / "models" / "model.compiled").mkdir(exist_ok=True)
        (copy / "models" / "model.compiled" / "blocks.onnx").write_bytes(b"compiled")
        before = files_of(copy / "configs")
        ship_again()
        assert files_of(copy / "configs") == before
        assert not (copy / "models" / "model.compiled").exists()
        assert [path.name for path in copy.parent.iterdir()] == ["b"]

    @pytest.mark.parametrize("name", ["output/p1/p1_mask.nii.gz", "notes.txt", "models/site.pt"])
    def test_foreign_file_is_kept(self, copied, name):
        copy, ship_again = copied
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("mine")
        before = files_of(copy)
        with pytest.raises(InputError, match=f"holds {name}, which was not written with that copy"):
            ship_again()
        assert files_of(copy) == before

    def test_newer_model_is_kept(self, copied):
        copy, ship_again = copied
        (copy / "models" / "model.pt").write_bytes(b"fitted since")
        with pytest.raises(InputError, match=r"holds models/model\.pt, .* or was changed since"):
            ship_again()
        assert (copy / "models" / "model.pt").read_bytes() == b"fitted since"

    def test_copy_without_record_is_kept(self, copied):
        copy, ship_again = copied
        (copy / RECORD).unlink()
        before = files_of(copy)
        with pytest.raises(InputError, match="give a new folder"):
            ship_again()
        assert files_of(copy) == before

    @pytest.mark.parametrize("n_moves", [1, 2])
    def test_interrupted_replacement_is_finished(self, copied, monkeypatch, n_moves):
        copy, ship_again = copied
        moves, move = [], os.replace

        def killed(source, target):
            if Path(source) == copy or Path(target) == copy:
                moves.append(source)
                if len(moves) > n_moves:
                    raise KeyboardInterrupt
            move(source, target)

        def stay(path, **_):
            """Delete nothing, as a killed process."""

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            patch.setattr(shutil, "rmtree", stay)
            with pytest.raises(KeyboardInterrupt) if n_moves == 1 else contextlib.nullcontext():
                ship_again()
        ship_again()
        assert [path.name for path in copy.parent.iterdir()] == ["b"]
