"""MONAI Label's tasks for a bundle of this program: inference with a network that stays loaded, and recorded fits.

MONAI Label itself makes network and transforms anew from the config, without the runtimes of the bundle. The module is
installed in the folder of the app. Modules of the bundle are imported from the bundle that is served, because each
bundle brings its own ``scripts``.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fit_record import model_digest, recorded_fit
from label_files import label_error
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.utils import eval_mode
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.transform.writer import write_itk
from monailabel.utils.others.class_utils import unload_module
from monailabel.utils.others.generic import device_list, name_to_device
from parameters import InferenceParameters

logger = logging.getLogger(__name__)

N_PIPELINES = 8  # transforms that are kept, of the last settings
RUNTIME = "scripts.runtimes.select_runtime"  # makes the network in the configs of this program
FIXED = {"tracking": "None", "tracking_uri": "", "run_id": "run"}  # MONAI evaluates a file that tracking names
LOSSLESS = {".jpg": ".png", ".jpeg": ".png"}  # of masks

_importing = threading.RLock()


def is_anomaly_bundle(bundle: Path) -> bool:
    """Return whether a folder is a bundle of this program, of version 0.5 or later."""
    try:
        config = json.loads((bundle / "configs" / "inference.json").read_text())
        return config["network"]["_target_"] == RUNTIME
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def scripts_of(bundle: Path) -> Iterator[None]:
    """Import ``scripts`` from a bundle, in one thread at a time."""
    with _importing:
        unload_module("scripts")
        sys.path.insert(0, str(bundle))
        try:
            yield
        finally:
            sys.path.remove(str(bundle))


class Pipeline(NamedTuple):
    """Transforms and inferer with certain settings."""

    preprocessing: Any
    inferer: Any
    postprocessing: Any


class ScoredImage(NamedTuple):
    """Result of an inference, in the orientation of the image.

    Attributes:
        mask: ``[1,...]``, 0 and 1.
        anomaly_map: calibrated map ``[1,...]``.
        measurements: see `scripts.inference.measurements`, with the names of labels and the latencies in seconds.
    """

    mask: MetaTensor
    anomaly_map: MetaTensor
    measurements: dict[str, Any]


class LoadedModel:
    """A fitted model of a bundle on a device, in the runtime of the command line.

    Args:
        bundle: folder of the bundle.
        device: name of the device.

    Raises:
        InputError: the model is missing, not fitted, not calibrated, or of other settings.
    """

    def __init__(self, bundle: Path, device: str) -> None:
        self.bundle = bundle
        self.parser = ConfigParser()
        self.parser.read_meta(bundle / "configs" / "metadata.json")
        self.parser.read_config(bundle / "configs" / "inference.json")
        self.parser.update({"bundle_root": str(bundle), "device": f"$torch.device({device!r})", "show_progress": False})
        with scripts_of(bundle):
            self.network = self.parser.get_parsed_content("network")
            self.device = self.parser.get_parsed_content("device")
        self._pipelines: OrderedDict[str, Pipeline] = OrderedDict()

    def pipeline(self, settings: Mapping[str, Any]) -> Pipeline:
        """Make transforms and inferer, or return those of an earlier request with the same settings.

        Args:
            settings: values of settings that a request may change.
        """
        key = json.dumps(settings, sort_keys=True)
        if key not in self._pipelines:
            self.parser.update(dict(settings))
            with scripts_of(self.bundle):
                # one call after another: the postprocessing inverts this very preprocessing
                pipeline = Pipeline(*(self.parser.get_parsed_content(name) for name in Pipeline._fields))
            self._pipelines[key] = pipeline
            if len(self._pipelines) > N_PIPELINES:
                self._pipelines.popitem(last=False)
        self._pipelines.move_to_end(key)
        return self._pipelines[key]


class AnomalyInference(InferTask):
    """Inference with a bundle, whose network is loaded once and again when the file of the model changes.

    Its methods run in one thread at a time.

    Args:
        bundle: folder of the bundle.
    """

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.model = bundle / "models" / "model.pt"
        self.metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        (output,) = self.metadata["network_data_format"]["outputs"].values()
        labels = {name: int(index) for index, name in output["channel_def"].items() if name != "background"}
        self.parameters = InferenceParameters(*self._settings())
        super().__init__(
            InferType.SEGMENTATION,
            labels=labels,
            dimension=3,
            description=self.metadata["description"],
            config={"device": device_list(), "model_filename": [self.model.name], **self.parameters.defaults},
        )
        self._stamp: tuple[int, ...] = ()
        self._digest = ""
        self._loaded: dict[str, LoadedModel] = {}

    def _settings(self) -> tuple[dict[str, Any], Any]:
        """Read the settings that requests may change: their defaults, and the check of a value."""
        parser = ConfigParser()
        parser.read_config(self.bundle / "configs" / "inference.json")
        with scripts_of(self.bundle):
            from scripts.config.settings import check_setting
        return parser.get_parsed_content("displayable_configs"), check_setting

    def info(self) -> dict[str, Any]:
        """Return the description for viewers."""
        return {**super().info(), "version": self.metadata["version"]}

    def is_valid(self) -> bool:
        """Return whether there is a model."""
        return self.model.is_file()

    def get_path(self, validate: bool = True) -> str | None:
        """Return the path of the model."""
        return str(self.model) if self.is_valid() or not validate else None

    def load(self, device: str = "") -> LoadedModel:
        """Load the model, unless it is loaded and its file unchanged.

        Args:
            device: name of the device; empty for that of the server.

        Raises:
            InputError: it cannot be used.
        """
        device = name_to_device(device or "cuda")
        status = self.model.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._loaded.clear()
            self._stamp, self._digest = stamp, ""
        if device not in self._loaded:
            start = time.monotonic()
            self._loaded[device] = LoadedModel(self.bundle, device)
            logger.info(f"loaded the model of {self.bundle.name} in {time.monotonic() - start:.1f} s")
        return self._loaded[device]

    def model_digest(self) -> str:
        """Return the SHA-256 of the model."""
        self._digest = self._digest or model_digest(self.model) or ""
        return self._digest

    def score(self, image: str, settings: Mapping[str, Any], device: str = "") -> ScoredImage:
        """Score an image.

        Args:
            image: a file, or a folder with a DICOM series.
            settings: see `LoadedModel.pipeline`.
            device: see `load`.

        Returns:
            The result.

        Raises:
            InputError: the image or the model cannot be used.
        """
        times = [time.monotonic()]
        model = self.load(device)
        pipeline = model.pipeline(settings)
        data = pipeline.preprocessing({"image": image})
        times.append(time.monotonic())
        with torch.inference_mode(), eval_mode(model.network):
            data["pred"] = pipeline.inferer(data["image"].unsqueeze(0).to(model.device), model.network)[0]
        times.append(time.monotonic())
        data = pipeline.postprocessing(data)
        times.append(time.monotonic())
        names = ("pre", "infer", "post")
        latencies = {name: round(end - start, 3) for name, start, end in zip(names, times, times[1:], strict=False)}
        latencies["total"] = round(times[-1] - times[0], 3)
        logger.info(f"scored an image in {latencies['total']:.2f} s with {model.network.encoder.backend_name}")
        measurements = {**data["result"], "label_names": self.labels, "latencies": latencies, "centroids": {}}
        return ScoredImage(data["pred"], data["map"], measurements)

    def save_label(self, scored: ScoredImage, image: str, datastore: Datastore, name: str, tag: str) -> None:
        """Save the mask of an image of the studies as its label.

        Args:
            scored: result of `score`.
            image: file of the image.
            datastore: the studies.
            name: name of the image in them.
            tag: tag of the label.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"mask{mask_suffix(image)}")
            write_image(scored.mask, path, "uint8")
            datastore.save_label(name, str(path), tag, {"model": self.bundle.name, "params": scored.measurements})

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Score an image for MONAI Label itself, which keeps the mask as a label.

        Args:
            request: holds the ``image``, a file, and parameters.

        Returns:
            A temporary file with the mask, and the measurements.
        """
        chosen = self.parameters.settings(request)
        scored = self.score(request["image"], chosen, request.get("device") or "")
        with tempfile.NamedTemporaryFile(suffix=mask_suffix(request["image"]), delete=False) as file:
            write_image(scored.mask, Path(file.name), "uint8")
        return file.name, scored.measurements


def mask_suffix(image: str) -> str:
    """Return the suffix for the mask of an image: that of the image, if it is lossless."""
    name = Path(image).name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix
    return LOSSLESS.get(suffix, suffix or ".nii.gz")


def write_image(image: MetaTensor, path: Path, dtype: str = "", compress: bool = False) -> None:
    """Write a mask or map in the format of the suffix.

    Args:
        image: ``[1,...]``.
        path: the file.
        dtype: numpy's name of the type of the values; empty for that of the image.
        compress: whether to compress a format that leaves it open.
    """
    is_volume = image.ndim == 4
    affine = image.meta.get("original_affine", image.affine) if is_volume else None
    write_itk(image.cpu().numpy()[0], str(path), affine, dtype or None, compress)


def load_itk() -> None:
    """Load the modules of ITK that write images, which takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        write_image(MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4)), Path(folder, "image.nii.gz"))


class AnomalyTraining(BundleTrainTask):
    """Fit of a bundle, whose model is replaced only when the fit is complete, together with its record."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Fit on the images of a datastore whose labels are empty.

        Args:
            request: parameters of the fit.
            datastore: images and labels.

        Raises:
            InputError: there are too few normal images, or a parameter is out of its range.
        """
        self.images = list(filter(_is_usable, super()._fetch_datalist(request, datastore)))
        with recorded_fit(Path(self.bundle_path, "models", "model.pt"), len(self.images)) as self.candidate:
            return super().__call__({**request, **FIXED}, datastore)

    def _fetch_datalist(self, request: Mapping[str, Any], datastore: Datastore) -> list[dict[str, Any]]:
        return self.images

    def _update_overrides(self, overrides: dict[str, Any]) -> None:
        overrides["ckpt_path"] = str(self.candidate)


def _is_usable(case: Mapping[str, str]) -> bool:
    wrong = label_error(case["image"], case["label"])
    if wrong:
        logger.warning(f"{Path(case['image']).name} is left out of the fit: {wrong}")
    return not wrong
