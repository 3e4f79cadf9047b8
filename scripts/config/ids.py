"""Ids of the configs that are not settings, and the error for ids that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ..errors import InputError

SEPARATOR = "::"  # of MONAI's ids: ReferenceResolver.sep, without the import of MONAI

# Ids of the configs that are not settings, and the parts of sections that nothing refers to as a whole. The list is not
# read from the configs, so that a misspelt id in a config is an error.
# fmt: off
SECTIONS = frozenset((
    "_meta_", "imports", "initialize", "finalize", "check", "inference", "training", "run", "evaluation",
    "calibrate", "quantize", "displayable_configs", "displayable_configs::false_regions",
    "displayable_configs::extent", "displayable_configs::min_region_mm3", "displayable_configs::smoothing_mm",
    "displayable_configs::threshold", "detection_limits", "encoder", "pretrained_encoder", "mixture",
    "network_def", "network", "fitted_network", "quantized_network", "traceable_network", "inferer",
    "field_of_view", "intensities", "preprocessing", "postprocessing", "cases", "normals", "split", "labels",
    "dataset", "embedding_cache",
    "fit_settings", "run_settings", "results", "remaining", "loader", "fit_output", "case_writer",
    "handlers", "evaluator", "calibrator", "recalibration", "limits",
    "report_failed", "is_not_rank0", "train", "train::dataset", "train::inferer", "train::embeddings",
    "train::dataloader", "train::tracker", "train::cross_fit", "train::calibrator", "train::handlers",
    "train::trainer", "validate", "validate::dataset",
    "validate::embeddings", "validate::dataloader", "validate::evaluator", "validate::handlers",
))
# fmt: on
MONAI_IDS = frozenset({"tracking_uri", "experiment_name", "run_name", "save_execute_config"})  # of --tracking
# Former names, for a release.
RENAMED = {"running_network": "network", "store": "embedding_cache", "train::keeper": "train::tracker"}


def unknown_id(name: str, known: Collection[str]) -> InputError:
    """Make the error for an id that does not exist, with the closest known id.

    Args:
        name: the id, with ``::`` between its parts.
        known: the ids that exist.
    """
    if name in RENAMED:
        return InputError(f"There is no id {_shown(name)!r} since 0.5; it is {_shown(RENAMED[name])!r} now.")
    others = sorted(set(known) - {name})
    last = name.rpartition(SEPARATOR)[2]
    close = [*difflib.get_close_matches(name, others, n=1), *difflib.get_close_matches(last, others, n=1)]
    advice = f"did you mean {_shown(close[0])!r}?" if close else "docs/reference.md lists the settings."
    return InputError(f"There is no id {_shown(name)!r}; {advice}")


def _shown(name: str) -> str:
    return name.replace(SEPARATOR, "#")
