"""The bundle of the app: its model and its description in the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.deploy.core import Model
from pydicom.uid import generate_uid

from scripts.files import file_sha256
from scripts.inference.dicom_objects import Algorithm
from scripts.models.provenance import provenance


@dataclass(frozen=True)
class Bundle:
    """Bundle with a fitted model.

    Attributes:
        model: the network and the folder of the bundle, as the SDK represents loaded models.
        algorithm: description for the results.
        provenance: returns the current settings, weights and versions; see `scripts.models.provenance`.
    """

    model: Model
    algorithm: Algorithm
    provenance: Callable[[], dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read the configs and the model of a bundle.

        Args:
            path: folder of the bundle.

        Returns:
            The bundle.

        Raises:
            InputError: there is no fitted model, or its settings differ from the configs.
        """
        parser = ConfigParser()
        parser.read_meta(path / "configs" / "metadata.json")
        parser.read_config(path / "configs" / "inference.json")
        parser["bundle_root"] = str(path)
        network = parser.get_parsed_content("network").eval()
        model = Model(str(path), "anomaly")
        model.predictor = network
        metadata = parser["_meta_"]
        digest = file_sha256(path / "models" / "model.pt")
        settings = parser.get_parsed_content("run_settings")
        return cls(
            model,
            Algorithm(
                manufacturer=metadata["authors"],
                name=metadata["name"],
                version=metadata["version"],
                device_uid=generate_uid(entropy_srcs=[digest]),
            ),
            partial(provenance, network, {**settings, "ckpt_path": "models/model.pt", "model_sha256": digest}),
        )
