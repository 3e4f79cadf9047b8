"""Work shared among processes, and what they have brought together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch

from .errors import InputError


def partition(items: Sequence[Any]) -> list[Any]:
    """The items that are this process's; all where there is one process.

    Raises:
        InputError: there are fewer items than processes.
    """
    n_processes = idist.get_world_size()
    if len(items) < n_processes:
        raise InputError(f"{n_processes} processes need a case each, at least; got {len(items)}. Start fewer.")
    return list(items[idist.get_rank() :: n_processes])


def gather(items: Sequence[Any]) -> list[Any]:
    """The items of all processes, in the order of the processes; one process has its own."""
    if idist.get_world_size() == 1:
        return list(items)
    of_all: list[Any] = [None] * idist.get_world_size()
    torch.distributed.all_gather_object(of_all, list(items))
    return [item for part in of_all for item in part]
