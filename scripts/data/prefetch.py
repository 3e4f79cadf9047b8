"""Prefetching in background threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], n_threads: int = 1) -> Iterator[Result]:
    """Yield the results of a function in order, and compute the next ones in background threads.

    Args:
        function: function of an item; an exception ends the iteration at the place of its result.
        items: arguments of the function.
        n_threads: number of results that are computed or wait, besides the one in use.

    Yields:
        The results.
    """
    pool = ThreadPoolExecutor(n_threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupted run does not wait for the running calls
