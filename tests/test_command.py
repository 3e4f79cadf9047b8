"""The command `dpmm`: what it stands for, what it imports, what it refuses, and runs of a tiny model."""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpmm import assembly, bundle_files, command_line, light_imports, weights
from dpmm.commands import COMMANDS
from dpmm.help import command_help, overview
from scripts.config.ids import MONAI_IDS
from scripts.config.settings import Settings
from scripts.models import weights as model_weights
from scripts.models.checkpoint import read_network
from tests.tiny_bundle import ROOT, TINY
from tests.tiny_cases import brain, save

SLOW_IMPORTS = {
    "torch",
    "monai",
    "ignite",
    "numpy",
    "sklearn",
    "skimage",
    "scipy",
    "matplotlib",
    "mlflow",
    "tensorboard",
}
SLOW_IMPORTS |= {"torchvision", "timm", "sympy", "nibabel", "pandas", "onnx", "openvino", "jsonschema"}
UNUSED_BY_A_RUN = {"jsonschema", "mlflow", "pandas", "sklearn", "sympy", "tensorboard", "torch._dynamo", "transformers"}
MODULES = "import atexit, sys; atexit.register(lambda: print('MODULES', *sys.modules)); "
TINY_FLAGS = [f"--{name}={value}" for name, value in {**TINY, "device": "cpu"}.items()]
TINY_FIT = [*(each for each in TINY_FLAGS if each not in ("--runtime=torch", "--precision=fp32"))]
TINY_FIT += ["--pretrained_encoder", "@encoder", "--max_epochs", "2"]


def dpmm(*arguments, folder, before=""):
    """Run the command in another process, in a folder."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {before}import dpmm.__main__ as main; main.main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def printed(*arguments, capsys):
    """Return the words of the command that a command line stands for."""
    assert command_line.run_command([*arguments, "--print_command"]) == 0
    return shlex.split(capsys.readouterr().out)


def flag(words, name):
    return words[words.index(f"--{name}") + 1]


class TestStandsFor:
    def test_a_fit(self, capsys):
        words = printed("fit", "normals", "--n_components", "200", "--score=cosine", capsys=capsys)
        assert words[:5] == ["python", "-m", "monai.bundle", "run", "training"]
        assert flag(words, "config_file") == str(ROOT / "configs" / "train.json")
        assert flag(words, "bundle_root") == str(ROOT) and flag(words, "dataset_dir") == "normals"
        assert flag(words, "ckpt_path") == "model.pt" and flag(words, "output_dir") == "output"
        assert flag(words, "n_components") == "200" and flag(words, "score") == "cosine"

    def test_overlays_come_before_those_of_the_command(self, capsys):
        words = printed("evaluate", "cases", "out", "--config", "paper", "--fast", capsys=capsys)
        files = json.loads(flag(words, "config_file").replace("'", '"'))
        assert [Path(file).stem for file in files] == ["inference", "paper", "fast", "evaluate"]

    @pytest.mark.parametrize(("file", "run"), [("m.ts", "ckpt_export"), ("m.onnx", "onnx_export")])
    def test_the_suffix_of_an_export_is_its_format(self, file, run, capsys):
        words = printed("export", file, "--ckpt_path", "fitted.pt", capsys=capsys)
        assert words[:2] == ["PYTHONSAFEPATH=1", f"PYTHONPATH={ROOT}"] and run in words
        assert flag(words, "filepath") == file and flag(words, "ckpt_file") == "fitted.pt"

    def test_words_are_quoted_for_a_shell(self, capsys):
        values = ["a b", "it's", '$HOME "x"', "[1.0,0.75]", "{'depth':2}"]
        for value in values:
            assert (
                flag(printed("segment", "cases", "out", "--file_pattern", value, capsys=capsys), "file_pattern")
                == value
            )

    def test_names_that_monai_evaluates_are_paths(self, capsys):
        words = printed("segment", "@cases", "off", capsys=capsys)
        assert flag(words, "dataset_dir") == "./@cases" and flag(words, "output_dir") == "./off"

    def test_a_switch_takes_no_argument_by_place(self, capsys):
        words = printed("segment", "--overwrite", "cases", "--report", "no", "out", capsys=capsys)
        assert (flag(words, "overwrite"), flag(words, "report")) == ("True", "no")
        assert (flag(words, "dataset_dir"), flag(words, "output_dir")) == ("cases", "out")

    def test_other_bundles_keep_their_defaults(self, tmp_path, capsys):
        for name in ("configs", "scripts"):
            (tmp_path / name).symlink_to(ROOT / name)
        words = printed("segment", "cases", "out", "--bundle_root", str(tmp_path), capsys=capsys)
        assert flag(words, "config_file") == str(tmp_path / "configs" / "inference.json") and "--ckpt_path" not in words


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_lists_every_setting_of_the_configs(self, name):
        files = assembly.config_files(COMMANDS[name], ROOT, ())
        text = command_help(COMMANDS[name], files)
        known = set(bundle_files.read_configs(files)).intersection(Settings.model_fields)
        by_place = {argument.name for argument in COMMANDS[name].arguments}
        assert {f"--{setting}" for setting in known - by_place} <= set(text.split())
        assert "](" not in text and name in overview()

    @pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["segment", "WRONG", "OUT"]])
    def test_imports_nothing_slow(self, tmp_path, arguments):
        done = dpmm(*arguments, folder=tmp_path, before=MODULES)
        modules = done.stdout.split("MODULES")[1].split()
        assert done.returncode == ("WRONG" in arguments) and "pydantic" in modules
        assert SLOW_IMPORTS.intersection(modules) == set()


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["fti", "normals"], "did you mean 'fit'?"),
            (["fit"], "needs NORMALS"),
            (["segment", "cases"], "needs OUT"),
            (["segment", "a", "b", "c"], "takes only CASES and OUT by place; got 'c'"),
            (["fit", "normals", "--n_compnents", "5"], "did you mean 'n_components'?"),
            (["segment", "cases", "out", "--false_regions"], "--false_regions needs a value"),
            (["fit", "normals", "--false_regions", "1"], "There is no id 'false_regions'"),
            (["segment", "cases", "out", "--config", "papre"], "There is no config 'papre'"),
            (["export", "model.bin"], "must end in .ts or .onnx"),
        ],
    )
    def test_wrong_usage(self, arguments, sentence, capsys):
        assert command_line.run_command(arguments) == command_line.WRONG_USAGE
        assert sentence in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("comma.json", b'{"n_components": 5,}'),
            ("list.json", b"[1]"),
            ("bytes.json", b"\xff\xfe"),
            ("empty.json", b""),
            ("empty_id.json", b'{"": 1}'),
            ("broken.yaml", b"a: ["),
            ("number.yaml", b"1"),
        ],
    )
    def test_overlay_without_values_by_id(self, name, content, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(command_line.InputError, match=rf"^The config \S+{name} "):
            command_line.run_command(["segment", ".", "out", "--config", str(tmp_path / name)])

    def test_export_leaves_a_file_alone(self, tmp_path):
        for name in ("notes.ts", "model.pt"):
            (tmp_path / name).write_text("of the user")
        done = dpmm("export", "notes.ts", folder=tmp_path)
        assert done.returncode == 1 and "notes.ts exists and is left alone" in done.stderr
        assert (tmp_path / "notes.ts").read_text() == "of the user"

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["fit", "missing"], "There is no file or folder missing; give NORMALS"),
            (["segment", ".", "out", "--ckpt_path", "no.pt"], "There is no fitted model no.pt"),
            (["fit", ".", "--n_components", "many"], "n_components must be a whole number"),
            (["fit", ".", "--validation_dir", "missing"], "There is no file or folder missing; give --validation_dir"),
            (["info", "no.pt"], "There is no fitted model no.pt"),
        ],
    )
    def test_wrong_input_in_a_sentence(self, arguments, sentence, tmp_path):
        done = dpmm(*arguments, folder=tmp_path)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and sentence in done.stderr
        assert done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


class TestWeights:
    def test_files_are_those_of_the_bundle(self):
        assert weights.FILES == (model_weights.OFFICIAL_FILE, model_weights.CONVERTED_FILE)
        assert (weights.ENCODER, weights.FITTED) == (model_weights.MODEL_NAME, model_weights.FITTED_FILE)

    def test_of_an_installed_bundle_are_in_the_cache_of_the_user(self, tmp_path, monkeypatch):
        installed = tmp_path / "installed"
        monkeypatch.setattr(bundle_files, "INSTALLED", installed)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        folder = weights.weights_folder(installed)
        assert folder == tmp_path / "cache" / "dpmm" / "models"
        with pytest.raises(command_line.InputError, match="run `dpmm weights` once"):
            weights.check_weights(installed, weights.ENCODER)
        folder.mkdir(parents=True)
        (folder / weights.FILES[1]).touch()
        weights.check_weights(installed, weights.ENCODER)
        assert weights.find_weights(installed, weights.ENCODER) == folder / weights.FILES[1]

    def test_of_a_kit_are_in_the_installed_bundle(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bundle_files, "INSTALLED", tmp_path)
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / weights.FILES[0]).touch()
        weights.check_weights(tmp_path, weights.ENCODER)
        assert weights.weights_folder(tmp_path) == tmp_path / "models"
        assert weights.find_weights(tmp_path, weights.ENCODER) is None  # the run looks there itself


def test_imports_that_are_left_out_are_there_afterwards():
    name = "xml.dom.pulldom"  # imported by nothing here
    assert name not in sys.modules
    with light_imports.unavailable((name, "json")):
        assert sys.modules["json"] is json
        with pytest.raises(ImportError):
            __import__(name)
    assert __import__(name).dom.pulldom


def test_modules_that_others_stand_in_for_are_there_afterwards():
    name = "xml.sax.saxutils"  # imported by nothing here
    sys.modules.pop(name, None)
    with light_imports.stand_ins({name: {"escape": None}, "json": {}}):
        assert sys.modules["json"] is json
        assert importlib.import_module(name).escape is None
    assert importlib.import_module(name).escape("<") == "&lt;"


def test_flags_of_monai_do_not_hide_settings():
    assert set(command_line.MONAI_FLAGS) >= MONAI_IDS
    assert not set(command_line.MONAI_FLAGS).intersection(Settings.model_fields)


@pytest.mark.slow
def test_fits_segments_and_describes_from_another_folder(tmp_path):
    for seed in range(5):
        save(tmp_path / "data" / "normals" / f"normal-{seed}.nii.gz", brain(seed))
    save(tmp_path / "data" / "lesion.nii.gz", brain(9, lesion=(slice(15, 22), slice(20, 28), slice(1, 4))))
    folder = tmp_path / "work"
    folder.mkdir()
    fit = dpmm("fit", "../data/normals", *TINY_FIT, folder=folder)
    assert fit.returncode == 0, fit.stderr
    assert {path.name for path in folder.iterdir()} == {"model.pt", "output"}

    segment = ["segment", "../data/lesion.nii.gz", "results", *TINY_FLAGS, "--report", "no", "--fast"]
    done = dpmm(*segment, folder=folder, before=MODULES)
    assert done.returncode == 0, done.stderr
    assert UNUSED_BY_A_RUN.intersection(done.stdout.split("MODULES")[1].split()) == set()
    summary = json.loads((folder / "results" / "summary.json").read_text())
    assert summary["settings"]["slice_step"] == 2

    (folder / "empty.nii.gz").touch()
    failed = dpmm("segment", "empty.nii.gz", "others", *TINY_FLAGS, folder=folder)
    assert failed.returncode == 1

    described = dpmm("info", "model.pt", folder=folder)
    assert described.returncode == 0, described.stderr
    extra = read_network(folder / "model.pt")["_extra_state"]
    for text in (extra["digest"], "Apache-2.0", "of 8 active", "held_out_cases", "field_of_view"):
        assert text in described.stdout

    damaged = torch.load(folder / "model.pt", weights_only=True)
    damaged["mixture.stick_fractions"] += 0.01
    torch.save(damaged, folder / "damaged.pt")
    refused = dpmm("info", "damaged.pt", folder=folder)
    assert refused.returncode == 1 and "damaged or changed" in refused.stderr
