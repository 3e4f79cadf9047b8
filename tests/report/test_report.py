"""The report of a run: its content, its privacy, and its behaviour in a browser."""

import base64
import gc
import io
import json
import re
import weakref
from html.parser import HTMLParser

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from PIL import Image
from skimage.measure import grid_points_in_poly

from scripts.data.foreground import foreground_mask
from scripts.data.labels import GroundTruth
from scripts.files import write_json
from scripts.inference import PredictionWriter
from scripts.inference.measurements import measurements
from scripts.inference.patches import CasePatches, Window, split_by_case
from scripts.inference.results_directory import ResultsDirectory
from scripts.inference.visualization import SliceView
from scripts.models.checkpoint import save_network
from scripts.models.provenance import NOTE
from scripts.report import ReportWriter
from scripts.report.content import case_content
from scripts.report.figures import curve_svgs, histogram_svg
from scripts.report.pictures import LONGEST_SIDE, MAX_SLICES, SlicePictures, component_colours, representative_slices
from tests.conftest import make_fitted_network
from tests.report.browser import run_chromium
from tests.tiny_bundle import ROOT, TINY

HOSTILE = "<img src=x onerror=alert(1)>&amp;'\"{{ 7*7 }}"
METRICS = {
    "note": NOTE,
    "pooled": {
        "pixel_auroc": {"value": 0.9876, "low": 0.9, "high": 0.99, "binning_error": 1e-4},
        "dice_at_fpr_0.1": {"value": 0.3, "low": None, "high": None},
        "image_auroc": {"value": None, "low": None, "high": None, "reason": "no normal case"},
    },
    "cases": [
        {
            "case": "head",
            "image_score": 2.0,
            "is_anomalous": True,
            "lesions": 31,
            "missed_lesions": 12,
            "false_regions": 77,
        }
    ],
    "lesion_size_limits": {"mL": [0.51, 2.25]},
    "curves": {
        "froc": {"false_regions_per_case": [0, 0, 0.5, 3], "lesion_sensitivity": [0, 0.4, 0.6, 0.8]},
        "roc": {"fpr": [0, 0.1, 1], "tpr": [0, 0.9, 1]},
        "pr": {"recall": [0, 0.5, 1], "precision": [1, 0.9, 0.1]},
        "pro": {"fpr": [0, 0.1, 0.3], "pro": [0, 0.5, 0.8]},
        "dice": {"threshold": [0, 1, 2], "dice": [0.1, None, 0.2]},
    },
    "unlabelled": {"photo": "there is no label photo.png"},
}


class Page(HTMLParser):
    """Elements, text and embedded JSON of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.json, self._inside = [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = dict(attributes).get("type", tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "application/json":
            self.json.append(json.loads(data))
        elif not self._inside:
            self.text += data


def picture_of(uri):
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def brain(seed, shape=(40, 46, 5)):
    """Return a textured blob ``[H,W,D]`` on a background of zeros; its first slice is empty."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij"))
    image = (600 + 80 * np.sin(9 * grid[0])[..., None] + generator.normal(0, 20, shape)) * (
        np.square(grid).sum(0) < 0.7
    )[..., None]
    image[..., 0] = 0
    return image.astype(np.int16)


def make_workflow(network, folder, **overrides):
    save_network(network, folder / "model.pt")
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "inference.json"),
        workflow_type="inference",
        run_id="inference",
        bundle_root=str(ROOT),
        logging_file=False,
        **{
            "dataset_dir": str(folder / "in"),
            "output_dir": str(folder / "out"),
            "ckpt_path": str(folder / "model.pt"),
            **TINY,
            "n_components": 4,
            "covariance_type": "diag",
            "score": "cosine",
            **overrides,
        },
    )
    workflow.initialize()
    return workflow


def write_cases(folder):
    """Write two good cases into ``in/``, one of them a picture, and a bad one; return the folder."""
    (folder / "in").mkdir()
    nib.save(nib.Nifti1Image(brain(1), np.diag([0.9, 1.1, 4, 1])), folder / "in" / "head.nii.gz")
    Image.fromarray(np.clip(brain(2)[..., 2] / 4, 0, 255).astype(np.uint8)).save(folder / "in" / "photo.png")
    nib.save(nib.Nifti1Image(np.full((40, 40, 3), 7, np.int16), np.eye(4)), folder / "in" / "flat.nii.gz")
    return folder


def write_report(network, folder, **overrides):
    """Run inference in a folder, which fails for the bad case; return the report."""
    with pytest.raises(Exception, match="Failed to evaluate"):
        make_workflow(network, folder, **overrides).run()
    return (folder / "out" / "report.html").read_text()


def decide(data):
    """Postprocess a case: the volume is flagged for one region, which the label nearly has; the picture is not."""
    is_volume = data["image"].ndim == 4
    truth = np.zeros(data["image"].shape[1:], bool)
    truth[(slice(12, 24),) * 2 + ((slice(2, 4),) if is_volume else ())] = is_volume
    region = {"peak": 4.321, "p_value": 0.025, "n_voxels": 150, "volume_ml": 0.77, "peak_voxel": [17, 18, 2]}
    data["pred"][:] = torch.from_numpy(np.roll(truth, 2, axis=0))
    data["result"] |= {
        "image_score": 1.0 if is_volume else 3.0,
        "regions": [region] * is_volume,
        "n_regions": int(is_volume),
        "p_value": 0.025 if is_volume else 1.0,
        "held_out_cases": 39,
        "flagged": is_volume,
    }
    return {**data, "peak_limit": 2.345, "truth": GroundTruth(is_volume, truth)}


def forget(data):
    """Postprocess a case as an earlier version did."""
    for key in ("p_value", "flagged", "held_out_cases", "regions"):
        data["result"].pop(key, None)
    return data


def postprocess(workflow, transform):
    """Append a transform to the postprocessing of a workflow."""
    postprocessing = workflow.parser.get_parsed_content("postprocessing")
    postprocessing.transforms = (*postprocessing.transforms, transform)
    return workflow


@pytest.fixture
def folder(tmp_path):
    return write_cases(tmp_path)


@pytest.fixture(scope="module")
def decided_run(tmp_path_factory):
    """Run inference with `decide` once; return the report."""
    folder = write_cases(tmp_path_factory.mktemp("decided"))
    (folder / "in" / "flat.nii.gz").unlink()
    postprocess(make_workflow(make_fitted_network(), folder), decide).run()
    return (folder / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """Run inference with the default settings once; return the folder and the report."""
    folder = write_cases(tmp_path_factory.mktemp("report"))
    return folder, write_report(make_fitted_network(), folder)


class TestContent:
    def test_cases_failures_and_settings(self, fitted_network, folder):
        page = Page(write_report(fitted_network, folder, threshold=0.5))
        summary = json.loads((folder / "out" / "summary.json").read_text())
        ranked = sorted(summary["cases"], key=lambda entry: -entry["image_score"])
        links = [
            attributes["href"] for tag, attributes in page.elements if tag == "a" and "aria-hidden" not in attributes
        ]
        sections = [attributes["id"] for tag, attributes in page.elements if "case-" in attributes.get("id", "")]
        assert [link for link in links if link != "#cases"] == [f"#{section}" for section in sections]
        positions = [[match.start() for match in re.finditer(rf"\b{entry['case']}\b", page.text)] for entry in ranked]
        assert positions[0][0] < positions[1][0]  # in the table
        for entry in ranked:
            assert f"image score {entry['image_score']:.2f}" in " ".join(page.text.split())
        assert NOTE in page.text and "every voxel is 7" in page.text
        for name, value in [*summary["settings"].items(), *summary["versions"].items()]:
            assert re.search(rf"{re.escape(name)}\s*{re.escape(str(value))}", page.text)

    def test_every_scored_slice_is_shown(self, default_run):
        folder, report = default_run
        page = Page(report)
        (volume,) = (slices for slices in page.json if len(slices) > 1)
        (picture,) = (slices for slices in page.json if len(slices) == 1)
        assert [entry["name"] for entry in volume] == [1, 2, 3, 4]  # the first has no contrast
        scores = np.asarray(nib.load(folder / "out" / "head" / "head_map.nii.gz").dataobj)
        foreground = brain(1) > 0
        for entry in volume:
            inside = np.sort(scores[..., entry["name"]][foreground[..., entry["name"]]])
            assert entry["score"] == pytest.approx(inside[-max(1, round(len(inside) / 100)) :].mean(), rel=1e-5)
        sliders = [attributes for tag, attributes in page.elements if attributes.get("type") == "range"]
        assert [slider["max"] for slider in sliders] == ["3"]  # a single picture has no slider
        for entry in volume + picture:
            plain = picture_of(entry["plain"])
            assert max(plain.size) <= LONGEST_SIDE
            assert picture_of(entry["components"]).size == picture_of(entry["rarity"]).size == plain.size

    def test_components(self, default_run):
        page = Page(default_run[1])
        shares = [float(share) for share in re.findall(r"\d+\s+([\d.]+) %\s+[\d.]+ %\s+-?[\d.]+\s", page.text)]
        assert shares and all(0 < share <= 100 for share in shares)
        assert sum(shares) == pytest.approx(200, abs=1)  # two cases, and at most four components in each

    @pytest.mark.parametrize("report", [False, True])
    def test_report_leaves_no_hooks(self, fitted_network, folder, report):
        (folder / "in" / "flat.nii.gz").unlink()
        workflow = make_workflow(fitted_network, folder, report=report)
        workflow.run()
        assert (folder / "out" / "report.html").exists() is report
        assert not any(part._forward_hooks for part in workflow.parser.get_parsed_content("network").modules())

    def test_report_of_failed_cases(self, fitted_network, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "text.nii.gz").write_text("not an image")
        with pytest.raises(Exception, match="Failed to evaluate"):
            make_workflow(fitted_network, tmp_path).run()
        text = Page((tmp_path / "out" / "report.html").read_text()).text
        assert "No case was scored" in text and "check that the file is whole" in text

    @pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, Events.COMPLETED])
    def test_metrics_of_the_run(self, fitted_network, folder, event):
        evaluator = make_workflow(fitted_network, folder).parser.get_parsed_content("evaluator")
        path = folder / "out" / "metrics.json"
        evaluator.add_event_handler(event, lambda: write_json(METRICS, path))
        with pytest.raises(ValueError, match="1 of 3 cases failed"):
            evaluator.run()
        page = Page((folder / "out" / "report.html").read_text())
        text = " ".join(page.text.split())
        assert "pixel auroc 0.988 0.900 to 0.990" in text and "Without image auroc: no normal case." in text
        assert "there is no label photo.png" in text
        assert "anomalous 31 12 77" in text and "\N{EN DASH}" in text
        assert "small up to 0.51 mL, medium up to 2.25 mL" in text
        assert text.index("dice at fpr 0.1 0.300") > text.index("At thresholds of the map")
        assert all(
            title in text for title in ("FROC", "ROC", "Precision and recall", "Overlap per region", "Dice against")
        )
        write_report(fitted_network, folder)
        assert path.exists() and "pixel auroc" not in (folder / "out" / "report.html").read_text()

    def test_outside_fitted_range(self, fitted_network, folder, monkeypatch):
        def outside(*arguments):
            share = 0.7 if arguments[0].ndim == 2 else 0.1
            return {**measurements(*arguments), "fraction_beyond_limit": share, "outside_fitted_range": share > 0.3}

        (folder / "in" / "flat.nii.gz").unlink()
        monkeypatch.setattr("scripts.inference.measurements.measurements", outside)
        make_workflow(fitted_network, folder).run()
        text = Page((folder / "out" / "report.html").read_text()).text
        assert text.count("outside the fitted range") == 2 and "70 % of the foreground lies beyond" in text

    def test_highest_scores_of_many_cases(self, fitted_network, tmp_path, monkeypatch):
        monkeypatch.setattr("scripts.report.writer.MAX_CASES", 2)
        (tmp_path / "in").mkdir()
        for seed in range(5):
            nib.save(nib.Nifti1Image(brain(seed), np.eye(4)), tmp_path / "in" / f"head-{seed}.nii.gz")
        make_workflow(fitted_network, tmp_path).run()
        page = Page((tmp_path / "out" / "report.html").read_text())
        entries = json.loads((tmp_path / "out" / "summary.json").read_text())["cases"]
        highest = sorted(entries, key=lambda entry: -entry["image_score"])[:2]
        drawn = [attributes["aria-label"] for _, attributes in page.elements if "viewer" in attributes.get("class", "")]
        assert drawn == [f"slices of {entry['case']}" for entry in highest] and len(page.json) == 2
        assert "The first 2 cases are drawn" in " ".join(page.text.split())
        assert all(entry["case"] in page.text for entry in entries)

    def test_only_the_first_process_writes_the_report(self, fitted_network, tmp_path, monkeypatch):
        monkeypatch.setattr(idist, "get_rank", lambda: 1)
        writer = PredictionWriter(ResultsDirectory(tmp_path), fitted_network, {"threshold": 1.0})
        ReportWriter(writer).write(Engine(lambda *_: None))
        assert not any(tmp_path.iterdir())


class TestDecisions:
    def test_flags_p_values_and_regions(self, decided_run):
        text = " ".join(Page(decided_run).text.split())
        assert re.search(r"flagged\s*1 of 2", text)
        assert "Flagged: as high a peak in 0 of 39 held-out healthy cases (p = 0.025)." in text
        assert "Not flagged: as high a peak in 39 of 39 held-out healthy cases (p = 1)." in text
        assert "4.32 0.77 0.025 17, 18, 2" in text and "peak of a region from 2.35" in text

    def test_cases_by_p_value_and_quiet_ones_muted(self, decided_run):
        page = Page(decided_run)
        viewers = [attributes["aria-label"] for tag, attributes in page.elements if attributes.get("class") == "viewer"]
        assert viewers == ["slices of head", "slices of photo"]  # the image score of the photo is higher
        rows = [attributes.get("class") for tag, attributes in page.elements if tag == "tr"]
        assert rows.count("quiet") == 1

    def test_outlines_of_mask_and_truth(self, decided_run):
        volume, picture = sorted(Page(decided_run).json, key=len, reverse=True)
        assert [bool(entry["truth_outline"]) for entry in volume] == [False, True, True, False]
        assert all(entry["truth_outline"] != entry["outline"] for entry in volume if entry["truth_outline"])
        assert picture[0]["outline"] == picture[0]["truth_outline"] == ""

    def test_no_box_for_a_missing_label(self, default_run):
        page = Page(default_run[1])
        boxes = [attributes["value"] for _, attributes in page.elements if attributes.get("type") == "checkbox"]
        assert boxes == ["outline", "outline"] and not any(
            entry["truth_outline"] for slices in page.json for entry in slices
        )

    def test_entries_of_earlier_versions(self, fitted_network, folder):
        (folder / "in" / "flat.nii.gz").unlink()
        postprocess(make_workflow(fitted_network, folder), forget).run()
        text = " ".join(Page((folder / "out" / "report.html").read_text()).text.split())
        assert "No case can be flagged: " in text and "healthy cases (p" not in text

    def test_slices_are_made_once_and_freed(self, fitted_network, folder, monkeypatch):
        (folder / "in" / "flat.nii.gz").unlink()
        made = []

        def make(*arguments):
            gc.collect()
            assert not any(view() for view in made)
            view = of(*arguments)
            made.append(weakref.ref(view))
            return view

        of = SliceView.of
        monkeypatch.setattr(SliceView, "of", make)
        make_workflow(fitted_network, folder).run()
        gc.collect()
        assert len(made) == 2 and not any(view() for view in made)


class TestPrivacy:
    def test_report_is_self_contained(self, default_run):
        _, report = default_run
        assert not re.search(r"https?:|url\((?!#)|@import|<link|<iframe|<object|<embed", report)
        page = Page(report)
        for _, attributes in page.elements:
            assert attributes.get("src", "data:").startswith("data:")
            assert attributes.get("href", "#").startswith("#")
        policy = next(a["content"] for tag, a in page.elements if "http-equiv" in a)
        assert "default-src 'none'" in policy  # a browser refuses requests

    def test_names_and_reasons_are_escaped(self, fitted_network, tmp_path):
        (tmp_path / "in").mkdir()
        nib.save(nib.Nifti1Image(brain(3), np.eye(4)), tmp_path / "in" / f"{HOSTILE}.nii.gz")
        (tmp_path / "in" / f"bad{HOSTILE}.nii.gz").write_text("not an image")
        with pytest.raises(Exception, match="Failed to evaluate"):
            make_workflow(fitted_network, tmp_path).run()
        page = Page((tmp_path / "out" / "report.html").read_text())
        assert f"bad{HOSTILE}" in page.text and page.text.count(HOSTILE) > 2
        assert not any("onerror" in attributes for _, attributes in page.elements)


def patches_of(network, view, window=None):
    """Return the patches of a view after the network has scored its non-constant slices in batches of two."""
    window = window or Window((0, 0, 0), view.image.shape[1:3])
    (first_slice, row, column), (height, width) = window
    seen = view.image[:, row : row + height, column : column + width, first_slice:]
    slices = torch.from_numpy(np.flatnonzero(np.ptp(seen, (0, 1, 2))))
    batches = torch.from_numpy(seen[..., slices.numpy()]).movedim(3, 0).float().split(2)
    (assignments,) = split_by_case([network.score_patches(batch) for batch in batches], [slices], [window])
    return CasePatches.of(assignments, view, network)


class TestCasePatches:
    @pytest.mark.parametrize("score", ["cosine", "negative_log_likelihood"])
    def test_component_of_every_pixel(self, make_network, score):
        fitted_network = make_network(score)
        generator = torch.Generator().manual_seed(3)
        image = torch.rand(1, 45, 61, 4, generator=generator)
        image[..., 1] = 0.5  # no contrast
        empty = np.zeros((45, 61, 4))
        foreground = foreground_mask(image.numpy())
        view = SliceView(image.numpy(), empty, empty > 0, foreground, (1.0, 1.0), [0, 1, 2, 3])
        occupied = image[..., [0, 2, 3]].movedim(3, 0)
        patches = patches_of(fitted_network, view)

        embeddings = fitted_network.embed(occupied)
        _, d, h, w = embeddings.shape
        samples = embeddings.movedim(1, 3).reshape(-1, d)
        nearest = fitted_network.mixture(samples)[0].reshape(3, 1, h, w).float()
        resized = F.interpolate(nearest, scale_factor=14, mode="nearest-exact")[..., :56, : round(61 / 45 * 56)]
        expected = F.interpolate(resized, size=(45, 61), mode="nearest-exact")[:, 0].numpy()
        assert patches.slices.tolist() == [0, 2, 3]
        assert np.array_equal(patches.components[:, patches.rows[:, None], patches.columns], expected)
        likelihood = fitted_network.mixture.score_samples(samples).reshape(3, h, w).numpy()
        order = np.argsort(patches.rarity.ravel())
        assert (np.diff(likelihood.ravel()[order]) <= 1e-3).all()
        assert len(np.unique(patches.components)) > 1

        foreground = np.zeros((45, 61, 4), bool)
        foreground[20, 30, 2] = True
        assert np.argwhere(patches.on_foreground(foreground)).tolist() == [[1, patches.rows[20], patches.columns[30]]]


@pytest.fixture
def large_view():
    """Return a head of ordinary size with texture and noise."""
    shape = (217, 181, 40)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(4).normal(0, 0.03, shape)
    image = (0.5 + 0.2 * np.sin(20 * grid[0]) * np.cos(15 * grid[1]) + noise) * (np.square(grid).sum(0) < 0.9)
    scores = np.exp(-8 * np.square(grid - 0.2).sum(0)) * 2
    image = image[None].clip(0, 1)
    return SliceView(image, scores, scores > 1, foreground_mask(image), (1.0, 1.0), list(range(40)))


class TestPictures:
    @pytest.mark.parametrize("n_scored", [1, 7, MAX_SLICES, 181])
    def test_chosen_slices(self, n_scored):
        scores = np.random.default_rng(n_scored).random(n_scored)
        indices = representative_slices(scores, np.zeros((0, n_scored), bool))
        assert len(indices) == min(n_scored, MAX_SLICES)
        assert (np.diff(indices) > 0).all() and scores.argmax() in indices
        assert np.abs(indices[:, None] - np.arange(n_scored)).min(0).max() <= 2 * n_scored / len(indices)

    @pytest.mark.parametrize("n_regions", [3, 40])
    def test_slices_of_regions_are_chosen(self, n_regions):
        generator = np.random.default_rng(n_regions)
        scores, shown = generator.random(300), np.zeros((n_regions, 300), bool)
        slices = generator.permutation(300)[:n_regions]
        shown[np.arange(n_regions), slices] = True
        indices = representative_slices(scores, shown)
        assert len(indices) == MAX_SLICES and (np.diff(indices) > 0).all() and scores.argmax() in indices
        assert np.isin(slices, indices).sum() >= min(n_regions, MAX_SLICES // 2)

    def test_size_of_a_large_case(self, large_view, fitted_network):
        fitted_network.image_size = 448  # as many patches as with the real encoder
        content = case_content(large_view, patches_of(fitted_network, large_view), fitted_network, {})
        assert len(content["slices"]) == MAX_SLICES < len(content["scored"])
        assert len(json.dumps(content)) < 480_000

    def test_outline_surrounds_the_mask(self, large_view, fitted_network):
        number = int(large_view.scores.max((0, 1)).argmax())
        one = SliceView(
            *(getattr(large_view, name)[..., [number]] for name in ("image", "scores", "mask", "foreground")),
            (2.0, 1.0),
            [number],
        )
        pictures = SlicePictures(one, patches_of(fitted_network, one))
        assert pictures.height / pictures.width == pytest.approx(2 * 209 / 179, rel=0.05)
        (path,) = re.findall(r"M([^M]*)Z", pictures.draw(0)["outline"])
        points = np.array([point.split() for point in path.split("L")], float)[:, ::-1]
        inside = grid_points_in_poly((pictures.height, pictures.width), points - 0.5)
        mask = Image.fromarray(one.mask[one.box()][..., 0]).resize((pictures.width, pictures.height))
        assert (inside ^ np.asarray(mask)).sum() < 0.06 * inside.sum()

    def test_component_colours(self):
        colours = component_colours(np.arange(50))
        distances = np.abs(colours[:, None] - colours).max(2) + np.eye(50)
        assert distances.min() > 0.1
        assert np.array_equal(component_colours(np.array([[7]]))[0, 0], colours[7])


class TestFigures:
    def test_figures_take_the_colours_of_the_page(self):
        rates = np.array([0.5, 0.1, 0.01, 0.01, 0.001])
        drawn = histogram_svg(np.linspace(-1, 3, 100), np.array([0, 0.5, 1, 1, 1.5]), rates, {})
        for svg in [drawn, *curve_svgs(METRICS["curves"], 1.0)]:
            assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
            assert "currentColor" in svg and "<style" not in svg and "xmlns" not in svg
            assert len(svg) < 20_000
        limits = {"threshold": 1.2345, "peak": 7.0}
        marked = histogram_svg(np.linspace(-1, 3, 100), np.array([0, 1]), rates[[0, 2]], limits)
        assert "threshold 1.2345" in marked and "peak 7" in marked

    def test_undefined_curve_is_left_out(self):
        curves = {**METRICS["curves"], "roc": {"fpr": [], "tpr": []}, "pr": {"recall": [None], "precision": [None]}}
        assert len(curve_svgs(curves, 1.0)) == 3 and curve_svgs({}, 1.0) == []


USE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const seen = {};
  const viewer = [...document.querySelectorAll(".viewer")].find((each) => each.querySelector("[type=range]"));
  const image = viewer.querySelector(".image"), output = viewer.querySelector("output");
  const slider = viewer.querySelector("[type=range]");
  const press = (key) => viewer.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  for (let n = 0; n < 9; n++) press("ArrowLeft");
  seen.first = output.textContent;
  const source = image.src;
  press("ArrowRight");
  seen.second = output.textContent;
  seen.changed = source !== image.src;
  viewer.querySelector("[value=components]").click();
  seen.layer = viewer.querySelector(".layer").className;
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input"));
  seen.last = output.textContent;
  viewer.querySelector("rect").dispatchEvent(new MouseEvent("click"));
  seen.bar = output.textContent;
  const links = () => [...document.querySelectorAll(".sortable tbody td:nth-child(2) a")];
  const cases = () => links().map((link) => link.textContent);
  const heads = document.querySelectorAll(".sortable th button");
  heads[0].click();
  seen.falling = cases();
  heads[0].click();
  seen.rising = cases();
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.requests = seen.requests.filter((name) => !name.startsWith("data:"));
  image.decode().then(() => {
    seen.width = image.naturalWidth;
    document.title = JSON.stringify(seen);
  });
}, 50));
</script>
"""


SWITCH = """
<script>
addEventListener("load", () => setTimeout(() => {
  const viewer = document.querySelector(".viewer");
  const drawn = () => [...viewer.querySelectorAll("path")].map((path) => path.getAttribute("d") !== "");
  const slider = viewer.querySelector("[type=range]");
  slider.value = 1; // the second of the scored slices has both outlines
  slider.dispatchEvent(new Event("input"));
  const seen = [drawn()];
  for (const value of ["truth_outline", "outline", "truth_outline"]) {
    viewer.querySelector(`[value=${value}]`).click();
    seen.push(drawn());
  }
  document.title = JSON.stringify(seen);
}, 50));
</script>
"""


@pytest.fixture
def browse(tmp_path):
    """Return a function that opens a page in Chromium and returns its title and the log of Chromium."""

    def browse_page(text):
        page = tmp_path / "page.html"
        page.write_text(text)
        done = run_chromium(page, "--dump-dom")
        return re.search("<title>(.*?)</title>", done.stdout)[1], done.stderr

    return browse_page


FIND = """
<script>
addEventListener("load", () => setTimeout(() => {
  const find = document.querySelector(".find"), input = find.querySelector("input");
  const more = find.querySelector("button");
  const links = () => [...document.querySelectorAll(".sortable tbody td:nth-child(2) a")];
  const listed = () => links().map((link) => link.textContent);
  const seen = [listed(), find.querySelector("output").textContent];
  input.value = "PHO";
  input.dispatchEvent(new Event("input"));
  seen.push(listed());
  input.value = "";
  input.dispatchEvent(new Event("input"));
  document.querySelector(".sortable th button").click();
  seen.push(listed());
  more.click();
  seen.push(listed(), more.hidden);
  document.title = JSON.stringify(seen);
}, 50));
</script>
"""


class TestBrowser:
    def test_long_list(self, fitted_network, tmp_path, browse, monkeypatch):
        monkeypatch.setattr("scripts.report.writer.ROWS_AT_ONCE", 1)
        title, logged = browse(write_report(fitted_network, write_cases(tmp_path)) + FIND)
        first, count, found, falling, whole, is_hidden = json.loads(title)
        assert len(first) == 1 and count == "1 of 2 cases are listed." and found == ["photo"]
        assert falling == ["photo"] and whole == ["photo", "head"] and is_hidden
        assert "CONSOLE" not in logged

    def test_no_complaint_and_no_request(self, default_run, browse):
        _, report = default_run
        title, logged = browse(report + USE)
        assert "CONSOLE" not in logged
        seen = json.loads(title)
        assert seen["first"].startswith("Slice 1,") and seen["second"].startswith("Slice 2,") and seen["changed"]
        assert seen["last"].startswith("Slice 4,") and seen["bar"].startswith("Slice 1,")
        assert seen["layer"] == "layer components" and seen["width"] > 10
        assert seen["rising"] == ["head", "photo"] and seen["falling"] == ["photo", "head"]
        assert seen["requests"] == []
        _, logged = browse(report + "<img src='https://example.org/a.png'>")
        assert (
            "CONSOLE" in logged and "Content Security Policy" in logged
        )  # a request would have been seen, and refused

    def test_boxes_hide_outlines(self, decided_run, browse):
        title, logged = browse(decided_run + SWITCH)
        assert json.loads(title) == [[True, True], [True, False], [False, False], [False, True]]
        assert "CONSOLE" not in logged

    def test_part_of_an_earlier_version(self, decided_run, browse):
        earlier = re.sub(
            r'<input type="checkbox"[^>]*>| data-outline="[^"]*"|<path class="truth"[^>]*>', "", decided_run
        )
        use = SWITCH.replace("viewer.querySelector(`[value=${value}]`).click();", "")
        title, logged = browse(earlier + use)
        assert json.loads(title) == [[True]] * 4 and "CONSOLE" not in logged

    def test_window_of_the_field_of_view(self, make_network):
        network = make_network("negative_log_likelihood")
        image = torch.rand(1, 60, 70, 4, generator=torch.Generator().manual_seed(3)).numpy()
        empty, window = np.zeros((60, 70, 4)), Window((1, 8, 13), (40, 50))
        whole = SliceView(image, empty, empty > 0, empty == 0, (1.0, 1.0), [0, 1, 2, 3])
        cut = (slice(8, 48), slice(13, 63), slice(1, 4))
        part = SliceView(image[(slice(None), *cut)], empty[cut], empty[cut] > 0, empty[cut] == 0, (1.0, 1.0), [0, 1, 2])
        placed, alone = patches_of(network, whole, window), patches_of(network, part)
        assert np.array_equal(placed.components, alone.components) and placed.slices.tolist() == [1, 2, 3]
        assert np.array_equal(placed.rows[8:48], alone.rows) and np.array_equal(placed.columns[13:63], alone.columns)
        assert len(placed.rows) == 60 and set(placed.rows) == set(alone.rows)
