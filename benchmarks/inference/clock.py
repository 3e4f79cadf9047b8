"""How long a run is inside each of its parts."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


class Clock:
    """Adds up the time inside parts of a run.

    Time inside a part that another part calls counts for the inner one alone. Each thread has its own: parts that
    overlap may add up to more than the run took.

    Args:
        finish: called before each reading, such as `torch.cuda.synchronize` where work goes on after a call returns.

    Attributes:
        seconds: by part.
    """

    def __init__(self, finish: Callable[[], object] = lambda: None) -> None:
        self.finish = finish
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Time a block."""
        stack = self._local.__dict__.setdefault("stack", [])
        self._read(stack)
        stack.append(part)
        try:
            yield
        finally:
            self._read(stack)
            stack.pop()

    def watch(self, part: str, thing: Any, *methods: str) -> None:
        """Time the calls of those of these methods that an object has.

        The object becomes one of a subclass of the same name: Python looks ``__call__`` up there, and what asks for its
        class or its name finds what it expects.
        """
        kind = type(thing)
        timed = {method: self._timed(part, getattr(kind, method)) for method in methods if hasattr(kind, method)}
        thing.__class__ = type(kind.__name__, (kind,), {**timed, "__module__": kind.__module__})

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.inside(part):
                return method(*args, **kwargs)

        return timed

    def _read(self, stack: list[str]) -> None:
        """Give the time since the last reading in this thread to the innermost part."""
        self.finish()
        now = time.perf_counter()
        if stack:
            with self._lock:
                self.seconds[stack[-1]] += now - self._local.since
        self._local.since = now
