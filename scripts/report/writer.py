"""Writes the report: case by case while the run goes on, as a whole at its end."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from datetime import datetime
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import to_hex
from monai.engines.utils import IterationEvents

from ..overlay import HEAT
from ..results import CaseWriter
from ..whole_file import whole_file
from .content import case_content
from .figures import curve_svgs
from .patches import CasePatches, PatchObserver

logger = logging.getLogger(__name__)

MAX_CASES = 200  # that are drawn: a browser has to open it


class ReportWriter:
    """Leaves ``report.html`` beside ``summary.json``: one file, which opens without network.

    Of a case only its part of the file is kept, on disk, until the run is complete; of more than ``MAX_CASES`` those
    with the highest scores are drawn, and all are listed. ``metrics.json`` is shown where
    this run has written it. Several processes leave no report, since each has seen some of the cases only.

    Args:
        results: the writer of the run's results, attached before.
    """

    def __init__(self, results: CaseWriter) -> None:
        self.results = results
        self.templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.threshold = float(results.settings["threshold"])
        self._metrics_path = results.output_dir / "metrics.json"

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`; what fails here is a failure of the case."""
        if idist.get_world_size() > 1:
            logger.warning("Several processes leave no report.html; run with one process to have it.")
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Begin a report."""
        if not engine.has_event_handler(self.write):  # attached only now, to come after what writes the metrics
            engine.add_event_handler(Events.COMPLETED, self.write)
        self.parts = tempfile.TemporaryDirectory()
        self.cases: list[dict[str, Any]] = []
        self._drawn: list[tuple[float, int]] = []  # scores and numbers, the lowest first
        self._metrics_before = _stamp(self._metrics_path)
        engine.data_loader.observer = PatchObserver(self.results.network)  # type: ignore[attr-defined]

    def __call__(self, engine: Engine) -> None:
        """Draw the case of an iteration."""
        state: Any = engine.state
        (batch,), (output,) = state.batch, state.output
        entry = self.results.cases[-1]
        number = len(self.cases) + 1
        case: dict[str, Any] = {"entry": entry, "number": number, "part": None, "thumbnail": None}
        self.cases.append(case)
        heappush(self._drawn, (entry["image_score"], number))
        if len(self._drawn) > MAX_CASES:
            _, number_of_lowest = heappop(self._drawn)
            lowest = self.cases[number_of_lowest - 1]
            if lowest["part"] is not None:
                lowest["part"].unlink()
            lowest.update(part=None, thumbnail=None)
            if lowest is case:
                return
        view = output["view"]
        patches = CasePatches.of(batch["patches"], view, self.results.network)
        content = case_content(view, patches, self.results.network, self.threshold)
        part = Path(self.parts.name, str(number))
        text = self.templates.get_template("case.html.j2").render(content, entry=entry, number=number)
        part.write_text(text, encoding="utf-8")
        best = content["slices"][content["best"]]
        case.update(part=part, thumbnail={layer: best[layer] for layer in ("plain", "heat")})

    def write(self, engine: Engine) -> None:
        """Write the file."""
        summary = self.results.summary(engine)
        ranked = sorted(self.cases, key=lambda case: -case["entry"]["image_score"])
        content = {
            **{name: summary[name] for name in ("note", "failed", "settings", "versions", "encoder_weights_digest")},
            "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "cases": ranked,
            "n_drawn": len(self._drawn),
            "parts": _read(ranked),
            "threshold": self.threshold,
            "target_fpr": self.results.network.target_fpr,
            "heat_colours": [to_hex(colour) for colour in HEAT.cmap(np.linspace(0, 1, 9))],
            **self._evaluation(),
        }
        with whole_file(self.results.output_dir / "report.html") as partial:
            self.templates.get_template("report.html.j2").stream(content).dump(str(partial), encoding="utf-8")
        self.parts.cleanup()
        logger.info(f"report: {self.results.output_dir / 'report.html'}")

    def _evaluation(self) -> dict[str, Any]:
        """``metrics``, None unless this run has written them, and their ``curves``."""
        if _stamp(self._metrics_path) in (None, self._metrics_before):
            return {"metrics": None}
        metrics = json.loads(self._metrics_path.read_text())
        drawn = curve_svgs(metrics.get("curves", {}), self.threshold)
        return {
            "metrics": metrics,
            "curves": drawn,
            "rows": {row["case"]: row for row in metrics.get("cases", [])},
        }


def _read(cases: list[dict[str, Any]]) -> Iterator[str]:
    """The parts of the file, one in memory at a time."""
    for case in cases:
        if case["part"] is not None:
            yield case["part"].read_text(encoding="utf-8")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells one writing of a file from another; None where it is not there."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
