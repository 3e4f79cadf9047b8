"""Continued runs: kept results, results computed again, and files of other origin."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from scripts.errors import InputError, cause_of
from scripts.files import RecordedDirectory
from scripts.inference import loader
from scripts.inference.evaluator import CaseEvaluator
from scripts.inference.inferer import DPMMInferer
from scripts.inference.loader import AnomalyMapLoader
from scripts.inference.progress import CaseProgressBar
from scripts.inference.results_directory import LONGEST_NAME, ResultsDirectory, directory_names
from scripts.inference.writer import PredictionWriter
from scripts.models.checkpoint import save_network
from scripts.report import writer
from tests.tiny_bundle import ROOT, TINY, run_configs
from tests.tiny_cases import brain, save, save_dicom_series

pytestmark = pytest.mark.slow

LESION = (slice(16, 22), slice(20, 26), slice(2, 4))
SETTINGS = {"n_components": 4, "covariance_type": "diag", "score": "cosine"}


@pytest.fixture
def folder(tmp_path, fitted_network):
    """Create a model and three cases."""
    save_network(fitted_network, tmp_path / "model.pt")
    for seed in range(3):
        save(tmp_path / "in" / f"p{seed}.nii.gz", brain(seed, shape=(30, 32, 3), lesion=LESION[:2]))
    return tmp_path


def infer(folder, configs=("inference",), run_id="inference", **overrides):
    """Run inference and return the message of its failure, or an empty string."""
    paths = {"dataset_dir": folder / "in", "output_dir": folder / "out", "ckpt_path": folder / "model.pt"}
    paths = {name: str(path) for name, path in paths.items()}
    try:
        run_configs(run_id, configs, **{**paths, **SETTINGS, **overrides})
    except Exception as error:
        assert isinstance(cause_of(error), InputError), repr(cause_of(error))
        return str(cause_of(error))
    return ""


@pytest.fixture
def scored(monkeypatch):
    """Return the names of the cases that are scored."""
    names = []
    score = loader.AnomalyMapLoader._score

    def score_and_record(self, pool):
        names.extend(case.item["case"] for case in pool if "image" in case.item)
        return score(self, pool)

    monkeypatch.setattr(loader.AnomalyMapLoader, "_score", score_and_record)
    return names


def digests(folder):
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def summary_of(folder):
    return json.loads((folder / "out" / "summary.json").read_text())


def full_for(monkeypatch, name):
    """Simulate a disk without space for files of this name."""
    write = RecordedDirectory.write

    def refuse(self, file_name):
        if file_name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, file_name)

    monkeypatch.setattr(RecordedDirectory, "write", refuse)


def evaluator_of(directory, network, n_cases, process):
    case_writer = PredictionWriter(directory, network, {})
    evaluator = CaseEvaluator(
        directory,
        torch.device("cpu"),
        AnomalyMapLoader([{}] * n_cases, None, DPMMInferer()),
        None,
        DPMMInferer(),
        val_handlers=[case_writer],
        iteration_update=process,
    )
    evaluator.data_loader = range(n_cases)
    return evaluator, case_writer


class TestRemainingCases:
    def test_finished_cases(self, folder, scored, caplog):
        assert infer(folder) == ""
        summary, report = summary_of(folder), (folder / "out" / "report.html").read_text()
        results = {name: digest for name, digest in digests(folder / "out").items() if "/" in name}
        shutil.rmtree(folder / "out" / "p1")  # like a run that was killed before this case
        scored.clear()
        with caplog.at_level(logging.INFO, logger="scripts"):
            assert infer(folder) == ""
        assert scored == ["p1"] and "2 of 3 cases are kept from an earlier run; --overwrite True" in caplog.text
        assert summary_of(folder) == summary
        kept = {name: digest for name, digest in digests(folder / "out").items() if name.startswith(("p0/", "p2/"))}
        assert kept == {name: digest for name, digest in results.items() if name.startswith(("p0/", "p2/"))}
        repeated_report = (folder / "out" / "report.html").read_text()
        assert re.sub("Written [^<]*", "", repeated_report) == re.sub("Written [^<]*", "", report)
        assert repeated_report.count('class="viewer"') == 3

    def test_complete_run(self, folder, scored):
        infer(folder)
        before = {name: digest for name, digest in digests(folder / "out").items() if "/" in name}
        scored.clear()
        assert infer(folder, show_progress=True) == "" and scored == []
        assert {name: digest for name, digest in digests(folder / "out").items() if "/" in name} == before
        assert infer(folder, overwrite=True) == "" and sorted(scored) == ["p0", "p1", "p2"]

    @pytest.mark.parametrize(
        "change",
        [
            "image",
            "model",
            "threshold",
            "smoothing_mm",
            "slice_step",
            "report",
            "preprocessing",
            "lambda",
            "result changed",
            "result gone",
            "drawn part gone",
            "record damaged",
        ],
    )
    def test_changes_between_runs(self, folder, scored, change, make_network):
        overrides = {"report": False} if change == "report" else {}
        infer(folder, **overrides)
        scored.clear()
        expected, refusal, overrides = ["p0", "p1", "p2"], "", {}
        case = folder / "out" / "p0"
        if change == "image":
            expected = ["p0"]
            status = (folder / "in" / "p0.nii.gz").stat()
            image = nib.load(folder / "in" / "p0.nii.gz")
            save(folder / "in" / "p0.nii.gz", np.flip(np.asarray(image.dataobj), 0).copy(), image.affine)
            os.utime(folder / "in" / "p0.nii.gz", ns=(status.st_atime_ns, status.st_mtime_ns))
        elif change == "model":
            network = make_network()
            network.calibration.quantiles *= 1.01
            save_network(network, folder / "model.pt")
        elif change == "preprocessing":
            overrides["intensities#headroom"] = 0.2
        elif change == "lambda":
            overrides["postprocessing#transforms#5#spatial_dim"] = "$2"  # hashed like a number
            overrides["intensities"] = {
                "_target_": "Lambdad",
                "keys": "image",
                "func": "$lambda image: image / image.max()",
            }
            infer(folder, **overrides)
            scored.clear()
        elif change == "result changed":
            expected, refusal = (
                [],
                "p0/p0_mask.nii.gz was changed since it was written; rename it to keep it, and run again",
            )
            (case / "p0_mask.nii.gz").write_bytes(b"corrected by hand")
        elif change == "result gone":
            expected = ["p0"]
            (case / "p0_overlay.png").unlink()
        elif change == "drawn part gone":
            expected = ["p0"]
            (case / writer.PART).unlink()
        elif change == "record damaged":
            (case / ".dpmm_record.json").write_text("{")
            expected, refusal = [], "has a directory p0 that this program did not write under this name"
        elif change != "report":
            overrides[change] = {"threshold": 1.2, "smoothing_mm": 1.0, "slice_step": 2}[change]
        message = infer(folder, **overrides)
        assert refusal in message and bool(refusal) == bool(message)
        assert sorted(scored) == expected
        if change == "result changed":
            assert (case / "p0_mask.nii.gz").read_bytes() == b"corrected by hand"

    def test_failed_and_removed_cases(self, folder, scored):
        content = (folder / "in" / "p1.nii.gz").read_bytes()
        (folder / "in" / "p1.nii.gz").write_bytes(content[: len(content) // 2])
        assert "1 of 3 cases failed (the others are finished)" in infer(folder)
        (folder / "in" / "p1.nii.gz").write_bytes(content)
        (folder / "in" / "p0.nii.gz").unlink()
        scored.clear()
        assert infer(folder) == "" and scored == ["p1"]
        assert [entry["case"] for entry in summary_of(folder)["cases"]] == ["p1", "p2"]
        assert (folder / "out" / "p0" / "p0_mask.nii.gz").is_file()
        assert ">p0<" not in (folder / "out" / "report.html").read_text()

    def test_evaluation_after_inference(self, folder, scored):
        infer(folder)
        scored.clear()
        overrides = {
            "configs": ("inference", "evaluate"),
            "run_id": "evaluation",
            "normal_pattern": "p0",
            "n_resamplings": 5,
        }
        assert infer(folder, **overrides) == "" and sorted(scored) == ["p0", "p1", "p2"]
        assert (folder / "out" / "metrics.json").is_file()
        assert infer(folder, report=False) == ""
        file_names = {path.name for path in (folder / "out").iterdir() if path.is_file() and path.name[0] != "."}
        assert file_names == {"summary.json"}  # metrics and report of all cases are removed with their summary


class TestShares:
    def test_run_over_all_joins_the_shares(self, folder, scored, caplog):
        content = (folder / "in" / "p2.nii.gz").read_bytes()
        (folder / "in" / "p2.nii.gz").write_bytes(b"damaged")
        message = infer(folder, share="1/2")
        assert message.startswith("1 of 2 cases failed (the others are finished):\n  p2: ")
        assert scored == ["p0"] and not (folder / "out" / "summary.json").exists()
        assert infer(folder, share="2/2") == "" and scored == ["p0", "p1"]
        assert not list((folder / "out").glob("[!.]*.*"))  # no summary, no report
        (folder / "in" / "p2.nii.gz").write_bytes(content)
        scored.clear()
        with caplog.at_level(logging.INFO, logger="scripts"):
            assert infer(folder) == ""
        assert scored == ["p2"] and "2 of 3 cases are kept" in caplog.text
        joined, report = summary_of(folder), (folder / "out" / "report.html").read_text()
        assert infer(folder, output_dir=str(folder / "single")) == ""
        assert json.loads((folder / "single" / "summary.json").read_text()) == joined
        single = (folder / "single" / "report.html").read_text()
        assert re.sub("Written [^<]*", "", single) == re.sub("Written [^<]*", "", report)

    @pytest.mark.parametrize(
        ("share", "message"),
        [
            ("4/3", "share must be one of 1/3 to 3/3; got 4/3."),
            ("4/4", "share 4/4 of 3 cases is empty; make 3 shares at most."),
            ("0/3", "share must be a share such as 2/16, or off; got '0/3'."),
        ],
    )
    def test_wrong_share(self, folder, share, message):
        assert infer(folder, share=share) == message and not (folder / "out").exists()

    def test_evaluation_takes_no_share(self, folder):
        overrides = {"configs": ("inference", "evaluate"), "run_id": "evaluation", "normal_pattern": "p0"}
        assert "An evaluation takes all cases at once" in infer(folder, share="1/2", **overrides)


class TestProgressBar:
    def test_remaining_time_of_the_cases(self, folder, capfd):
        infer(folder)
        (folder / "in" / "p1.nii.gz").write_bytes(b"damaged")
        shutil.rmtree(folder / "out" / "p2")
        capfd.readouterr()
        infer(folder, show_progress=True)
        shown = re.split(r"[\r\n]", capfd.readouterr().err)
        bars = [line for line in shown if line.startswith("cases:")]
        assert re.search(r"0/3 \[00:00<\?", bars[0]) and "3/3 [" in bars[-1]

    def test_kept_cases_do_not_count_for_the_speed(self, capfd):
        engine = Engine(lambda *_: None)
        engine.state.epoch_length = 10
        bar = CaseProgressBar()
        bar.start(engine)
        for batch in ([{"entry": {}}],) * 6 + ([{"about": {}}], None):
            engine.state.batch = batch
            bar(engine)
        bar.bar.start_t -= 20 - bar.bar.format_dict["elapsed"]  # 20 s for two cases
        figures = bar.bar.format_dict
        assert (figures["n"], figures["initial"], figures["rate"]) == (8, 6, None)
        assert "8/10 [00:20<00:20" in str(bar.bar)  # two are left
        bar._open.close()


class TestForeignFiles:
    @pytest.mark.parametrize(
        "kind", ["its own folder", "its own file", "a neighbour's folder", "a results folder in use"]
    )
    def test_source_folder_as_output_dir(self, folder, fitted_network, kind, scored):
        study = folder / "study"
        if kind == "its own folder":
            save_dicom_series(study / "T1", brain(5))
            paths = {"dataset_dir": str(study / "T1"), "output_dir": str(study)}
        elif kind == "its own file":
            save(study / "p7" / "p7.nii.gz", brain(5))
            paths = {"dataset_dir": str(study / "p7" / "p7.nii.gz"), "output_dir": str(study)}
        elif kind == "a neighbour's folder":
            save(study / "nifti" / "p1.nii.gz", brain(5))
            (study / "p1" / "raw").mkdir(parents=True)
            (study / "p1" / "raw" / "notes.txt").write_text("mine")
            paths = {"dataset_dir": str(study / "nifti"), "output_dir": str(study)}
        else:
            RecordedDirectory(study).open()
            save_dicom_series(study / "T1", brain(5))
            paths = {"dataset_dir": str(study / "T1"), "output_dir": str(study)}
        before = digests(study)
        message = infer(folder, **paths)
        assert "that this program did not write" in message and "give" in message and str(study) in message
        assert digests(study) == before and scored == []

    def test_added_files(self, folder, scored):
        infer(folder)
        contents = {
            "p1/p1_mask_corrected.nii.gz": b"1",
            "p1/notes/a.txt": b"2",
            "readme.txt": b"3",
            "others/image.dcm": b"4",
        }
        for name, content in contents.items():
            (folder / "out" / name).parent.mkdir(exist_ok=True)
            (folder / "out" / name).write_bytes(content)
        for overrides in ({}, {"threshold": 1.5}, {"overwrite": True}):
            assert infer(folder, **overrides) == ""
            assert {name: (folder / "out" / name).read_bytes() for name in contents} == contents
            assert summary_of(folder)["failed"] == {}

    @pytest.mark.parametrize("name", ["summary.json", "report.html"])
    def test_edited_summary_or_report(self, folder, scored, name):
        infer(folder)
        (folder / "out" / name).write_text("edited")
        scored.clear()
        assert f"has a {name} that this program did not write, or that was changed since" in infer(folder, threshold=2)
        assert scored == [] and (folder / "out" / name).read_text() == "edited"


class TestFailedCases:
    def test_failed_handler(self, folder, monkeypatch):
        infer(folder)
        before = {name: digest for name, digest in digests(folder / "out").items() if name.startswith("p1/")}
        draw = writer.case_content

        def draw_or_fail(*arguments):
            if len(cases) == 1:
                cases.append("failed")
                raise RuntimeError("cannot draw")
            cases.append("drawn")
            return draw(*arguments)

        cases = []
        monkeypatch.setattr(writer, "case_content", draw_or_fail)
        assert "1 of 3 cases failed (the others are finished)" in infer(folder, threshold=1.5)
        summary = summary_of(folder)
        assert [entry["case"] for entry in summary["cases"]] == ["p0", "p2"] and [*summary["failed"]] == ["p1"]
        assert {name: digest for name, digest in digests(folder / "out").items() if name.startswith("p1/")} == before
        assert not [path for path in (folder / "out").iterdir() if path.name.startswith((".dpmm_partial", ".dpmm_old"))]

    def test_no_finished_case(self, folder):
        infer(folder)
        for image in (folder / "in").iterdir():
            image.write_bytes(b"broken")
        assert "3 of 3 cases failed (none was finished)" in infer(folder)
        assert summary_of(folder)["cases"] == [] and len(summary_of(folder)["failed"]) == 3
        assert "No case was scored" in (folder / "out" / "report.html").read_text()

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_non_finite_map(self, folder, monkeypatch, value):
        score = loader.AnomalyMapLoader._score_together

        def score_and_spoil(self, pool):
            items = score(self, pool)
            for item in items:
                if item["case"] == "p1":
                    item["pred"][..., 10, 10, 1] = value
            return items

        monkeypatch.setattr(loader.AnomalyMapLoader, "_score_together", score_and_spoil)
        assert "p1: its map holds values that are no numbers" in infer(folder)
        text = (folder / "out" / "summary.json").read_text()
        assert not re.search("NaN|Infinity", text) and len(json.loads(text)["cases"]) == 2

    def test_no_files_outside_output_dir(self, folder, monkeypatch):
        temp_dir = folder / "tmp"
        temp_dir.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(temp_dir))
        infer(folder)
        assert not any(temp_dir.iterdir()) and (folder / "out" / "p0" / writer.PART).is_file()


class TestFullDisk:
    @pytest.mark.parametrize("name", ["summary.json", "report.html"])
    def test_cases_without_summary(self, folder, monkeypatch, name, scored):
        with monkeypatch.context() as patch:
            full_for(patch, name)
            message = infer(folder)
        assert (
            "cannot be written (No space left on device); 3 of 3 cases are finished, so make room and run again"
            in message
        )
        scored.clear()
        assert infer(folder) == "" and scored == [] and len(summary_of(folder)["cases"]) == 3

    def test_outdated_summary(self, folder, monkeypatch, scored):
        infer(folder)
        scored.clear()

        def raise_disk_full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(PredictionWriter, "write_summary", raise_disk_full)
        assert "No space left" in infer(folder)
        assert scored == [] and summary_of(folder)["settings"]["threshold"] == 0.0  # valid, as all cases are kept
        assert "No space left" in infer(folder, threshold=1.2)
        assert scored and not (folder / "out" / "summary.json").exists()

    def test_failed_case(self, folder, monkeypatch):
        save_volume = nib.save

        def save_or_fail(image, path):
            if "p1" in Path(path).name:
                raise OSError(errno.ENOSPC, "No space left on device")
            save_volume(image, path)

        monkeypatch.setattr("scripts.inference.writer.nib.save", save_or_fail)
        message = infer(folder)
        assert "p1: its results could not be written (No space left on device); make room and run again" in message
        assert [entry["case"] for entry in summary_of(folder)["cases"]] == ["p0", "p2"]


class TestResultsDirectory:
    def test_concurrent_run(self, folder, scored):
        with ResultsDirectory(folder / "out").opened():
            assert "Another run writes into output_dir" in infer(folder) and scored == []
        assert infer(folder) == ""

    def test_several_processes(self, tmp_path, monkeypatch):
        first = ResultsDirectory(tmp_path)
        with first.opened():
            monkeypatch.setattr("scripts.inference.results_directory.idist.get_rank", lambda: 1)
            second = ResultsDirectory(tmp_path)
            monkeypatch.setattr("scripts.inference.results_directory.gather", lambda items: [None, *items])
            with second.opened(), second.write_directory("case") as partial:
                (partial / "mask").write_text("1")
            monkeypatch.setattr("scripts.inference.results_directory.gather", lambda items: ["it is full", *items])
            with pytest.raises(InputError, match="it is full"), second.opened():
                pass
        assert (tmp_path / "case" / "mask").is_file()

    def test_cases_named_like_result_files(self, folder):
        image = (folder / "in" / "p0.nii.gz").read_bytes()
        names = ["summary.json", "report.html", "metrics.json", "last_epoch.pt"]
        for name in names:
            (folder / "in" / f"{name}.nii.gz").write_bytes(image)
        assert infer(folder) == ""
        directories = {entry["case"]: entry.get("directory") for entry in summary_of(folder)["cases"]}
        assert directories == {**dict.fromkeys(["p0", "p1", "p2"]), **{name: f"{name}_2" for name in names}}
        assert (folder / "out" / "summary.json_2" / "summary.json_2_mask.nii.gz").is_file()
        assert (folder / "out" / "report.html").is_file()

    def test_directory_names(self):
        cases = [
            "",
            ".",
            "..",
            ".hidden",
            "../out",
            "a/b",
            "P1",
            "p1",
            "Report.HTML",
            "x" * 300,
            "x" * 301,
            "\u00e9",
            "e\u0301",
        ]
        names = directory_names(cases)
        assert [*names] == cases and names["P1"] == "P1"
        folded = [name.casefold() for name in names.values()]
        assert len(set(folded)) == len(cases) and not {"summary.json", "report.html"} & set(folded)
        assert all(
            "/" not in name and not name.startswith(".") and len(name.encode()) <= LONGEST_NAME
            for name in names.values()
        )


class TestCaseEvaluator:
    def test_failed_start(self, tmp_path, fitted_network):
        directory = ResultsDirectory(tmp_path)
        directory.open()
        directory.write_json({"cases": [1]}, "summary.json")
        evaluator, _ = evaluator_of(directory, fitted_network, 2, lambda *_: None)

        def refuse():
            raise InputError("no limits")

        evaluator.add_event_handler(Events.STARTED, refuse)
        with pytest.raises(InputError, match="no limits"):
            evaluator.run()
        assert json.loads((tmp_path / "summary.json").read_text()) == {"cases": [1]}

    @pytest.mark.parametrize("interrupt", ["Ctrl-C", "SIGTERM"])
    def test_stopped_run(self, tmp_path, fitted_network, interrupt):
        def process(engine, number):
            if number == 3:
                if interrupt == "SIGTERM":
                    os.kill(os.getpid(), 15)
                raise KeyboardInterrupt
            engine.n_finished += 1
            engine.state.batch = [{"case": str(number), "entry": {"case": str(number)}}]

        evaluator, _ = evaluator_of(ResultsDirectory(tmp_path), fitted_network, 5, process)
        with pytest.raises(KeyboardInterrupt, match=r"^Stopped; 3 of 5 cases are finished, run again to go on\.$"):
            evaluator.run()
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert [entry["case"] for entry in summary["cases"]] == ["0", "1", "2"]
        with ResultsDirectory(tmp_path).opened():  # the lock is released
            pass

    def test_stopped_command_line(self, folder):
        (folder / "stopping.py").write_text(
            "import os, signal\n"
            "from ignite.engine import Events\n"
            "class Stopper:\n"
            "    def attach(self, engine):\n"
            "        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), self)\n"
            "    def __call__(self, engine):\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
        )
        overlay = folder / "overlay.json"
        overlay.write_text(json.dumps({"+handlers": [{"_target_": "stopping.Stopper"}]}))
        command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(ROOT)]
        command += ["--config_file", str([str(ROOT / "configs" / "inference.json"), str(overlay)])]
        command += ["--logging_file", str(ROOT / "configs" / "logging.conf")]
        arguments = {"dataset_dir": "in", "output_dir": "out", "ckpt_path": "model.pt", **TINY, **SETTINGS}
        command += [argument for name, value in arguments.items() for argument in (f"--{name}", str(value))]
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
        assert process.returncode == 130, process.stderr[-3000:]
        assert process.stderr.splitlines()[-1] == "Stopped; 2 of 3 cases are finished, run again to go on."
        assert "Traceback" not in process.stderr and "terminating" not in process.stderr
        assert len(summary_of(folder)["cases"]) == 2
