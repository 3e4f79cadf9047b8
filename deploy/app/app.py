"""The app: operators and their connections."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import highdicom as hd
import yaml
from bundle import Algorithm, Bundle
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application
from operators.anomaly_inference import AnomalyInference
from operators.measurement_writer import MeasurementWriter
from operators.parametric_map_writer import ParametricMapWriter
from operators.preview_writer import PreviewWriter
from operators.segmentation_writer import segmentation_writer
from operators.series_reader import SeriesReader

from scripts.data.cases import sentence
from scripts.files import atomic_directory

logger = logging.getLogger("anomaly_app")


class AnomalyApp(Application):
    """Application of the bundle to one series of a study.

    Args:
        context: holds the folder of the study and the model of the bundle.
        algorithm: description of the bundle for the results.
        results: output folder.
        pattern: see `SeriesReader`.
    """

    def __init__(self, context: AppContext, algorithm: Algorithm, results: Path, pattern: str) -> None:
        super().__init__(["anomaly_app"])
        self.context = context
        self.algorithm = algorithm
        self.results = results
        self.pattern = pattern

    def compose(self) -> None:
        """Connect the operators."""
        once = CountCondition(self, 1)
        folder = Path(self.context.input_path)
        series = SeriesReader(self, once, folder=folder, pattern=self.pattern, name="series")
        inference = AnomalyInference(self, app_context=self.context, name="inference")
        segmentation = segmentation_writer(self, self.algorithm, self.results / "segmentation")
        parametric_map = ParametricMapWriter(
            self, algorithm=self.algorithm, folder=self.results / "parametric_map", name="parametric_map"
        )
        measurements = MeasurementWriter(
            self, algorithm=self.algorithm, folder=self.results / "measurements", name="measurements"
        )
        preview = PreviewWriter(self, folder=self.results, name="preview")

        selected = ("study_selected_series_list", "study_selected_series_list")
        self.add_flow(series, inference, {("image", "image")})
        self.add_flow(series, segmentation, {selected})
        self.add_flow(inference, segmentation, {("pred", "seg_image")})
        self.add_flow(series, parametric_map, {selected})
        self.add_flow(inference, parametric_map, {("map", "map")})
        self.add_flow(series, measurements, {selected})
        self.add_flow(inference, measurements, {("measurements", "measurements")})
        self.add_flow(inference, preview, {("preview", "preview")})


def run(context: AppContext, bundle_path: Path) -> int:
    """Run the app.

    Args:
        context: holds the folders of input and output.
        bundle_path: folder of the bundle.

    Returns:
        Exit status: 0, or 1 after an error, which is logged.
    """
    logging.getLogger("highdicom").setLevel(logging.ERROR)  # its warnings contain names of patients
    settings = Path(os.environ.get("HOLOSCAN_CONFIG_PATH", Path(__file__).with_name("app.yaml")))
    target = Path(context.output_path) / hd.UID()
    try:
        pattern = yaml.safe_load(settings.read_text())["series"]["description"]
        bundle = Bundle.load(bundle_path)
        context.models = bundle.model
        with atomic_directory(target) as results:
            AnomalyApp(context, bundle.algorithm, results, pattern).run()
    except Exception as error:
        logger.error(sentence(error, "processed", "see the log at level DEBUG for the whole of it"))
        logger.debug("the whole of it", exc_info=True)
        return 1
    logger.info(f"results in {target}")
    return 0
