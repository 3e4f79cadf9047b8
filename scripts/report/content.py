"""What the report says about a case."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from ..inference.measurements import image_score
from ..inference.patches import CasePatches
from ..inference.visualization import SliceView
from ..models.network import PatchAnomalyNetwork
from .figures import histogram_svg
from .pictures import SlicePictures, chosen_slices, component_colours

N_COMPONENTS = 8  # named for a case


def case_content(
    view: SliceView, patches: CasePatches, network: PatchAnomalyNetwork, threshold: float
) -> dict[str, Any]:
    """What the template of a case shows beside its measurements.

    Args:
        view: the case.
        patches: its patches.
        network: what scored it.
        threshold: what made the mask.

    Returns:
        ``scored``, what is told of every slice that was scored; ``slices``, those that are drawn (see `SlicePictures`),
        which of them has the ``highest`` score, ``best``; ``components`` and ``histogram``.
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
    chosen = chosen_slices(scores)
    pictures = SlicePictures(view, patches)
    return {
        "is_volume": view.numbers is not None,
        "size": (pictures.width, pictures.height),
        "scored": [{**row, "shown": int(np.abs(chosen - index).argmin())} for index, row in enumerate(scored)],
        "slices": [{**scored[index], **pictures.draw(index)} for index in chosen],
        "best": int(scores[chosen].argmax()),
        "highest": max(2.0, float(scores.max())),
        "components": leading_components(patches, patches.on_foreground(foreground), network),
        "histogram": _histogram(view.scores[foreground], network, threshold),
    }


def leading_components(patches: CasePatches, seen: np.ndarray, network: PatchAnomalyNetwork) -> list[dict[str, Any]]:
    """The components that hold most patches of a case.

    Args:
        patches: those of the case.
        seen: which of them count, ``[s,h,w]``.
        network: has the components.

    Returns:
        Of each its number, colour, share of the patches, weight in the mixture, and the median of ``rarity`` over
        its patches; largest share first.
    """
    numbers, counts = np.unique(patches.components[seen], return_counts=True)
    weights = network.mixture.log_weights().exp().cpu().numpy()
    return [
        {
            "number": int(numbers[index]),
            "colour": to_hex(component_colours(numbers[index]).tolist()),
            "share": float(counts[index] / counts.sum()),
            "weight": float(weights[numbers[index]]),
            "rarity": float(np.median(patches.rarity[seen & (patches.components == numbers[index])])),
        }
        for index in np.argsort(-counts, kind="stable")[:N_COMPONENTS]
    ]


def _histogram(scores: np.ndarray, network: PatchAnomalyNetwork, threshold: float) -> str:
    calibration, kind = network.calibration, network.score_index
    normal = calibration(calibration.quantiles[kind], kind, network.target_fpr)
    return histogram_svg(scores, normal.cpu().numpy(), calibration.rates.cpu().numpy(), threshold)
