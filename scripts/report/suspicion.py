"""How suspicious cases are: their order, their p-values in words, and how many are flagged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def suspicion(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the key that orders cases: the lowest p-value is highest, none is lowest; then the image score.

    Args:
        entry: entry of the case in the summary, of this or an earlier version.

    Returns:
        The key.
    """
    p_value = entry.get("p_value")
    return -math.inf if p_value is None else -p_value, entry["image_score"]


def p_value_text(p_value: float, n_cases: int) -> str:
    """Express a conformal p-value as the frequency of such peaks in the held-out normal cases.

    Args:
        p_value: ``(1 + k) / (n + 1)``.
        n_cases: n.

    Returns:
        The sentence, with k and n.
    """
    return f"as high a peak in {round(p_value * (n_cases + 1)) - 1} of {n_cases} held-out healthy cases"


def flagging(entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Count the flagged cases, or say why none can be flagged.

    Args:
        entries: entries of the cases in the summary, of this or an earlier version.
        settings: settings of the run.

    Returns:
        ``flagged``, such as ``"3 of 8"``, None if no case can be flagged; ``why_not``, the reason; ``case_alpha``.
    """
    case_alpha = settings.get("case_alpha", 0.05)
    decisions = [entry["flagged"] for entry in entries if entry.get("flagged") is not None]
    if decisions:
        return {"flagged": f"{sum(decisions)} of {len(decisions)}", "why_not": None, "case_alpha": case_alpha}
    if n_cases := max((entry.get("held_out_cases", 0) for entry in entries), default=0):
        n_needed = math.ceil(round(1 / case_alpha, 6)) - 1
        why_not = f"this takes {n_needed} held-out normal cases, and the model has {n_cases}"
    else:
        why_not = "the model has no regions of held-out normal cases to compare with, so calibrate it or fit it anew"
    return {"flagged": None, "why_not": why_not, "case_alpha": case_alpha}
