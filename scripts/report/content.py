"""Content of the report about a case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from ..inference.measurements import image_score
from ..inference.patches import CasePatches
from ..inference.visualization import HEAT, SliceView
from ..models.network import PatchAnomalyNetwork
from .figures import histogram_svg
from .pictures import SlicePictures, component_colours, representative_slices

N_COMPONENTS = 8  # listed for a case


def case_content(
    view: SliceView, patches: CasePatches, network: PatchAnomalyNetwork, limits: Mapping[str, float]
) -> dict[str, Any]:
    """Compute the variables of the template of a case.

    Args:
        view: slices of the case.
        patches: patches of the case.
        network: the network that scored it.
        limits: scores that are marked in the histogram, by name.

    Returns:
        ``scored``, a row for every scored slice; ``slices``, the drawn ones (see `SlicePictures`); ``best``, the index
        of the drawn slice with the highest score; ``highest``, the end of the axis of scores; ``heat_top``, the end of
        the scale of colours; ``has_truth``, whether there is a label; ``components`` and ``histogram``.
    """
    foreground = view.foreground
    scored: list[dict[str, Any]] = [
        {
            "name": int(number if view.numbers is None else view.numbers[number]),
            "score": image_score(view.scores[..., number], foreground[..., number]),
            "found": bool(view.mask[..., number].any()),
        }
        for number in patches.slices
    ]
    scores = np.array([row["score"] for row in scored])
    drawn = representative_slices(scores, view.shown[:, patches.slices])
    pictures = SlicePictures(view, patches)
    return {
        "is_volume": view.numbers is not None,
        "size": (pictures.width, pictures.height),
        "scored": [{**row, "shown": int(np.abs(drawn - index).argmin())} for index, row in enumerate(scored)],
        "slices": [{**scored[index], **pictures.draw(index)} for index in drawn],
        "best": int(scores[drawn].argmax()),
        "highest": max(2.0, float(scores.max())),
        "heat_top": HEAT.norm.vmax,
        "has_truth": view.truth is not None,
        "components": leading_components(patches, patches.on_foreground(foreground), network),
        "histogram": _histogram(view.scores[foreground], network, limits),
    }


def leading_components(
    patches: CasePatches, selected: np.ndarray, network: PatchAnomalyNetwork
) -> list[dict[str, Any]]:
    """Describe the components with the most patches of a case.

    Args:
        patches: patches of the case.
        selected: patches to count ``[s,h,w]``.
        network: the network that scored the case.

    Returns:
        Number, colour, share of the patches, weight in the mixture and median ``rarity`` of each component, in
        decreasing order of the share.
    """
    numbers, counts = np.unique(patches.components[selected], return_counts=True)
    weights = network.mixture.log_weights().exp().cpu().numpy()
    return [
        {
            "number": int(numbers[index]),
            "colour": to_hex(component_colours(numbers[index]).tolist()),
            "share": float(counts[index] / counts.sum()),
            "weight": float(weights[numbers[index]]),
            "rarity": float(np.median(patches.rarity[selected & (patches.components == numbers[index])])),
        }
        for index in np.argsort(-counts, kind="stable")[:N_COMPONENTS]
    ]


def _histogram(scores: np.ndarray, network: PatchAnomalyNetwork, limits: Mapping[str, float]) -> str:
    calibration, kind = network.calibration, network.score_index
    normal = calibration(calibration.quantiles[kind], kind, network.target_fpr)
    return histogram_svg(scores, normal.cpu().numpy(), calibration.rates.cpu().numpy(), limits)
