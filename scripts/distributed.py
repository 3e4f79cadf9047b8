"""Partition of work among runs and processes, and collection of their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch

from .errors import InputError


def partition(items: Sequence[Any], share: str | None = None) -> list[Any]:
    """Return the items of this process: every n-th of the share, starting at its rank, for n processes.

    Args:
        items: the cases of all runs and processes.
        share: share of this run, see `share_of`.

    Raises:
        InputError: there are fewer items than shares or processes; or see `share_of`.
    """
    items, n_processes = share_of(items, share), idist.get_world_size()
    if len(items) < n_processes:
        raise InputError(f"{n_processes} processes need a case each, at least; got {len(items)}. Start fewer.")
    return list(items[idist.get_rank() :: n_processes])


def share_of(items: Sequence[Any], share: str | None) -> Sequence[Any]:
    """Return a share of the items: with ``"2/3"`` every third, starting at the second. None takes all.

    Raises:
        InputError: there is no such share, or it is empty.
    """
    if share is None:
        return items
    number, n_shares = map(int, share.split("/"))
    if not 1 <= number <= n_shares:
        raise InputError(f"share must be one of 1/{n_shares} to {n_shares}/{n_shares}; got {share}.")
    if number > len(items):
        raise InputError(f"share {share} of {len(items)} cases is empty; make {len(items)} shares at most.")
    return items[number - 1 :: n_shares]


def gather(items: Sequence[Any]) -> list[Any]:
    """Concatenate the items of all processes, in the order of their ranks."""
    if idist.get_world_size() == 1:
        return list(items)
    items_per_process: list[Any] = [None] * idist.get_world_size()
    torch.distributed.all_gather_object(items_per_process, list(items))
    return [item for part in items_per_process for item in part]
