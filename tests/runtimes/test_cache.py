"""Files next to a model are checked before use, and foreign files are kept."""

import copy
import errno
import json
import os

import pytest
import torch

from scripts.errors import InputError
from scripts.models.calibration import ScoreCalibration
from scripts.models.checkpoint import save, save_network
from scripts.runtimes import auto
from scripts.runtimes.auto import AgreementCache
from scripts.runtimes.cache import RuntimeCache, compiled_for
from scripts.runtimes.export import load_exported
from scripts.runtimes.selection import read_thresholds


@pytest.fixture
def saved(fitted_network, tmp_path):
    save_network(fitted_network, tmp_path / "model.pt")
    return tmp_path / "model.pt"


class TestAgreementCache:
    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff\xfe", b"[1]", b"5", b'{"a": "b"}', b'{"a": NaN}', b'{"a": -1}', b'{"a": true}', b"[" * 100_000],
    )
    def test_damaged_file_is_replaced(self, saved, content):
        cache = RuntimeCache(saved)
        cache.prepare()
        cache.agreement.write_bytes(content)
        agreement = AgreementCache(cache)
        assert agreement.get("a") is None
        agreement.put("a", 0.25)
        assert AgreementCache(cache).get("a") == json.loads(cache.agreement.read_text())["a"] == 0.25

    def test_unwritable_file_serves_this_run(self, saved, monkeypatch, caplog):
        def disk_full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(auto, "write_json", disk_full)
        agreement = AgreementCache(RuntimeCache(saved))
        agreement.put("a", 0.25)
        assert agreement.get("a") == 0.25 and "cannot be kept (No space left on device)" in caplog.text


class TestRuntimeCache:
    def test_prepare_removes_only_stale_folders(self, saved):
        folder = compiled_for(saved)
        for name in ("mine", "1-short", f"1-{'0' * 16}"):
            (folder / name).mkdir(parents=True)
            (folder / name / "notes.txt").write_text("mine")
        (folder / "notes.txt").write_text("mine")
        cache = RuntimeCache(saved)
        cache.prepare()
        assert {path.name for path in folder.iterdir()} == {"mine", "1-short", "notes.txt", cache.folder.name}


class TestReadThresholds:
    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("rates", lambda tensor: tensor[:3]),
            ("rates", lambda tensor: tensor.flip(0)),
            ("quantiles", lambda tensor: tensor.int()),
            ("quantiles", lambda tensor: -tensor),
            ("quantiles", lambda tensor: tensor[:2]),
            ("quantiles", lambda tensor: None),
        ],
    )
    def test_damaged_thresholds_raise(self, fitted_network, tmp_path, name, change):
        calibration: ScoreCalibration = fitted_network.calibration
        thresholds = copy.deepcopy(calibration.thresholds())
        save(thresholds, tmp_path / "thresholds.pt")
        assert read_thresholds(tmp_path / "thresholds.pt", calibration)["rates"].equal(thresholds["rates"])
        save({**thresholds, name: change(thresholds[name])}, tmp_path / "thresholds.pt")
        with pytest.raises(InputError, match="quantise anew with"):
            read_thresholds(tmp_path / "thresholds.pt", calibration)

    @pytest.mark.parametrize("content", [b"", b"no thresholds", 5])
    def test_other_content_raises(self, fitted_network, tmp_path, content):
        if isinstance(content, bytes):
            (tmp_path / "thresholds.pt").write_bytes(content)
        else:
            save(content, tmp_path / "thresholds.pt")
        with pytest.raises(InputError, match="quantise anew with"):
            read_thresholds(tmp_path / "thresholds.pt", fitted_network.calibration)


class TestLoadExported:
    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", "tensors"])
    def test_damaged_torchscript_raises(self, tmp_path, content):
        if content == "tensors":
            torch.save({"a": torch.ones(2)}, tmp_path / "model.ts")
        else:
            (tmp_path / "model.ts").write_bytes(content)
        with pytest.raises(InputError, match="is not TorchScript"):
            load_exported(tmp_path / "model.ts")
