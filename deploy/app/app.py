"""The app: operators and their connections."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import yaml
from bundle import Bundle
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application
from operators.anomaly_inference import AnomalyInference
from operators.object_writer import MeasurementWriter, ObjectWriter
from operators.preview_writer import PreviewWriter
from operators.series_reader import SeriesReader
from selection import choose_series, name_of
from study import Header, Study

from scripts.data.cases import sentence
from scripts.files import atomic_directory
from scripts.inference.dicom_objects import parametric_map, segmentation
from scripts.models.checkpoint import check_writable

logger = logging.getLogger("anomaly_app")


class AnomalyApp(Application):
    """Application of the bundle to one series of a study.

    Args:
        context: holds the model of the bundle.
        bundle: the bundle.
        study: the study.
        headers: headers of the series.
        results: output folder.
    """

    def __init__(
        self, context: AppContext, bundle: Bundle, study: Study, headers: Sequence[Header], results: Path
    ) -> None:
        super().__init__(["anomaly_app"])
        self.context = context
        self.bundle = bundle
        self.study = study
        self.headers = headers
        self.results = results

    def compose(self) -> None:
        """Connect the operators."""
        once = CountCondition(self, 1)
        series = SeriesReader(self, once, study=self.study, headers=self.headers, name="series")
        inference = AnomalyInference(self, app_context=self.context, name="inference")
        common = {"algorithm": self.bundle.algorithm}
        writers = {
            "pred": ObjectWriter(self, name="pred", make=segmentation, folder=self.results / "segmentation", **common),
            "map": ObjectWriter(
                self, name="map", make=parametric_map, folder=self.results / "parametric_map", **common
            ),
            "measurements": MeasurementWriter(
                self,
                name="measurements",
                folder=self.results / "measurements",
                provenance=self.bundle.provenance,
                **common,
            ),
        }
        self.add_flow(series, inference, {("image", "image")})
        for name, writer in writers.items():
            self.add_flow(series, writer, {("study_selected_series_list", "study_selected_series_list")})
            self.add_flow(inference, writer, {(name, name)})
        preview = PreviewWriter(self, folder=self.results, name="preview")
        self.add_flow(inference, preview, {("preview", "preview")})


def run(context: AppContext, bundle_path: Path, selection: str = "") -> int:
    """Run the app.

    Args:
        context: holds the folders of input and output.
        bundle_path: folder of the bundle.
        selection: see `choose_series`; empty for that of ``app.yaml``.

    Returns:
        Exit status: 0, or 1 after an error, which is logged.
    """
    settings = Path(os.environ.get("HOLOSCAN_CONFIG_PATH", Path(__file__).with_name("app.yaml")))
    output = Path(context.output_path)
    try:
        check_writable(output, f"The output folder {output}")
        study = Study.read(Path(context.input_path))
        bundle = Bundle.load(bundle_path)
        context.models = bundle.model
        selection = selection or yaml.safe_load(settings.read_text())["series"]["description"]
        chosen = choose_series(study.headers, selection, bundle.model.predictor.acquisition)
    except Exception as error:
        log_error(error)
        return 1
    return max(score(context, bundle, study, headers, output / hd.UID(), len(chosen) > 1) for headers in chosen)


def score(
    context: AppContext, bundle: Bundle, study: Study, headers: Sequence[Header], target: Path, is_one_of_several: bool
) -> int:
    """Score a series.

    Args:
        context: holds the model of the bundle.
        bundle: the bundle.
        study: the study.
        headers: headers of the series.
        target: folder of the results, which appears when they are complete.
        is_one_of_several: whether messages name the series.

    Returns:
        0, or 1 after an error, which is logged.
    """
    prefix = f"{name_of(headers)}: " if is_one_of_several else ""
    try:
        with atomic_directory(target) as results:
            AnomalyApp(context, bundle, study, headers, results).run()
    except Exception as error:
        log_error(error, prefix)
        return 1
    logger.info(f"{prefix}results in {target}")
    return 0


def log_error(error: Exception, prefix: str = "") -> None:
    """Log an error as one sentence."""
    logger.error(prefix + sentence(error, "processed", "see the log at level DEBUG for the whole of it"))
    logger.debug("the whole of it", exc_info=error)
