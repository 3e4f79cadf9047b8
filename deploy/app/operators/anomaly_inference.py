"""Operator for inference: mask, map, measurements and preview."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from monai.deploy.core import AppContext, Fragment, Image, IOType, OperatorSpec
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

from scripts.inference.measurements import caption, outside_warning
from scripts.inference.visualization import SliceView, overlay_png

logger = logging.getLogger("anomaly_app")


class AnomalyInference(MonaiBundleInferenceOperator):
    """The SDK's operator for bundles with further outputs, as it converts all of its outputs to integers.

    Named input:
        image: an `Image` ``[W,H,D]``.

    Named outputs:
        pred: the mask as an `Image` ``[D,H,W]``.
        map: the calibrated map as an `Image` ``[D,H,W]``, float32.
        measurements: see `scripts.inference.measurements.measurements`.
        preview: bytes of a PNG file.

    Args:
        fragment: the app.
        args: arguments of `Operator`.
        app_context: holds the model of the bundle.
        kwargs: keyword arguments of `Operator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, app_context: AppContext, **kwargs: Any) -> None:
        super().__init__(
            fragment,
            *args,
            app_context=app_context,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            **kwargs,
        )

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        super().setup(spec)
        for name in ("map", "measurements", "preview"):
            spec.output(name)

    def _get_compose(self, obj_name: str, disallowed_prefixes: Any) -> Any:
        """Make transforms of the bundle's config, whose paths start in the folder of the bundle."""
        if self._parser["bundle_root"] != str(self._bundle_path):  # setting it makes all transforms anew
            self._parser["bundle_root"] = str(self._bundle_path)
        return super()._get_compose(obj_name, disallowed_prefixes)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Score the image and emit the outputs."""
        super().compute(op_input, op_output, context)
        image, anomaly_map, mask = (self.processed[key].cpu() for key in ("image", "map", "pred"))
        scores = anomaly_map[0].numpy().astype(np.float32)
        measurements = self.processed["result"]
        logger.info(f"image score {measurements['image_score']:.2f}, {measurements['n_regions']} regions")
        if measurements["outside_fitted_range"]:
            logger.warning(outside_warning(measurements))
        picture = overlay_png(
            SliceView.of(image, anomaly_map, mask, self._inferer.spatial_dim), caption("anomaly map", measurements)
        )
        op_output.emit(Image(scores.swapaxes(0, 2)), "map")
        op_output.emit(measurements, "measurements")
        op_output.emit(picture, "preview")

    def post_process(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply the postprocessing of the bundle and keep its results."""
        self.processed = super().post_process(data, *args, **kwargs)
        return self.processed
