"""Report handler: draws each case during the run and writes the page at its end."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from datetime import datetime
from heapq import heappush, heappushpop
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import to_hex
from monai.engines.utils import IterationEvents

from ..inference.patches import CasePatches
from ..inference.visualization import HEAT, MASK_COLOUR, TRUTH_COLOUR
from ..inference.writer import PredictionWriter
from .content import case_content
from .figures import curve_svgs
from .suspicion import flagging, p_value_text, suspicion

logger = logging.getLogger(__name__)

MAX_CASES = 200  # drawn cases: a browser has to open the page
ROWS_AT_ONCE = 500  # of the list: a browser takes seconds to sort and lay out thousands
PART = ".dpmm_report.json"  # part of the report in the directory of a case


class ReportWriter:
    """Write ``report.html``, a single file without external resources, next to ``summary.json``.

    The part of a case is kept in the directory of its results, where a later run finds it. All cases are listed, the
    most suspicious first; the first ``MAX_CASES`` are drawn. Metrics are shown if this run has written
    ``metrics.json``. With several processes the first one writes the report of all cases; a run over a share of the
    cases only draws its own, for the report of a later run over all.

    Args:
        results: writer of the predictions, attached before this handler.
    """

    def __init__(self, results: PredictionWriter) -> None:
        self.results = results
        self.templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters["p_value_text"] = p_value_text
        self.threshold = float(results.settings["threshold"])
        self._metrics_path = results.directory.path / "metrics.json"

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`; an error in this handler is a failure of the case."""
        self.results.directory.check_replaceable("report.html")
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.rank_case)

    def start(self, engine: Engine) -> None:
        """Reset the report."""
        is_whole = self.results.directory.share is None
        if is_whole and not engine.has_event_handler(self.write):  # attached only now, to run after that of the metrics
            engine.add_event_handler(Events.COMPLETED, self.write)
        self._highest: list[tuple[float, float]] = []  # heap of suspicions, lowest first
        self._metrics_before = _stamp(self._metrics_path)

    def __call__(self, engine: Engine) -> None:
        """Draw the case of an iteration, unless ``MAX_CASES`` cases are more suspicious."""
        state: Any = engine.state
        (batch,), (output,) = state.batch, state.output
        entry = batch["about"]["entry"]
        if len(self._highest) == MAX_CASES and suspicion(entry) <= self._highest[0]:
            return
        view = self.results.view(output)
        patches = CasePatches.of(batch["patches"], view, self.results.network)
        limits = {"threshold": self.threshold} if self.threshold else {"decision threshold": 1.0}
        if math.isfinite(output["peak_limit"]):
            limits["peak of a region from"] = round(output["peak_limit"], 2)
        content = case_content(view, patches, self.results.network, limits)
        template = self.templates.get_template("case.html.j2")
        best = content["slices"][content["best"]]
        part = {
            "html": template.render(content, entry=entry, anchor=_anchor(entry["case"])),
            "thumbnail": {layer: best[layer] for layer in ("plain", "heat")},
        }
        (batch["directory"] / PART).write_text(json.dumps(part), encoding="utf-8")

    def rank_case(self, engine: Engine) -> None:
        """Note how suspicious the finished cases of an iteration are."""
        state: Any = engine.state
        for batch in state.batch or []:
            entry = batch.get("entry") or batch["about"]["entry"]
            add = heappush if len(self._highest) < MAX_CASES else heappushpop
            add(self._highest, suspicion(entry))

    def write(self, engine: Engine) -> None:
        """Write the file, in the first process."""
        summary = self.results.summary(engine)  # a collective call: every process makes it
        if idist.get_rank() != 0:
            return
        cases: list[dict[str, Any]] = []
        for entry in sorted(summary["cases"], key=suspicion, reverse=True):
            part = self.results.directory.path / self.results.directory.name_of(entry["case"]) / PART
            is_drawn = len(cases) < MAX_CASES and part.is_file()
            thumbnail = _read(part)["thumbnail"] if is_drawn else None
            anchor = _anchor(entry["case"])
            cases.append({"entry": entry, "anchor": anchor, "part": part if is_drawn else None, "thumbnail": thumbnail})
        parts: list[Path] = [case["part"] for case in cases if case["part"]]
        content = {
            **{name: summary[name] for name in ("note", "failed", "settings", "versions")},
            **{name: summary[name] for name in ("encoder_licence", "encoder_weights_digest")},
            "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "cases": cases,
            "rows_at_once": ROWS_AT_ONCE,
            "n_drawn": len(parts),
            "parts": (_read(part)["html"] for part in parts),  # only one in memory at a time
            "threshold": self.threshold,
            **flagging(summary["cases"], self.results.settings),
            "target_fpr": self.results.network.target_fpr,
            "mask_colour": MASK_COLOUR,
            "truth_colour": TRUTH_COLOUR,
            "heat_colours": [to_hex(colour) for colour in HEAT.cmap(np.linspace(0, 1, 9))],
            **self._evaluation(),
        }
        with self.results.directory.write("report.html") as partial:
            self.templates.get_template("report.html.j2").stream(content).dump(str(partial), encoding="utf-8")
        logger.info(f"report: {self.results.directory.path / 'report.html'}")

    def _evaluation(self) -> dict[str, Any]:
        """Return ``metrics``, None unless this run has written them, and their ``curves``."""
        if _stamp(self._metrics_path) in (None, self._metrics_before):
            return {"metrics": None}
        metrics = json.loads(self._metrics_path.read_text())
        drawn = curve_svgs(metrics.get("curves", {}), self.threshold or 1.0)
        return {
            "metrics": metrics,
            "curves": drawn,
            "rows": {row["case"]: row for row in metrics.get("cases", [])},
        }


def _read(part: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(part.read_text(encoding="utf-8"))
    return content


def _anchor(case: str) -> str:
    """Return the anchor of a case in the report, the same in every run."""
    return hashlib.sha256(ascii(case).encode()).hexdigest()[:12]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a value that differs between two versions of a file; None if it is missing."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
