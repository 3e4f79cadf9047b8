"""What is needed next, made by another thread while what came before is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], n_threads: int = 1) -> Iterator[Result]:
    """The results of a function in order, those of the next items being computed by other threads meanwhile.

    Args:
        function: may raise; that ends the iteration where its result would have come.
        items: what it is given.
        n_threads: how many results are computed or wait, beside the one in use.

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
        pool.shutdown(wait=False, cancel_futures=True)  # who is interrupted does not wait for what is under way
