"""The bundle that the app applies."""

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
from scripts.models.provenance import provenance


@dataclass(frozen=True)
class Algorithm:
    """What stands in every object about where it came from.

    Attributes:
        manufacturer: who made the bundle.
        name: the bundle's.
        version: the bundle's.
        device_uid: another one for every fit, as IHE's profile for AI results asks.
        provenance: gives settings, weights and versions as they are by then, see `scripts.models.provenance`.
    """

    manufacturer: str
    name: str
    version: str
    device_uid: str
    provenance: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Bundle:
    """A bundle with a fitted model.

    Attributes:
        model: the network and the bundle's folder, in the form in which the SDK hands loaded models around.
        algorithm: how results name it.
    """

    model: Model
    algorithm: Algorithm

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read a bundle's configs and model.

        Args:
            path: its folder.

        Returns:
            The bundle.

        Raises:
            InputError: it has no fitted model, or one fitted under other settings.
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
                provenance=partial(
                    provenance, network, {**settings, "ckpt_path": "models/model.pt", "model_sha256": digest}
                ),
            ),
        )
