"""Time and memory of this process."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer, timer

STATUS = Path("/proc/self/status")


def seconds_of(call: Callable[[], Any]) -> float:
    """Measure one call in seconds, the work of an accelerator included."""
    begin = timer()
    call()
    return timer() - begin


def median_seconds(call: Callable[[], Any], min_run_time: float = 3) -> float:
    """Measure the median of repeated calls, which take ``min_run_time`` seconds or more together."""
    repeated = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return repeated.blocked_autorange(min_run_time=min_run_time).median


def peak_mb() -> float:
    """Read the peak resident memory in MB.

    On Linux ``getrusage`` would start with the peak of the parent process.
    """
    if STATUS.is_file() and (peak := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        return int(peak[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """Read the present resident memory in MB; the peak where there is no ``/proc``."""
    if STATUS.is_file() and (resident := re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())):
        return int(resident[1]) / 1024
    return peak_mb()
