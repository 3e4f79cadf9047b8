"""The bundle as a folder for a model repository of the Hugging Face hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import ModelCardData

from scripts.model_card.fit_report import FitReport
from scripts.model_card.fitted_model import FittedModel
from scripts.model_card.writer import OPERATING, model_card

APACHE = "Apache-2.0"
TAGS = ["monai", "medical", "anomaly-detection", "image-segmentation", "dinov2"]


def write_hub_folder(
    bundle: Path, names: Iterable[str], model: FittedModel, report: FitReport | None, folder: Path
) -> None:
    """Copy files of a bundle, with the model card as the README.md that the hub shows.

    Args:
        bundle: folder of the bundle.
        names: names of the files in it.
        model: what its model says about itself.
        report: the report of its fit.
        folder: the copy, which does not exist.
    """
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, folder / name)
    inference = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    card = model_card(model, report, {name: inference[name] for name in OPERATING})
    text = f"---\n{front_matter(model.encoder_licence)}\n---\n\n{card}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def front_matter(encoder_licence: str) -> str:
    """Return what the hub reads of a model card, in YAML.

    Args:
        encoder_licence: licence of the weights in the model, with its conditions; the code is under Apache-2.0.
    """
    other = None
    if encoder_licence != APACHE:
        other = re.sub(r"[^a-z0-9.]+", "-", encoder_licence.partition(";")[0].lower()).strip("-")
    return ModelCardData(
        license="other" if other else APACHE.lower(),
        license_name=other,
        library_name="monai",
        pipeline_tag="image-segmentation",
        tags=TAGS,
    ).to_yaml()
