"""Checkpoints are written completely or not at all, and refused with a reason."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader

from scripts.digests import CONVERTED_DIGEST, tensor_digest
from scripts.errors import InputError
from scripts.models import checkpoint
from scripts.models.checkpoint import load_network, save_network
from scripts.models.encoder import DINOv2PatchEncoder
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from scripts.models.weights import load_encoder_weights

REMEDY = r"fit it with `python -m monai\.bundle run training --config_file configs/train\.json"


def unfitted(n_components=4, score="cosine", layers=(1,), **vit_options):
    options = {"depth": 2, "embed_dim": 32, "num_heads": 2, **vit_options}
    encoder = DINOv2PatchEncoder(image_size=56, layers=layers, vit_options=options)
    return PatchAnomalyNetwork(encoder, DirichletProcessMixture(n_components, encoder.n_features), score)


class TestSave:
    def test_network_can_be_loaded(self, fitted_network, tmp_path):
        path = tmp_path / "new" / "folder" / "model.pt"
        save_network(fitted_network, path)
        loaded = unfitted()
        assert load_network(loaded, path) is loaded
        images = torch.rand(1, 1, 60, 45)
        assert torch.equal(loaded(images), fitted_network(images))
        assert [file.name for file in path.parent.iterdir()] == ["model.pt"]

    def test_no_pickled_code(self, fitted_network, tmp_path):
        save_network(fitted_network, tmp_path / "model.pt")
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        assert set(state) == set(fitted_network.state_dict())

    def test_failure_keeps_the_earlier_file(self, fitted_network, tmp_path, monkeypatch):
        path = tmp_path / "model.pt"
        save_network(fitted_network, path)
        before = path.read_bytes()

        def disk_full(state, file):
            file.write_bytes(b"half a file")
            raise OSError("no space left on device")

        monkeypatch.setattr(checkpoint.torch, "save", disk_full)
        with pytest.raises(OSError, match="no space"):
            save_network(fitted_network, path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]

    def test_failure_leaves_no_file(self, fitted_network, tmp_path, monkeypatch):
        def disk_full(state, file):
            file.write_bytes(b"half a file")
            raise OSError("no space left on device")

        monkeypatch.setattr(checkpoint.torch, "save", disk_full)
        with pytest.raises(OSError, match="no space"):
            save_network(fitted_network, tmp_path / "model.pt")
        assert list(tmp_path.iterdir()) == []

    def test_replaces_an_earlier_file(self, make_network, tmp_path):
        save_network(make_network(), tmp_path / "model.pt")
        other = make_network()
        other.mixture.means.add_(1)
        save_network(other, tmp_path / "model.pt")
        assert torch.equal(load_network(unfitted(), tmp_path / "model.pt").mixture.means, other.mixture.means)


class TestReadNetwork:
    def test_missing_file_raises(self, tmp_path):
        with pytest.raises(InputError, match=rf"no fitted model .*model\.pt; {REMEDY}.*, or give ckpt_path"):
            load_network(unfitted(), tmp_path / "model.pt")

    @pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04 half a zip"])
    def test_corrupt_file_raises(self, tmp_path, content):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(InputError, match=rf"cannot be read \(.*\); {REMEDY}"):
            load_network(unfitted(), tmp_path / "model.pt")

    def test_truncated_file_raises(self, fitted_network, tmp_path):
        path = tmp_path / "model.pt"
        save_network(fitted_network, path)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(InputError, match=f"cannot be read .*{REMEDY}"):
            load_network(unfitted(), path)

    @pytest.mark.parametrize(
        "content", [{"a": torch.ones(2)}, {}, [1, 2], {"_extra_state": {}}, {"_extra_state": 5}, 5]
    )
    def test_other_content_raises(self, tmp_path, content):
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(InputError, match=r"model\.pt .*fit it with"):
            load_network(unfitted(), tmp_path / "model.pt")


class TestLoadNetwork:
    def test_other_depth_raises(self, fitted_network, tmp_path):
        save_network(fitted_network, tmp_path / "model.pt")
        with pytest.raises(InputError, match=f"not a model of this network .*{REMEDY}"):
            load_network(unfitted(depth=3), tmp_path / "model.pt")

    @pytest.mark.parametrize("change", ["missing", "added"])
    def test_other_entries_raise(self, fitted_network, tmp_path, change):
        state = fitted_network.state_dict()
        if change == "missing":
            del state["mixture.gaussians.means"]
        else:
            state["mixture.more"] = torch.ones(2)
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(InputError, match=rf"not a model of this network \(1 entries differ\); .*{REMEDY}"):
            load_network(unfitted(), tmp_path / "model.pt")

    @pytest.mark.parametrize(
        ("arguments", "setting"), [({"n_components": 7}, "n_components"), ({"layers": (0,)}, "layers")]
    )
    def test_failure_changes_nothing(self, fitted_network, tmp_path, arguments, setting):
        fitted_network.encoder.weights_digest = tensor_digest(fitted_network.encoder.vit.state_dict())
        save_network(fitted_network, tmp_path / "model.pt")
        other = unfitted(**arguments)
        before = other.encoder.vit.norm.weight.clone()
        with pytest.raises(InputError, match=f"{setting}="):
            load_network(other, tmp_path / "model.pt")
        assert other.encoder.weights_digest == ""
        assert torch.equal(other.encoder.vit.norm.weight, before)
        assert not other.mixture.is_fitted

    def test_other_settings_raise(self, fitted_network, tmp_path):
        save_network(fitted_network, tmp_path / "model.pt")
        with pytest.raises(
            InputError, match=r"fitted with n_components=4, this network has n_components=7; .*--n_comp"
        ):
            load_network(unfitted(7), tmp_path / "model.pt")

    def test_other_width_raises(self, fitted_network, tmp_path):
        save_network(fitted_network, tmp_path / "model.pt")
        with pytest.raises(InputError):
            load_network(unfitted(embed_dim=16), tmp_path / "model.pt")

    def test_uncalibrated_network_raises(self, tmp_path):
        network = unfitted()
        network.mixture.initialize(torch.randn(20, 32))
        network.mixture.partial_fit(torch.randn(20, 32), 0.5)
        save_network(network, tmp_path / "model.pt")
        with pytest.raises(InputError, match=f"not calibrated for the score 'cosine'; {REMEDY}"):
            load_network(unfitted(), tmp_path / "model.pt")

    def test_uncalibrated_score_raises(self, fitted_network, tmp_path):
        fitted_network.calibration.quantiles[1] = float("nan")
        save_network(fitted_network, tmp_path / "model.pt")
        load_network(unfitted(), tmp_path / "model.pt")
        with pytest.raises(InputError, match="not calibrated for the score 'euclidean'"):
            load_network(unfitted(score="euclidean"), tmp_path / "model.pt")


def damaged(network, name, change, has_digest=True):
    """Change one entry of a network's state dict; without a digest as 0.4 wrote it."""
    state = copy.deepcopy(network.state_dict())
    state[name] = change(state[name])
    if not has_digest:
        del state["_extra_state"]["digest"]
    return state


def assert_refused(state, match):
    """Assert that neither `load_state_dict` nor MONAI's loader uses any of the state."""
    for load in (load_directly, load_by_monai):
        network = unfitted()
        before = copy.deepcopy(network.state_dict())
        with pytest.raises(InputError, match=match):
            load(network, state)
        after = network.state_dict()
        assert after.pop("_extra_state") == before.pop("_extra_state")
        for name, value in before.items():
            assert torch.equal(after[name].nan_to_num(), value.nan_to_num()), name


def load_directly(network, state):
    network.load_state_dict(state)


def load_by_monai(network, state):
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "model.pt")
        CheckpointLoader(str(Path(folder) / "model.pt"), {"network": network})(Engine(lambda *_: None))


def flipped(tensor, generator):
    """Flip one bit of a tensor."""
    values = tensor.numpy().copy()
    flat = values.reshape(-1).view(np.uint8)
    flat[generator.integers(flat.size)] ^= 1 << int(generator.integers(8))
    return torch.from_numpy(values)


class TestDamagedState:
    def test_flipped_bit_of_any_entry_raises(self, fitted_network):
        generator = np.random.default_rng(0)
        for name, value in fitted_network.state_dict().items():
            if isinstance(value, torch.Tensor) and value.numel():
                assert_refused(damaged(fitted_network, name, lambda tensor: flipped(tensor, generator)), "fit it with")

    @pytest.mark.parametrize("has_digest", [True, False])
    @pytest.mark.parametrize(
        ("name", "change", "match"),
        [
            ("mixture.gaussians.means", lambda tensor: tensor.int(), "type int32 where"),
            ("mixture.gaussians.means", lambda tensor: tensor.double(), "type float64 where"),
            ("mixture.gaussians.means", lambda tensor: tensor.T, r"shape \[32, 4\]"),
            ("mixture.gaussians.means", lambda tensor: tensor.to_sparse(), "has no tensor"),
            ("mixture.gaussians.means", lambda tensor: tensor.tolist(), "has no tensor"),
            ("mixture.n_steps", lambda tensor: 3, "has no tensor"),
            ("mixture.stick_fractions", lambda tensor: tensor / 0, "not finite"),
            ("encoder.vit.norm.weight", lambda tensor: tensor * float("nan"), "not finite"),
            ("calibration.quantiles", lambda tensor: -tensor, "calibration is damaged"),
            ("calibration.quantiles", lambda tensor: tensor.fill_(float("inf")), "calibration is damaged"),
            ("calibration.rates", lambda tensor: tensor.flip(0), "calibration is damaged"),
            ("_extra_state", lambda state: {**state, "settings": [1]}, "which settings"),
            ("_extra_state", lambda state: {**state, "weights_digest": torch.ones(2)}, "which settings"),
            ("_extra_state", lambda state: {**state, "settings": {"layers": torch.ones(2)}}, "which settings"),
        ],
    )
    def test_impossible_entries_raise(self, fitted_network, name, change, match, has_digest):
        assert_refused(damaged(fitted_network, name, change, has_digest), match)

    def test_other_encoder_digest_raises(self, fitted_network):
        fitted_network.encoder.weights_digest = "abc"
        assert_refused(fitted_network.state_dict(), "other encoder weights")

    def test_other_encoder_in_a_0_4_file_raises(self, fitted_network):
        fitted_network.encoder.weights_digest = CONVERTED_DIGEST
        state = fitted_network.state_dict()
        del state["_extra_state"]["digest"]
        assert_refused(state, "other encoder weights")

    def test_encoder_of_a_damaged_model_raises(self, fitted_network, tmp_path):
        name = "encoder.vit.blocks.0.attn.qkv.weight"
        torch.save(damaged(fitted_network, name, lambda tensor: tensor + 1), tmp_path / "model.pt")
        encoder = unfitted().encoder
        before = copy.deepcopy(encoder.state_dict())
        with pytest.raises(InputError, match="its digest differs"):
            load_encoder_weights(encoder, tmp_path / "model.pt")
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
