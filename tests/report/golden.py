"""Golden pictures of an overlay and of the report, in `tests/fixtures`, and their comparison.

`python -m tests.report.golden` draws them again after a change that is meant to be visible. Look at them.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from scripts.data.foreground import foreground_mask
from scripts.inference.visualization import SliceView, overlay_png
from tests.report.browser import run_chromium
from tests.tiny_bundle import ROOT, run_bundle
from tests.tiny_cases import brain, save

FIXTURES = ROOT / "tests" / "fixtures"
OVERLAY, REPORT = FIXTURES / "overlay.png", FIXTURES / "report.png"
PAGE_SIZE = (900, 960)  # width and height in pixels
CLEAR_DIFFERENCE = 48  # of 255, in any colour
# Text keeps its place but is not drawn, and what it moves is hidden: fonts and the time of writing differ
HIDDEN_TEXT = """<style>
* { -webkit-text-fill-color: transparent; line-height: 20px !important; }
header p { display: none; }
.layers, .scale { visibility: hidden; }
</style>"""


class Difference(NamedTuple):
    """Difference between two pictures of the same size.

    Attributes:
        mean: mean absolute difference over pixels and colours, of 255.
        share: share of the pixels with a clear difference.
    """

    mean: float
    share: float


def difference(picture: Image.Image, golden: Image.Image) -> Difference:
    """Compare a picture with the golden picture of the same size."""
    assert picture.size == golden.size, f"{picture.size} instead of {golden.size} pixels"
    pixels, golden_pixels = (np.asarray(each.convert("RGB"), dtype=float) for each in (picture, golden))
    differences = np.abs(pixels - golden_pixels)
    return Difference(float(differences.mean()), float((differences.max(2) > CLEAR_DIFFERENCE).mean()))


def lesion_view(with_mask: bool = True) -> SliceView:
    """Return a head with two lesions, one of them small, in 8 slices ``[90,76,8]``; its map, mask and label."""
    shape = (90, 76, 8)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    tissue = 0.45 + 0.12 * np.sin(11 * grid[0]) * np.cos(9 * grid[1])
    scores = sum(
        height * np.exp(-np.square((grid - np.reshape(centre, (3, 1, 1, 1))) / width).sum(0))
        for height, centre, width in ((4.8, (-0.2, 0.3, 0.1), 0.28), (2.6, (0.35, -0.3, 0.3), 0.16))
    )
    image = (tissue + 0.2 * (scores > 1.5)) * (np.square(grid[:2]).sum(0) < 0.8)
    mask = (scores > 2.2) & with_mask
    image = image[None].clip(0, 1)
    return SliceView(image, scores, mask, foreground_mask(image), (1.0, 1.2), list(range(shape[2])), scores > 1.5)


def draw_overlay(view: SliceView) -> Image.Image:
    """Draw the overlay of a case."""
    return Image.open(io.BytesIO(overlay_png(view, "golden")))


def write_report(folder: Path) -> str:
    """Fit on heads without a lesion and run inference on one with a lesion; return the text of the report.

    Args:
        folder: an empty folder.
    """
    shape, model = (60, 46, 5), str(folder / "model.pt")
    for seed in range(4):
        save(folder / "normals" / f"{seed}.nii.gz", brain(seed, shape))
    save(folder / "cases" / "head.nii.gz", brain(9, shape, (slice(20, 32), slice(24, 34), slice(2, 4))))
    settings = {"ckpt_path": model, "score": "negative_log_likelihood", "embedding_store": None, "log_dir": None}
    run_bundle("training", dataset_dir=str(folder / "normals"), output_dir=str(folder / "fit"), **settings)
    run_bundle(
        "inference",
        dataset_dir=str(folder / "cases"),
        output_dir=str(folder / "out"),
        ckpt_path=model,
        score=settings["score"],
        extent=0.0,  # a long outline, which a comparison of pictures notices
    )
    return (folder / "out" / "report.html").read_text()


def screenshot(report: str, folder: Path) -> Image.Image:
    """Draw the upper part of a report without its text, in Chromium, which writes into a folder."""
    (folder / "page.html").write_text(report + HIDDEN_TEXT)
    width, height = PAGE_SIZE
    flags = (f"--screenshot={folder / 'page.png'}", f"--window-size={width},{height}", "--hide-scrollbars")
    run_chromium(folder / "page.html", *flags)
    return Image.open(folder / "page.png").convert("RGB")


def main() -> None:
    """Draw the golden pictures; the report in 256 colours, to keep the file small."""
    with tempfile.TemporaryDirectory() as folder:
        report = screenshot(write_report(Path(folder)), Path(folder))
    overlay = draw_overlay(lesion_view()).convert("RGB")
    for path, picture in ((OVERLAY, overlay), (REPORT, report.quantize(256, dither=Image.Dither.NONE))):
        picture.save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {picture.width} x {picture.height} pixels, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
