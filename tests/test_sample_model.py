"""The sample model: its file, the join with the encoder's weights, and what is left alone."""

import logging
import os

import pytest
import torch

from demo.heads import write_heads
from scripts import sample_model
from scripts.errors import InputError
from scripts.models.checkpoint import save_network
from scripts.models.compact import restore_state
from scripts.models.sample import SAMPLE_FILE, SAMPLE_WARNING, is_sample, warn_of_sample
from scripts.models.weights import FITTED_FILE, MODELS_DIR
from scripts.sample_model import main, write_compact, write_model

SAMPLE = MODELS_DIR / SAMPLE_FILE


@pytest.fixture(scope="module")
def sample():
    """Return the network of the sample model under an encoder with random weights."""
    compact = torch.load(SAMPLE, weights_only=True)
    network = sample_model.network_of({})  # of the default settings
    restore_state(network, compact)
    return network


class TestFile:
    def test_is_small(self):
        assert SAMPLE.stat().st_size < 3e6

    def test_has_the_default_settings_and_is_calibrated(self, sample):
        assert sample.calibration.is_fitted(sample.score_index)
        assert sample.field_of_view_mm and sample.mixture.n_active > 50
        limits = sample.calibration.detection_limits(sample.score_index, sample.target_fpr)
        assert limits is not None

    def test_is_recognised(self, sample, fitted_network, caplog):
        with caplog.at_level(logging.WARNING):
            warn_of_sample(fitted_network.mixture)
            assert caplog.messages == []
            warn_of_sample(sample.mixture)
        assert caplog.messages == [SAMPLE_WARNING]
        assert is_sample(sample.mixture) and not is_sample(fitted_network.mixture)


class TestWriteModel:
    def test_model_of_the_user_is_left_alone(self, tmp_path, capsys):
        (tmp_path / FITTED_FILE).write_bytes(b"of the user")
        assert not write_model(tmp_path / FITTED_FILE, tmp_path)
        main(["--models_dir", str(tmp_path)])
        assert "is left as it is" in capsys.readouterr().out
        assert (tmp_path / FITTED_FILE).read_bytes() == b"of the user"

    def test_missing_weights_leave_nothing(self, tmp_path):
        with pytest.raises(InputError, match="no encoder weights"):
            write_model(tmp_path / FITTED_FILE, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_damaged_sample_is_named(self, tmp_path, monkeypatch):
        (tmp_path / SAMPLE_FILE).write_bytes(SAMPLE.read_bytes()[:1000])
        monkeypatch.setattr(sample_model, "MODELS_DIR", tmp_path)
        with pytest.raises(InputError, match=f"{SAMPLE_FILE} cannot be read"):
            write_model(tmp_path / FITTED_FILE, tmp_path)

    def test_copy_of_the_bundle_has_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sample_model, "MODELS_DIR", tmp_path)
        assert not write_model(tmp_path / FITTED_FILE, tmp_path)

    @pytest.mark.real_weights
    def test_is_joined_and_made_again(self, tmp_path):
        assert write_model(tmp_path / FITTED_FILE)
        write_compact(tmp_path / FITTED_FILE, tmp_path / "again.pt")
        again, compact = (torch.load(path, weights_only=True) for path in (tmp_path / "again.pt", SAMPLE))
        assert again["settings"] == compact["settings"]
        for name, tensor in compact["tensors"].items():
            assert torch.equal(again["tensors"][name].nan_to_num(), tensor.nan_to_num()), name


class TestDemo:
    @pytest.mark.parametrize("is_model", [True, False])
    def test_model_of_the_user_is_left_alone(self, is_model, tmp_path, fitted_network):
        model = tmp_path / FITTED_FILE
        if is_model:
            save_network(fitted_network, model)
        else:
            model.write_bytes(b"of the user")
        content = model.read_bytes()
        with pytest.raises(InputError, match="is left alone"):
            write_heads(tmp_path)
        assert model.read_bytes() == content and list(tmp_path.iterdir()) == [model]

    @pytest.mark.real_weights
    def test_earlier_sample_is_replaced(self, tmp_path):
        write_heads(tmp_path)
        earlier = torch.load(tmp_path / FITTED_FILE, weights_only=True)
        extra = {name: value for name, value in earlier["_extra_state"].items() if name != "digest"}
        other = {**earlier, "of an earlier version": torch.ones(1), "_extra_state": extra}
        torch.save(other, tmp_path / FITTED_FILE)
        os.utime(tmp_path / FITTED_FILE, (0, 0))
        write_heads(tmp_path)
        assert torch.load(tmp_path / FITTED_FILE, weights_only=True).keys() == earlier.keys()

    @pytest.mark.real_weights
    def test_sample_calibrated_by_the_user_is_left_alone(self, tmp_path):
        write_heads(tmp_path)
        state = torch.load(tmp_path / FITTED_FILE, weights_only=True)
        del state["_extra_state"]["digest"]
        torch.save(state, tmp_path / FITTED_FILE)
        content = (tmp_path / FITTED_FILE).read_bytes()
        write_heads(tmp_path)
        assert (tmp_path / FITTED_FILE).read_bytes() == content


class TestWriteCompact:
    def test_file_of_the_user_is_left_alone(self, tmp_path):
        (tmp_path / "notes.pt").write_bytes(b"of the user")
        with pytest.raises(InputError, match="exists and is left alone"):
            write_compact(tmp_path / "model.pt", tmp_path / "notes.pt")
        assert (tmp_path / "notes.pt").read_bytes() == b"of the user"

    def test_no_model(self, tmp_path):
        with pytest.raises(InputError):
            write_compact(tmp_path / "missing.pt", tmp_path / "out.pt")
        assert not (tmp_path / "out.pt").exists()

    def test_options_go_together(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["--output", str(tmp_path / "out.pt")])
        assert "go together" in capsys.readouterr().err
