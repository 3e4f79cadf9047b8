"""The app: operators and their connections."""

from __future__ import annotations

import logging
import os
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

from scripts.data.cases import sentence
from scripts.files import atomic_directory
from scripts.inference.dicom_objects import parametric_map, segmentation

logger = logging.getLogger("anomaly_app")


class AnomalyApp(Application):
    """Application of the bundle to one series of a study.

    Args:
        context: holds the folder of the study and the model of the bundle.
        bundle: the bundle.
        results: output folder.
        pattern: see `SeriesReader`.
    """

    def __init__(self, context: AppContext, bundle: Bundle, results: Path, pattern: str) -> None:
        super().__init__(["anomaly_app"])
        self.context = context
        self.bundle = bundle
        self.results = results
        self.pattern = pattern

    def compose(self) -> None:
        """Connect the operators."""
        once = CountCondition(self, 1)
        folder = Path(self.context.input_path)
        series = SeriesReader(self, once, folder=folder, pattern=self.pattern, name="series")
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


def run(context: AppContext, bundle_path: Path) -> int:
    """Run the app.

    Args:
        context: holds the folders of input and output.
        bundle_path: folder of the bundle.

    Returns:
        Exit status: 0, or 1 after an error, which is logged.
    """
    settings = Path(os.environ.get("HOLOSCAN_CONFIG_PATH", Path(__file__).with_name("app.yaml")))
    target = Path(context.output_path) / hd.UID()
    try:
        pattern = yaml.safe_load(settings.read_text())["series"]["description"]
        bundle = Bundle.load(bundle_path)
        context.models = bundle.model
        with atomic_directory(target) as results:
            AnomalyApp(context, bundle, results, pattern).run()
    except Exception as error:
        logger.error(sentence(error, "processed", "see the log at level DEBUG for the whole of it"))
        logger.debug("the whole of it", exc_info=True)
        return 1
    logger.info(f"results in {target}")
    return 0
