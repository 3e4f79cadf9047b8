"""Which slices make a batch: the same on every process, and in every run that resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import ignite.distributed as idist
import torch
from torch.utils.data import Sampler

from ..errors import InputError


class DistributedBatchSampler(Sampler[list[int]]):
    """Batches whose order is a function of seed and epoch alone, each shared out among the processes.

    Every item is in one batch of an epoch and with one process, whatever their number; the last batch may be smaller,
    and a process's share of it empty.

    Args:
        items: what is drawn from.
        batch_size: items in a batch, over all processes.
        seed: of the order.
        shuffle: whether the order changes with the epoch; otherwise it is that of the items.

    Raises:
        InputError: a batch size below 1.
    """

    def __init__(self, items: Sized, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        if batch_size < 1:
            raise InputError(f"batch_slices must be at least 1; got {batch_size}.")
        self.n_items = len(items)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch, from 1."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """This process's share of each batch."""
        order = torch.arange(self.n_items)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.n_items, generator=generator)
        for batch in order.split(self.batch_size):
            yield batch[idist.get_rank() :: idist.get_world_size()].tolist()

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.n_items // self.batch_size)
