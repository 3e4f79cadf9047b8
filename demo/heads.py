"""Two real heads, one of them with an inserted lesion, and the sample model that segments them.

``python -m demo.heads FOLDER`` writes ``model.pt``, ``cases/`` and ``masks/``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.errors import InputError
from scripts.model_card.fitted_model import FittedModel
from scripts.models.sample import SAMPLE_FILE, is_sample
from scripts.models.weights import MODELS_DIR
from scripts.sample_model import write_model

from .lesions import Lesion, insert_lesions

HEADS = Path(__file__).resolve().parent / "heads"
HEALTHY, ILL = "sub-10", "sub-07"  # not among the heads that the sample model was fitted on
LESION = Lesion("texture", 18.0)  # and this place: many others are not found, see models/README.md


def write_heads(folder: Path) -> None:
    """Write the cases, the mask of the lesion, and the sample model.

    Args:
        folder: gets ``cases/healthy.nii.gz``, ``cases/lesion.nii.gz``, ``masks/lesion.nii.gz`` and ``model.pt``, which
            replaces a sample model that is older than the sample's file.

    Raises:
        InputError: the weights of the encoder are missing, or ``model.pt`` is another model.
    """
    model = folder / "model.pt"
    if model.exists() and not _is_sample(model):
        raise InputError(f"{model} is not the sample model and is left alone; move it to a folder of its own.")
    is_outdated = model.exists() and model.stat().st_mtime < (MODELS_DIR / SAMPLE_FILE).stat().st_mtime
    for name in ("cases", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_model(model, replace=is_outdated)
    healthy, head = (nib.nifti1.load(HEADS / f"{name}.nii.gz") for name in (HEALTHY, ILL))
    image, mask = insert_lesions(
        np.asarray(head.dataobj), np.array(head.header.get_zooms()), [LESION], np.random.default_rng(2)
    )
    nib.save(healthy, folder / "cases" / "healthy.nii.gz")
    nib.save(nib.Nifti1Image(image.round().astype(np.int16), head.affine), folder / "cases" / "lesion.nii.gz")
    nib.save(nib.Nifti1Image(mask, head.affine), folder / "masks" / "lesion.nii.gz")


def _is_sample(model: Path) -> bool:
    try:
        return is_sample(FittedModel.read(model).mixture)
    except InputError:
        return False


def main() -> None:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m demo.heads", description=__doc__)
    parser.add_argument("folder", type=Path)
    write_heads(parser.parse_args().folder)


if __name__ == "__main__":
    main()
