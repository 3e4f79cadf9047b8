"""Chromium without a window."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def run_chromium(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in Chromium, with its profile next to the page; skip the test if Chromium is missing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not there to open the report: apt-get install chromium")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
