"""Benchmark of inference: page, failed rows and invalid arguments. Timings are not tested."""

import json
import re
import threading
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from benchmarks.inference import __main__ as command
from benchmarks.inference import run as run_module
from benchmarks.inference.images import middle_slices
from benchmarks.inference.page import write_page
from benchmarks.inference.rows import Benchmark, RowError, run_python
from benchmarks.inference.run import Stopwatch
from benchmarks.memory_bank import MemoryBank
from benchmarks.memory_bank import measure as measure_bank
from tests.tiny_bundle import TINY
from tests.tiny_cases import brain, save

pytestmark = pytest.mark.slow


def figures_of_run(run, encoder, **others):
    """Return figures of a run over 100 slices; ``run`` and ``encoder`` (per slice) in seconds."""
    parts = {"load": 0.5, "preprocess": 1.0, "encode": 100 * encoder, "resize": 0.8, "score": 0.4, "write": 2.0}
    return {
        "backend_name": "torch fp32",
        "start": 18.0,
        "run": run,
        "parts": parts,
        "encoder": encoder,
        "score": 0.004,
        "n_slices": 100,
        "n_patches": 124800,
        "pixels": [546, 448],
        "patches_per_slice": 1248,
        "gflop": 61.9,
        "n_features": 384,
        "n_active": 208,
        "model_mb": 96.1,
        "mixture_mb": 7.8,
        "peak_mb": 1500.0,
        "gpu_mb": 0,
        **others,
    }


def accuracy(auroc, precision):
    return {"pixel_auroc": auroc, "pixel_ap": precision, "max_dice": 0.8, "aupro_0.3": 0.98, "differing": 0.001}


MACHINE = {
    "processor": "Some CPU",
    "cores": 2,
    "flags": ["avx512_bf16"],
    "gpu": None,
    "versions": {"torch": "2.0"},
    "volume": "a volume",
    "images": "some images",
}
FIGURES = {
    "machine": MACHINE,
    "runtimes": {
        "plain": figures_of_run(90.0, 0.44),
        "torch fp32": figures_of_run(45.0, 0.4),
        "openvino bf16": figures_of_run(22.0, 0.16),
        "openvino int8": {"error": "the processor has no such instructions"},
        "auto": figures_of_run(22.0, 0.16, backend_name="openvino bf16"),
    },
    "bank": {
        "10,000": {"search": 0.1, "bank_mb": 15.4, "peak_mb": 300.0},
        "200,000": {"search": 2.0, "bank_mb": 307.2, "peak_mb": 700.0},
    },
    "slices": {"1": figures_of_run(2.0, 0.4, n_slices=1), "182": figures_of_run(45.0, 0.4, n_slices=126)},
    "normals": {"1": figures_of_run(2.0, 0.4), "25": figures_of_run(2.0, 0.4)},
    "accuracy": {
        "torch fp32": accuracy(0.998, 0.86),
        "openvino bf16": accuracy(0.9979, 0.83),
        "torch bf16": accuracy(0.9981, 0.859),
    },
}


@pytest.fixture
def run_command(monkeypatch, tmp_path):
    """Return the command as a function of its arguments, with rows that measure nothing."""

    def fail():
        raise RowError("no such runtime here")

    rows = {"bank": {"10,000": lambda: FIGURES["bank"]["10,000"]}, "runtimes": {"onnxruntime int8": fail}}
    names = SimpleNamespace(evaluation_name="images", volume_name="volume")
    monkeypatch.setattr(command, "find_images", lambda *_: names)
    monkeypatch.setattr(Benchmark, "rows", lambda _: rows)

    def run(*arguments):
        paths = ["--output", str(tmp_path / "out"), "--page", str(tmp_path / "performance.md")]
        monkeypatch.setattr("sys.argv", ["inference", *paths, *map(str, arguments)])
        command.main()
        return (tmp_path / "performance.md").read_text()

    return run


class Inner:
    def __call__(self, clock):
        clock.now += 3
        return "called"


class Outer:
    def __call__(self, inner, clock):
        clock.now += 1
        assert inner(clock) == "called"
        clock.now += 2
        other = threading.Thread(target=inner, args=[clock])  # threads are timed separately
        other.start()
        other.join()


class TestPage:
    def test_rows_and_plots(self, tmp_path):
        write_page(FIGURES, tmp_path / "docs" / "performance.md")
        page = (tmp_path / "docs" / "performance.md").read_text()
        assert "Some CPU, 2 cores with avx512_bf16, no GPU; torch 2.0." in page
        slices = page.split("## One slice")[1].split("\n## ")[0]
        assert "| openvino bf16 | 546 x 448 | 160 | 2.5 | 387 | 4.0 | 2.5 % |" in slices
        assert "- openvino int8: the processor has no such instructions" in slices
        for table, rows in FIGURES.items():
            for row in rows if table != "machine" else ():
                title = "auto: openvino bf16" if row == "auto" else row
                assert ("error" in rows[row]) != (f"| {title} |" in page), (table, row)
        links = set(re.findall(r"!\[.*\]\((.*?)\)", page))
        assert links == {path.name for path in (tmp_path / "docs").glob("*.png")} and len(links) == 4
        for name in links:
            assert (tmp_path / "docs" / name).read_bytes().startswith(b"\x89PNG")
        tables = [block for block in page.split("\n\n") if block.startswith("|")]
        assert len(tables) == 6
        for block in tables:  # equal numbers of cells per row
            assert len({line.count("|") for line in block.splitlines()}) == 1, block

    def test_ratios(self, tmp_path):
        write_page(FIGURES, tmp_path / "performance.md")
        page = (tmp_path / "performance.md").read_text()
        assert "| 0.5 | 1.0 | 16.0 | 0.8 | 0.4 | 0.0 | 2.0 | 0.0 | 27.3 % | 1.5 GB | 4.09 |" in page
        assert (
            "| openvino bf16 | 0.9979 (-0.0001) | 0.8300 (-3.5 %) | 0.8000 (+0.0 %) | 0.9800 (+0.0 %) | 0.100 % |"
            in page
        )
        assert "| 200,000 | 2000 | 500 | 245 s | 11.1 | 11.1 | 5.44 | 307 MB | 700 MB |" in page

    def test_page_without_figures(self, tmp_path):
        write_page({}, tmp_path / "performance.md")
        page = (tmp_path / "performance.md").read_text()
        assert page.count("Not measured.") == 6
        assert not re.search(r"\bnan|None|Measured on", page)
        assert {path.name for path in tmp_path.iterdir()} == {"performance.md"}

    def test_figures_without_reference(self, tmp_path):
        write_page(
            {"bank": FIGURES["bank"], "accuracy": {"torch bf16": accuracy(0.9, None)}}, tmp_path / "performance.md"
        )
        page = (tmp_path / "performance.md").read_text()
        assert "| 10,000 | 100 | - | - | 15 MB | 300 MB |" in page
        assert "| torch bf16 | 0.9000 | - | 0.8000 | 0.9800 | 0.100 % |" in page


class TestCommand:
    def test_missing_and_failed_rows(self, run_command, capsys):
        page = run_command()
        assert "| 10,000 | 100 |" in page and "- onnxruntime int8: no such runtime here" in page
        assert "[1/2] bank/10000" in capsys.readouterr().out
        run_command()
        assert "[" not in capsys.readouterr().out  # no row is missing
        run_command("--rows", "bank")
        assert re.findall(r"\] (\S+)", capsys.readouterr().out) == ["bank/10000"]
        run_command("--rows", "runtimes/onnx*", "--page_only")
        assert "[" not in capsys.readouterr().out

    def test_invalid_arguments(self, run_command, tmp_path, capsys):
        def error(*arguments):
            with pytest.raises(SystemExit):
                run_command(*arguments)
            return capsys.readouterr().err

        assert "no row 'banks'; there are bank/10000, runtimes/onnxruntime-int8" in error("--rows", "banks")
        assert "there is no model" in error("--model", tmp_path / "nowhere.pt")
        for content in ("one", "two"):
            (tmp_path / f"{content}.pt").write_text(content)
        run_command("--model", tmp_path / "one.pt")
        assert "holds another model than" in error("--model", tmp_path / "two.pt")


class TestRows:
    def test_names_of_rows(self, tmp_path):
        rows = Benchmark(None, tmp_path, {}).rows()
        expected = {
            "runtimes": {"plain", "torch fp32", "openvino bf16", "auto"},
            "bank": {"1,500,000"},
            "slices": {"1", "182"},
            "normals": {"1", "all"},
            "accuracy": {"torch fp32", "auto, fast"},
        }
        for table, names in expected.items():
            assert names <= set(rows[table])
        assert next(iter(rows["accuracy"])) == "torch fp32"  # reference for the masks of the other rows

    def test_message_of_a_failed_process(self):
        with pytest.raises(RowError, match=r"^ValueError: of this$"):
            run_python("-c", "raise ValueError('of this')")
        with pytest.raises(RowError, match=r"^1 case failed: why$"):
            run_python("-c", "import sys; sys.exit('a log\\nerror: 1 case failed:\\n  why')")
        with pytest.raises(RowError, match=r"status 3"):
            run_python("-c", "import sys; sys.exit(3)")


class TestMiddleSlices:
    def test_crop_and_background_noise(self, tmp_path):
        volume = np.zeros((20, 22, 9), np.float32)
        volume[4:9, 5:9, 2:7] = np.arange(2, 7)
        save(tmp_path / "volume.nii.gz", volume, np.eye(4))
        middle = nib.load(middle_slices(tmp_path / "volume.nii.gz", 3, tmp_path)).get_fdata()
        assert np.array_equal(middle, volume[..., 3:6])
        noisy = nib.load(middle_slices(tmp_path / "volume.nii.gz", 9, tmp_path, fill_background=True)).get_fdata()
        assert noisy.min() > 0 and np.ptp(noisy, (0, 1)).min() > 0
        assert np.array_equal(noisy[volume > 0], volume[volume > 0])


class TestMemoryBank:
    def test_nearest_neighbour_distances(self):
        generator = np.random.default_rng(0)
        stored, patches = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in generator.normal(size=(2, 50, 8)))
        bank = MemoryBank(np.split(stored.astype(np.float32), 5), 8)
        np.testing.assert_allclose(
            bank.distances(patches.astype(np.float32)), 1 - (patches @ stored.T).max(1), atol=1e-6
        )
        assert bank.n_numbers == 400
        figures = measure_bank(n_stored=300, n_patches=4, n_features=8, min_run_time=0.01)
        assert figures["bank_mb"] == 300 * 8 * 4 / 1e6 and figures["search"] > 0


class TestStopwatch:
    def test_nested_parts(self, monkeypatch):
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(run_module, "timer", lambda: clock.now)
        stopwatch, inner, outer = Stopwatch(), Inner(), Outer()
        stopwatch.watch("inner", inner, "__call__", "no_such_method")
        stopwatch.watch("outer", outer, "__call__")
        assert isinstance(inner, Inner) and type(inner).__name__ == "Inner"
        outer(inner, clock)
        assert stopwatch.seconds == {"outer": 1 + 2 + 3, "inner": 3 + 3}


class TestMeasure:
    def test_all_parts_of_a_run(self, shipped, tmp_path):
        save(tmp_path / "case.nii.gz", np.pad(brain(3), ((0, 0), (0, 0), (0, 2))))
        settings = {**TINY, "runtime": "torch", "precision": "fp32", "ckpt_path": str(shipped / "models" / "model.pt")}
        figures = run_module.measure(str(tmp_path / "case.nii.gz"), str(tmp_path / "out"), settings)
        assert (tmp_path / "out" / "case" / "case_mask.nii.gz").is_file()
        assert {*figures["parts"]} == {
            "load",
            "preprocess",
            "encode",
            "resize",
            "score",
            "postprocess",
            "write",
            "report",
        }
        assert min(figures["parts"].values()) > 0
        assert figures["n_slices"] == 5  # two others are empty
        assert figures["n_patches"] == 5 * figures["patches_per_slice"]
        assert figures["n_features"] == 32 and 0 < figures["n_active"] <= 8
        assert figures["peak_mb"] > 100 > figures["model_mb"] > figures["mixture_mb"] > 0
        json.dumps(figures)
