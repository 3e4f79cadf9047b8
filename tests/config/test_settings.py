"""Settings: their descriptions, the errors for wrong values, and the values that reach the components."""

import json
import logging
import math
import subprocess
import sys

import fire
import monai.bundle
import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigExpression, ConfigParser, ConfigWorkflow

from scripts.config import reference
from scripts.config.check import check_config
from scripts.config.ids import SECTIONS
from scripts.config.settings import Settings, check_setting, expected_value, label_options
from scripts.config.value_types import typed_text
from scripts.errors import InputError, cause_of
from scripts.inference.measurements import IMAGE_SCORES
from scripts.models.encoder import _TIMM_NAMES
from scripts.models.mixture import COVARIANCE_TYPES, SCORE_KINDS
from scripts.runtimes import PRECISIONS, RUNTIMES
from scripts.training.handlers import INIT_PARAMS
from tests.tiny_bundle import ROOT, TINY, run_bundle
from tests.tiny_cases import brain, save

CONFIGS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "configs").glob("*.json"))
    if path.stem not in ("metadata", "onnx_export")  # those are arguments of other commands
}
PROPERTIES = Settings.model_json_schema()["properties"]
RUNS = [
    ("train",),
    ("inference",),
    *(("train", name) for name in ("paper", "rad_dino", "calibrate", "quantize", "bmad_resc")),
    *(
        ("inference", name)
        for name in ("paper", "rad_dino", "evaluate", "exported", "fast", "inference_trt", "bmad_resc")
    ),
    ("inference", "bmad_liver", "paper", "evaluate"),
    ("train", "multi_gpu_train"),
    ("inference", "multi_gpu_inference"),
]


def check(configs, **overrides):
    """Check configs that overlay one another, and return their parser."""
    files = [str(ROOT / "configs" / f"{name}.json") for name in configs]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.read_meta(str(ROOT / "configs" / "metadata.json"))
    parser.update({"check_alone": ["$@check()"], **overrides})
    parser.get_parsed_content("check_alone")
    return parser


def error_of(configs, **overrides):
    """Return the sentence of a check that must fail."""
    with pytest.raises(Exception) as caught:
        check(configs, **overrides)
    assert isinstance(cause_of(caught.value), InputError), repr(cause_of(caught.value))
    return str(cause_of(caught.value))


def alternatives(name):
    return PROPERTIES[name].get("anyOf", [PROPERTIES[name]])


def wrong_values(name):
    """Return values of every wrong type for a setting, and numbers outside its range."""
    kinds = [each.get("format", each.get("type")) for each in alternatives(name)]
    number = kinds[0] in ("integer", "number")
    wrong = [] if "null" in kinds else [None]
    choices = alternatives(name)[0].get("enum")
    if choices:
        return [*wrong, "abc", "", 5, True, choices[0].upper(), ("a", "b")]
    if kinds[0] == "boolean":
        return [*wrong, "abc", "", 2, -1, 0.5, math.nan, [True], "offf"]
    if kinds[0] in ("path", "pattern"):
        return [*wrong, *([] if name == "dataset_dir" else [""]), True, 2.5, ("a", "b"), ["a"], {"a": 1}]
    if kinds[0] == "device":
        return ["gpu", "", "cuda:99", 2.5, ["cpu"]]
    if kinds[0] == "array":
        return [*wrong, [], "abc", "8", [True], [math.nan], [math.inf], {"a": 1}, [[8]], [None]]
    if kinds[0] == "share":
        return ["abc", "", "0/2", "1", "1/0", "1/2/3", "-1/2", "1.5/2", 2.5, True]
    assert number, f"say what is wrong for {kinds}"
    schema = alternatives(name)[0]
    beside = [
        *([schema["minimum"] - 1] if "minimum" in schema else []),
        *([schema["maximum"] + 1] if "maximum" in schema else []),
        *([schema[bound] for bound in ("exclusiveMinimum", "exclusiveMaximum") if bound in schema]),
        *([schema["multipleOf"] + 1] if "multipleOf" in schema else []),
        *([1.5] if kinds[0] == "integer" else []),
    ]
    return [*wrong, *beside, "abc", "", "1", True, math.nan, math.inf, -math.inf, -1, [1], (1, 2), {"a": 1}]


class TestDescription:
    def test_ids_and_descriptions_match(self):
        ids = {name.lstrip("+").split("#")[0] for config in CONFIGS.values() for name in config}
        described = {*Settings.model_fields, *(name for name in SECTIONS if "::" not in name)}
        assert ids | {"_meta_"} == described - {"traceable_network"}
        assert not set(Settings.model_fields) & SECTIONS
        for name in SECTIONS:
            section, _, inner = name.partition("::")
            assert not inner or any(inner in config.get(section, {}) for config in CONFIGS.values()), name

    def test_choices_match_modules(self):
        known = {
            "encoder_name": _TIMM_NAMES,
            "covariance_type": COVARIANCE_TYPES,
            "score": SCORE_KINDS,
            "init_params": INIT_PARAMS,
            "image_score": IMAGE_SCORES,
            "runtime": RUNTIMES,
            "precision": PRECISIONS,
        }
        for name, choices in known.items():
            assert set(alternatives(name)[0]["enum"]) == set(choices), name

    def test_settings_have_meaning_and_expected_value(self):
        for name, field in Settings.model_fields.items():
            assert len(field.description) > 10 and expected_value(name)

    def test_reference_is_up_to_date(self):
        page = reference.PAGE.read_text()
        assert page == reference.reference_page(), "run `python -m scripts.config.reference`"
        assert all(f"| `{name}` |" in page for name in Settings.model_fields)

    def test_label_options(self):
        assert CONFIGS["inference"]["displayable_configs"] == {name: f"@{name}" for name in label_options()}


TYPED = ["2024", "20260101", "a,b", "1,2", "a, b", "00", "0x10", "1_000", "1e3", "2.50", "[x]", "{a}", "True", "(a)"]


def run_command(folder, monkeypatch, *arguments):
    """Run `python -m monai.bundle run inference` in this process, through `fire`; return the sentence that ends it."""
    monkeypatch.chdir(folder)
    command = ["run", "inference", "--config_file", str(ROOT / "configs" / "inference.json")]
    command += ["--bundle_root", str(ROOT), "--logging_file", str(ROOT / "configs" / "logging.conf"), *arguments]
    monkeypatch.setattr(sys, "argv", ["monai.bundle", *command])
    with pytest.raises(Exception) as caught:
        fire.Fire({"run": monai.bundle.run}, command=command)
    return str(cause_of(caught.value))


class TestCheckSetting:
    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_wrong_value_raises(self, name):
        for value in wrong_values(name):
            with pytest.raises(InputError, match=rf"^{name} must be .*; got .*\.$") as caught:
                check_setting(name, value)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("config", CONFIGS)
    def test_config_values_pass(self, config):
        for name, value in CONFIGS[config].items():
            if name in Settings.model_fields and not str(value).startswith(("$", "@")):
                assert check_setting(name, value) == value

    def test_off_is_none_or_a_path(self):
        for name in Settings.model_fields:
            kinds = [each.get("format", each.get("type")) for each in alternatives(name)]
            if "null" in kinds:
                assert [check_setting(name, word) for word in ("off", "OFF", "none", None)] == [None] * 4
            elif kinds == ["path"]:
                assert check_setting(name, "off") == "off"

    @pytest.mark.parametrize("name", ["report", "resume", "show_progress", "torch_compile"])
    def test_words_of_a_switch(self, name):
        assert not any(check_setting(name, word) for word in (False, "no", "off", "False", "false", 0))
        assert all(check_setting(name, word) is True for word in (True, "yes", "on", "True", "true", 1))

    def test_number_becomes_list(self):
        assert check_setting("layers", 8) == check_setting("layers", (8,)) == [8]
        assert check_setting("scales", (1, 0.75)) == [1.0, 0.75]

    @pytest.mark.parametrize("text", [*TYPED, "007", "plain", "a#b", "#1", "a::b"])
    @pytest.mark.parametrize("name", ["dataset_dir", "output_dir", "validation_dir", "file_pattern"])
    @pytest.mark.parametrize("form", ["--{name}|{text}", "--{name}={text}", "-{name}|{text}"])
    def test_path_is_kept_as_typed(self, monkeypatch, name, text, form):
        typed = form.format(name=name, text=text).split("|")
        monkeypatch.setattr(sys, "argv", ["monai", "run", f"--{name}", "earlier", *typed, "--seed", "3"])
        value = DefaultParseValue(text)  # leaves "a" of "a#b"
        value = value.replace("#", "::") if isinstance(value, str) else value  # as MONAI does
        assert check_setting(name, value) == text

    def test_path_in_quotes_or_not_typed_is_kept(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["monai", "run", "--dataset_dir", "'2024'", "--output_dir", "a#b"])
        assert check_setting("dataset_dir", "2024") == "2024"
        assert check_setting("output_dir", "c") == "c"  # not typed: set by the program
        assert check_setting("output_dir", "a") == "a#b"

    def test_path_that_cannot_be_restored_raises(self):
        assert check_setting("dataset_dir", 2024) == "2024"
        with pytest.raises(InputError, match=r"^dataset_dir must be a path; got \('a', 'b'\)\.$"):
            check_setting("dataset_dir", ("a", "b"))
        with pytest.raises(InputError, match="output_dir must have no '#' or '::' in its name"):
            check_setting("output_dir", "a::b")

    def test_flag_without_value_raises(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", [])
        assert typed_text("output_dir") is None
        for rest in ([], ["--seed", "3"], ["-seed", "3"]):
            monkeypatch.setattr(sys, "argv", ["monai", "run", "--output_dir", *rest])
            with pytest.raises(InputError, match="output_dir must be a path; got True"):
                check_setting("output_dir", True)

    @pytest.mark.parametrize("name", ["dataset_dir", "output_dir", "validation_dir"])
    def test_path_that_is_too_long_raises(self, name):
        with pytest.raises(InputError, match="too long for the file system"):
            check_setting(name, "x" * 300)


class TestIds:
    @pytest.mark.parametrize("configs", RUNS, ids="+".join)
    def test_configs_and_overlays_pass(self, configs, monkeypatch):
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")
        ids = check(configs).get()
        check(configs, **{name: value for name, value in TINY.items() if name.split("#")[0] in ids})

    def test_every_run_begins_with_check(self):
        for name, config in CONFIGS.items():
            for run, items in config.items():
                is_run = (
                    isinstance(items, list) and items and all(ConfigExpression.is_expression(item) for item in items)
                )
                if is_run and run not in ("imports", "initialize", "finalize"):
                    assert items[0] == "$@check()", f"{name}: {run}"

    def test_initialize_does_not_use_scripts(self):
        for config in CONFIGS.values():
            assert "scripts" not in json.dumps(config.get("initialize", "")) + json.dumps(config.get("imports", ""))
            assert "@check" not in json.dumps(config.get("initialize", ""))

    @pytest.mark.parametrize(
        ("configs", "name", "expected"),
        [
            (("inference",), "treshold", "There is no id 'treshold'; did you mean 'threshold'?"),
            (("inference",), "running_network", "There is no id 'running_network' since 0.5; it is 'network' now."),
            (("train",), "train#keeper", "There is no id 'train#keeper' since 0.5; it is 'train#tracker' now."),
            (("train",), "n_componets", "did you mean 'n_components'?"),
            (("train", "calibrate"), "calibrated_pth", "did you mean 'calibrated_path'?"),
            (("inference", "evaluate"), "labeldir", "did you mean 'label_dir'?"),
            (("inference",), "xyzzy", "There is no id 'xyzzy'; docs/reference.md lists"),
            (("inference",), "noreport", "did you mean 'report'?"),
            (("train",), "train#max_epochs", "There is no id 'train#max_epochs'; did you mean 'max_epochs'?"),
            (("train",), "train#trainr", "did you mean 'train#trainer'?"),
            (("inference",), "displayable_configs#treshold", "did you mean 'displayable_configs#threshold'?"),
            (
                ("inference",),
                "encoder#imagesize",
                "There is no id 'encoder#imagesize'; did you mean 'encoder#image_size'?",
            ),
            (("train",), "train#trainer#epochs", "did you mean 'train#trainer#max_epochs'?"),
        ],
    )
    def test_unknown_id_raises(self, configs, name, expected):
        assert expected in error_of(configs, **{name: 2})

    def test_ids_and_runs_of_users_pass(self):
        check(("inference",), brightest=90, **{"intensities#upper": "@brightest"})
        check(("inference",), mine=["$@check()", "$print(@threshold)"], also="%mine")
        check(("inference",), postprocessing={"_target_": "Compose", "transforms": []})
        check(("train",), **{"train#trainer#max_epochs": 3, "validate#dataset#data": [], "train#handlers": []})
        check(("inference",), network="$torch.nn.Identity()")

    def test_tracking_ids_pass(self, tmp_path):
        workflow = ConfigWorkflow(
            config_file=str(ROOT / "configs" / "train.json"),
            tracking="mlflow",
            logging_file=False,
            output_dir=str(tmp_path),
        )
        workflow.initialize()
        assert workflow.parser.get_parsed_content("tracking_uri")
        workflow.parser["check_alone"] = ["$@check()"]
        workflow.parser.get_parsed_content("check_alone")

    def test_unused_setting_is_logged(self, monkeypatch, caplog):
        monkeypatch.setattr(sys, "argv", ["monai", "run", "training", "--threshold", "2", "--seed", "3"])
        with caplog.at_level(logging.WARNING):
            check(("train",), threshold=2, seed=3)
        assert [record.message for record in caplog.records] == ["threshold changes nothing: this run does not use it."]


class TestCheckConfig:
    @pytest.mark.parametrize(
        ("configs", "overrides", "expected"),
        [
            (("train",), {"resume": "abc"}, "resume must be yes or no; got 'abc'."),
            (("inference",), {"report": "maybe"}, "report must be yes or no"),
            (("inference",), {"threshold": "$float('nan')"}, "threshold must be a number of at least 0; got nan."),
            (("inference",), {"threshold": "$@target_fpr - 1"}, "threshold must be"),
            (("inference",), {"threshold": "$1 / 0"}, "threshold '$1 / 0' cannot be evaluated (division by zero)"),
            (("inference",), {"threshold": "@treshold"}, "threshold '@treshold' cannot be evaluated"),
            (("inference",), {"output_dir": ""}, "output_dir must be a path; got ''."),
            (("inference",), {"bundle_root": True}, "bundle_root must be a path; got True."),
            (("inference", "evaluate"), {"fpr_limit": 2}, "fpr_limit must be a number above 0 and at most 1; got 2."),
            (("train", "calibrate"), {"calibrated_path": 2.5}, "calibrated_path must be a path"),
            (("train", "quantize"), {"seed": -1}, "seed must be a whole number"),
        ],
    )
    def test_wrong_value_ends_the_run(self, configs, overrides, expected):
        assert expected in error_of(configs, **overrides)

    def test_values_reach_the_ids_that_use_them(self):
        fit = check(("train",), patience="off", bundle_root=2024, embedding_store="off", layers=8)
        content = fit.get_parsed_content
        assert content("fit_settings")["patience"] is None and content("embedding_store") is None
        assert content("log_dir") == "2024/output/tensorboard" and content("ckpt_path") == "2024/models/model.pt"
        assert content("layers") == [8] and check(("train",), device="cpu").get_parsed_content("device").type == "cpu"
        run = check(("inference",), smoothing_mm="off", report="no", threshold="$@target_fpr * 200")
        settings = run.get_parsed_content("run_settings")
        assert settings["smoothing_mm"] is None and settings["threshold"] == 2
        assert run.get_parsed_content("report") is False
        paper = check(("train", "paper"), covariance_type="full", patience="off")
        assert paper.get_parsed_content("reg_covar") == 1e-3

    def test_no_fit_on_a_device_without_64_bit_floats(self, monkeypatch):
        monkeypatch.setattr("torch.empty", lambda *_, **__: None)  # the device is not there
        assert "A fit needs 64-bit floats" in error_of(("train",), device="mps")
        for configs in (("inference",), ("train", "calibrate"), ("train", "quantize")):
            assert check(configs, device="mps").get_parsed_content("device").type == "mps"

    def test_none_of_the_command_line_is_kept(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["monai", "run", "training", "--embedding_store", "None"])
        assert check(("train",)).get_parsed_content("embedding_store") is None  # MONAI has dropped it
        monkeypatch.setattr(sys, "argv", ["monai", "run", "training", "--seed", "None"])
        assert "seed must be a whole number" in error_of(("train",))
        assert "got None" in error_of(("train",))
        monkeypatch.setattr(sys, "argv", ["monai", "run", "training", "--ckpt_path", "None"])
        assert "ckpt_path must be a path; got None." in error_of(("train",))

    def test_without_parser_raises(self):
        with pytest.raises(RuntimeError, match=r"no ConfigParser of monai\.bundle has called it"):
            check_config()

    def test_too_many_components_raise(self):
        assert "at most 100000" in error_of(["train"], n_components=999_999_999_999)


class TestRuns:
    def test_off_reaches_a_fit(self, tmp_path):
        for seed in range(4):
            save(tmp_path / "in" / f"sub-{seed}.nii.gz", brain(seed))
        off = {"embedding_store": "off", "log_dir": "off", "validation_dir": "off", "patience": "off"}
        given = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "fit")}
        run_bundle("training", **given, ckpt_path=str(tmp_path / "model.pt"), max_epochs=1, **off)
        assert not {"embeddings", "tensorboard"} & {path.name for path in (tmp_path / "fit").iterdir()}
        assert json.loads((tmp_path / "fit" / "fit_report.json").read_text())["settings"]["patience"] is None
        assert not (tmp_path / "off").exists()

    def test_paths_pass_the_command_line(self, tmp_path, monkeypatch):
        for name in ("2024", "a,b", "0x10", "case#1"):
            (tmp_path / name).mkdir()
            assert f"There are no cases in {name!r}" in run_command(tmp_path, monkeypatch, "--dataset_dir", name)
        assert "seed must be a whole number" in run_command(tmp_path, monkeypatch, "--seed", "abc")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0x10", "2024", "a,b", "case#1"]

    @pytest.mark.slow
    def test_command_ends_with_one_sentence(self, tmp_path):
        command = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "inference",
            "--bundle_root",
            str(ROOT),
            "--treshold",
            "2",
        ]
        command += ["--config_file", str(ROOT / "configs" / "inference.json"), "--dataset_dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert errors == ["error: There is no id 'treshold'; did you mean 'threshold'?"]
        assert list(tmp_path.iterdir()) == []
