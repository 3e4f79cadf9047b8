"""Checks of the output paths before a fit, protection of other files, and resuming from a state."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.errors import InputError, cause_of
from scripts.files import RECORD, read_record
from scripts.models.checkpoint import check_model_path, read_network
from scripts.training import calibrator, embeddings
from scripts.training.checkpoint import FitCheckpoint
from scripts.training.output import LAST_EPOCH, FitOutput
from tests.tiny_bundle import ROOT, run_bundle

pytestmark = pytest.mark.slow


def write_normals(folder, seeds):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture = np.random.default_rng(seed).normal(120, 30, (60, 60))
        Image.fromarray(np.clip(picture, 1, 255).astype(np.uint8)).save(folder / f"{seed}.png")


def fit(folder, **overrides):
    paths = {"dataset_dir": folder / "normals", "output_dir": folder / "fit", "ckpt_path": folder / "model.pt"}
    run_bundle("training", **{**{name: str(path) for name, path in paths.items()}, "log_dir": None, **overrides})


def said_by(function, *args, **overrides):
    with pytest.raises(Exception) as caught:
        function(*args, **overrides)
    assert isinstance(cause_of(caught.value), InputError), repr(cause_of(caught.value))
    return str(cause_of(caught.value))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Make a folder with normals and a fit of two epochs."""
    folder = tmp_path_factory.mktemp("complete")
    write_normals(folder / "normals", range(12))
    fit(folder)
    return folder


@pytest.fixture
def copied(complete, tmp_path):
    """Copy that fit, with links to the same images."""
    shutil.copytree(complete / "fit", tmp_path / "fit")
    shutil.copy(complete / "model.pt", tmp_path)
    (tmp_path / "normals").symlink_to(complete / "normals")
    return tmp_path


@pytest.fixture
def embeds_nothing(monkeypatch):
    """Fail when a fit begins to embed."""

    def begins(*_, **__):
        raise AssertionError("the fit has begun")

    monkeypatch.setattr(embeddings.EmbeddingDataset, "compute", begins)


IMPORTED_ANEW = """
import sys
from scripts.training.output import FitOutput

failed = FitOutput(sys.argv[1], sys.argv[2])
failed.open()
for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
    del sys.modules[name]
from scripts.training.output import FitOutput as Again

assert Again is not FitOutput
Again(sys.argv[1], sys.argv[2]).open()
"""


class TestPaths:
    def test_files_are_recorded_and_replaced_by_a_second_fit(self, complete):
        listed = read_record(complete / "fit")["files"]
        assert set(listed) == {"last_epoch.pt", "fit_report.json", "fit_report.png"}
        fit(complete, max_epochs=1)
        assert read_network(complete / "model.pt")
        fit(complete)

    @pytest.mark.usefixtures("embeds_nothing")
    @pytest.mark.parametrize("name", ["notes.txt", "last_epoch.pt", "fit_report.png"])
    def test_folder_with_files_of_others_is_refused(self, tmp_path, name):
        write_normals(tmp_path / "normals", range(3))
        (tmp_path / "fit").mkdir()
        (tmp_path / "fit" / name).write_text("mine")
        before = contents(tmp_path)
        assert f"such as '{name}'" in said_by(fit, tmp_path)
        assert contents(tmp_path) == before

    @pytest.mark.usefixtures("embeds_nothing")
    @pytest.mark.parametrize("name", ["last_epoch.pt", "fit_report.png"])
    def test_changed_files_are_not_replaced(self, copied, name):
        (copied / "fit" / name).write_text("mine")
        before = contents(copied)
        assert f"has a {name} that this program did not write" in said_by(fit, copied)
        assert contents(copied) == before

    @pytest.mark.usefixtures("embeds_nothing")
    def test_locked_folder_is_refused(self, copied):
        holder = (
            "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
        )
        command = [sys.executable, "-c", holder, str(copied / "fit" / ".dpmm_lock")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            process.stdout.readline()
            assert "Another run writes into output_dir" in said_by(fit, copied)
        finally:
            process.kill()
            process.communicate()

    def test_failed_fit_unlocks_its_folder(self, copied):
        assert "validation_fraction must" in said_by(fit, copied, validation_fraction=2.0)
        fit(copied, max_epochs=1)

    @pytest.mark.usefixtures("embeds_nothing")
    @pytest.mark.parametrize("content", [b"mine", b"", "tensor"])
    def test_file_that_is_no_model_is_not_replaced(self, tmp_path, content):
        write_normals(tmp_path / "normals", range(3))
        if content == "tensor":
            torch.save({"weights": torch.ones(2)}, tmp_path / "model.pt")
        else:
            (tmp_path / "model.pt").write_bytes(content)
        before = contents(tmp_path)
        assert "is not a fitted model and is left alone" in said_by(fit, tmp_path)
        assert contents(tmp_path) == before

    @pytest.mark.usefixtures("embeds_nothing")
    @pytest.mark.parametrize("option", ["ckpt_path", "output_dir", "log_dir"])
    def test_path_below_a_file_is_refused(self, tmp_path, option):
        write_normals(tmp_path / "normals", range(3))
        (tmp_path / "file").write_text("mine")
        said = said_by(fit, tmp_path, **{option: str(tmp_path / "file" / "model.pt")})
        assert option in said and "cannot be written (" in said

    def test_model_path_must_be_a_writable_file(self, tmp_path, monkeypatch):
        with pytest.raises(InputError, match="ckpt_path must name a file"):
            check_model_path(tmp_path)

        def read_only(*_, **__):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("scripts.models.checkpoint.tempfile.TemporaryFile", read_only)
        with pytest.raises(
            InputError, match=r"ckpt_path .* cannot be written \(Read-only file system\); give another place"
        ):
            check_model_path(tmp_path / "model.pt")

    def test_full_disk_is_reported_before_the_fit(self, tmp_path, fitted_network, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
        monkeypatch.setattr("scripts.training.output.shutil.disk_usage", lambda _: usage)
        with pytest.raises(InputError, match=r"needs about \d+ MB and .* has 1 MB; make room"):
            FitOutput(tmp_path / "fit", tmp_path / "model.pt", fitted_network).open()

    @pytest.mark.parametrize("n_moves", range(5))
    def test_fit_killed_while_writing_unlocks_its_folder(self, tmp_path, monkeypatch, n_moves):
        output = FitOutput(tmp_path / "fit", tmp_path / "model.pt")
        output.open()
        move, moves = os.replace, []

        def killed(source, target):
            moves.append(target)
            if len(moves) > n_moves:
                raise KeyboardInterrupt
            move(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                for epoch in range(1, 5):
                    output.save({"epoch": epoch}, LAST_EPOCH)
        output.close()
        again = FitOutput(tmp_path / "fit", tmp_path / "model.pt", resume=True)
        again.open()
        if (tmp_path / "fit" / LAST_EPOCH).exists():
            assert again.directory.owns(LAST_EPOCH)
        again.save({"epoch": 5}, LAST_EPOCH)
        assert torch.load(tmp_path / "fit" / LAST_EPOCH, weights_only=True) == {"epoch": 5}
        again.close()

    def test_failed_fit_unlocks_its_folder_after_a_reimport(self, tmp_path):
        command = [sys.executable, "-c", IMPORTED_ANEW, str(tmp_path / "fit"), str(tmp_path / "model.pt")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestFullDisk:
    def test_at_the_end_loses_no_epoch(self, copied, monkeypatch, caplog):
        (copied / "model.pt").unlink()
        original = calibrator.save_network

        def disk_full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(calibrator, "save_network", disk_full)
        said = said_by(fit, copied)
        assert "The fit is complete" in said and "(No space left on device)" in said and "--resume True" in said
        assert (copied / "fit" / LAST_EPOCH).is_file() and not (copied / "model.pt").exists()
        monkeypatch.setattr(calibrator, "save_network", original)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            fit(copied, resume=True)
        assert "going on after epoch 2" in caplog.text and "epoch 2/2" not in caplog.text
        assert len(json.loads((copied / "fit" / "fit_report.json").read_text())["epochs"]) == 2

    def test_resumed_fit_gives_the_same_model(self, complete, copied):
        expected = read_network(complete / "model.pt")
        (copied / "model.pt").unlink()
        fit(copied, resume=True)
        for name, value in read_network(copied / "model.pt").items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.nan_to_num(), expected[name].nan_to_num()), name

    def test_after_an_epoch_keeps_the_previous_state(self, tmp_path, monkeypatch):
        output = FitOutput(tmp_path / "fit", tmp_path / "model.pt")
        output.open()
        output.save({"epoch": 1}, LAST_EPOCH)
        before = (tmp_path / "fit" / LAST_EPOCH).read_bytes()

        def disk_full(content, file):
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", disk_full)
            with pytest.raises(InputError, match=r"last_epoch.pt cannot be written .*No space left.*--resume True"):
                output.save({"epoch": 2}, LAST_EPOCH)
        assert (tmp_path / "fit" / LAST_EPOCH).read_bytes() == before
        assert {path.name for path in (tmp_path / "fit").iterdir()} <= {LAST_EPOCH, RECORD, ".dpmm_lock"}
        output.close()


def broken(content, change):
    {
        "epoch -1": lambda: content.update(epoch=-1),
        "epoch 0": lambda: content.update(epoch=0),
        "epoch 7": lambda: content.update(epoch=7),
        "epoch True": lambda: content.update(epoch=True),
        "epoch 1.5": lambda: content.update(epoch=1.5),
        "epoch tensor": lambda: content.update(epoch=torch.tensor(2)),
        "list of settings": lambda: content.update(fit=[1, 2]),
        "settings of tensors": lambda: content["fit"].update(layers=torch.ones(2)),
        "no settings": lambda: content.pop("fit"),
        "no keeper": lambda: content.pop("keeper"),
        "history": lambda: content["keeper"].update(history=[{"epoch": 1}, 5]),
        "NaN in history": lambda: content["keeper"]["history"][0].update(validation_log_likelihood=float("nan")),
        "no best": lambda: content["keeper"].update(best={}),
        "shape": lambda: content["mixture"].update({"gaussians.means": torch.ones(2, 3)}),
        "type": lambda: content["mixture"].update({"n_steps": torch.ones(())}),
        "NaN": lambda: content["mixture"]["gaussians.means"].fill_(float("nan")),
        "best": lambda: content["keeper"]["best"].update({"stick_fractions": [1.0]}),
    }[change]()
    return content


CHANGES = ["epoch -1", "epoch 0", "epoch 7", "epoch True", "epoch 1.5", "epoch tensor", "list of settings"]


CHANGES += ["settings of tensors", "no settings", "no keeper", "history", "NaN in history", "no best", "shape", "type"]


CHANGES += ["NaN", "best"]


@pytest.fixture(scope="module")
def checkpoint(complete):
    """Resume the complete fit; return its checkpoint handler and the engine of the trainer."""
    taken = {}
    original = FitCheckpoint.load

    def take(self, engine):
        original(self, engine)
        taken.update(checkpoint=self, engine=engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FitCheckpoint, "load", take)
        fit(complete, resume=True)
    return taken["checkpoint"], taken["engine"]


class TestResume:
    def test_earlier_state_is_replaced_with_a_warning(self, copied, caplog):
        with caplog.at_level(logging.WARNING, logger="scripts.training.output"):
            fit(copied, max_epochs=1)
        assert "last_epoch.pt of an earlier fit is replaced" in caplog.text and "--resume True" in caplog.text

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({"init_params": "k-means++"}, "had init_params=random_from_data, this one has init_params=k-means++"),
            ({"seed": 1}, "had seed=0"),
            ({"step_size": 0.3}, "had step_size=0.2"),
            ({"mixture#weight_concentration": 3.0}, "had weight_concentration=2.0"),
            ({"validation_fraction": 0.4}, "had number of slices"),
            ({"intensities#upper": 99.0}, "had other training images"),
        ],
    )
    def test_other_settings_are_refused(self, copied, overrides, expected):
        before = contents(copied)
        assert expected in said_by(fit, copied, resume=True, **overrides)
        after = contents(copied)
        assert {path: after[path] for path in before} == before

    @pytest.mark.parametrize("which", ["training", "validation"])
    def test_other_images_are_refused(self, complete, tmp_path, which):
        for name, seeds in (("train", range(5)), ("val", range(5, 7))):
            write_normals(tmp_path / name, seeds)
        places = {"dataset_dir": str(tmp_path / "train"), "validation_dir": str(tmp_path / "val")}
        fit(tmp_path, **places)
        os.utime(tmp_path / {"training": "train/0.png", "validation": "val/5.png"}[which], (1, 1))
        assert f"had other {which} images" in said_by(fit, tmp_path, resume=True, **places)

    @pytest.mark.parametrize("change", CHANGES)
    def test_invalid_state_is_refused(self, checkpoint, change):
        reader, engine = checkpoint
        content = torch.load(reader.path, weights_only=True)
        before = {name: value.clone() for name, value in reader.network.mixture.state_dict().items()}
        intact = reader.path.read_bytes(), (reader.path.parent / RECORD).read_bytes()
        try:
            reader.output.save(broken(content, change), LAST_EPOCH)
            with pytest.raises(InputError, match="fit without --resume"):
                reader.load(engine)
        finally:
            reader.path.write_bytes(intact[0])
            (reader.path.parent / RECORD).write_bytes(intact[1])
        assert all(torch.equal(value, before[name]) for name, value in reader.network.mixture.state_dict().items())

    @pytest.mark.parametrize("content", [b"", b"garbage", "cut", "bit"])
    def test_changed_state_is_refused(self, checkpoint, content):
        reader, engine = checkpoint
        whole = reader.path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        reader.path.write_bytes({"cut": whole[:-100], "bit": bytes(flipped)}.get(content, content))
        try:
            with pytest.raises(
                InputError, match=r"last_epoch.pt was changed since a fit wrote it; fit without --resume"
            ):
                reader.load(engine)
        finally:
            reader.path.write_bytes(whole)
