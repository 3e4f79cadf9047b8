"""Partition of work among processes, and collection of their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch

from .errors import InputError


def partition(items: Sequence[Any]) -> list[Any]:
    """Return every n-th item, starting at the rank of this process, for n processes.

    Raises:
        InputError: there are fewer items than processes.
    """
    n_processes = idist.get_world_size()
    if len(items) < n_processes:
        raise InputError(f"{n_processes} processes need a case each, at least; got {len(items)}. Start fewer.")
    return list(items[idist.get_rank() :: n_processes])


def gather(items: Sequence[Any]) -> list[Any]:
    """Concatenate the items of all processes, in the order of their ranks."""
    if idist.get_world_size() == 1:
        return list(items)
    items_per_process: list[Any] = [None] * idist.get_world_size()
    torch.distributed.all_gather_object(items_per_process, list(items))
    return [item for part in items_per_process for item in part]
