"""Golden pictures of the overlay and of the report."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.report.golden import (
    OVERLAY,
    REPORT,
    Difference,
    difference,
    draw_overlay,
    lesion_view,
    screenshot,
    write_report,
)

ADVICE = "look at the picture; if the change is meant, draw it again by `python -m tests.report.golden`"


class Tolerance(NamedTuple):
    """Largest difference that other fonts and libraries may cause."""

    mean: float
    share: float

    def holds(self, measured: Difference) -> bool:
        return measured.mean <= self.mean and measured.share <= self.share


OVERLAY_TOLERANCE = Tolerance(mean=0.3, share=0.0004)
REPORT_TOLERANCE = Tolerance(mean=0.8, share=0.0007)


def swap_colours(picture):
    red, green, blue = picture.convert("RGB").split()
    return Image.merge("RGB", (blue, green, red))


class TestOverlay:
    def test_equal_to_the_golden_picture(self):
        measured = difference(draw_overlay(lesion_view()), Image.open(OVERLAY))
        assert OVERLAY_TOLERANCE.holds(measured), f"{measured}: {ADVICE}"

    @pytest.mark.parametrize(
        "draw_wrong",
        [
            lambda: draw_overlay(lesion_view(with_mask=False)),
            lambda: draw_overlay(dataclasses.replace(lesion_view(), truth=np.zeros((90, 76, 8), bool))),
            lambda: swap_colours(draw_overlay(lesion_view())),
            lambda: draw_overlay(lesion_view()).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        ],
        ids=["missing outline of the mask", "missing outline of the truth", "swapped colours", "mirrored"],
    )
    def test_wrong_picture_is_noticed(self, draw_wrong):
        assert not OVERLAY_TOLERANCE.holds(difference(draw_wrong(), Image.open(OVERLAY)))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the text of a report."""
    return write_report(tmp_path_factory.mktemp("golden"))


@pytest.mark.slow
class TestReport:
    def test_equal_to_the_golden_picture(self, page, tmp_path):
        measured = difference(screenshot(page, tmp_path), Image.open(REPORT))
        assert REPORT_TOLERANCE.holds(measured), f"{measured}: {ADVICE}"

    @pytest.mark.parametrize(
        "style",
        [".layered path { visibility: hidden }", ".layer { visibility: hidden }", "img { filter: hue-rotate(90deg) }"],
        ids=["missing outline", "missing map", "swapped colours"],
    )
    def test_wrong_picture_is_noticed(self, page, tmp_path, style):
        picture = screenshot(f"{page}<style>{style}</style>", tmp_path)
        assert not REPORT_TOLERANCE.holds(difference(picture, Image.open(REPORT)))
