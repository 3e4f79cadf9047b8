"""Batches of slices that are the same in every process, and in every fit that resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import ignite.distributed as idist
import torch
from torch.utils.data import Sampler

from ..errors import InputError


class DistributedBatchSampler(Sampler[list[int]]):
    """Batches whose order depends on seed and epoch alone, each divided among the processes.

    In an epoch every item is in one batch and in one process, whatever the number of processes; the last batch may be
    smaller, and the part of a process empty.

    Args:
        items: dataset to draw from; its length is asked for when an epoch begins.
        batch_size: number of items in a batch, over all processes.
        seed: seed of the order.
        shuffle: whether the order changes with the epoch; otherwise it is that of the items.

    Raises:
        InputError: a batch size below 1.
    """

    def __init__(self, items: Sized, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        if batch_size < 1:
            raise InputError(f"batch_slices must be at least 1; got {batch_size}.")
        self.items = items
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch, from 1."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's part of each batch."""
        order = torch.arange(len(self.items))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(len(self.items), generator=generator)
        for batch in order.split(self.batch_size):
            yield batch[idist.get_rank() :: idist.get_world_size()].tolist()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.items) // self.batch_size)
