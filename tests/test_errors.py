"""User input errors, shown as one sentence instead of a traceback."""

import subprocess
import sys

import pytest

from scripts.errors import reason_of
from tests.tiny_bundle import ROOT

IMPORTED_AGAIN = """
import sys
for _ in range(3):
    import scripts.errors
    hook = sys.excepthook
    del sys.modules["scripts.errors"], sys.modules["scripts"]
assert hook.previous is sys.__excepthook__
from scripts.errors import InputError
raise RuntimeError("wrapped") from InputError("the sentence")
"""


class TestExceptHook:
    def test_repeated_imports_leave_one_hook(self):
        done = subprocess.run(
            [sys.executable, "-c", IMPORTED_AGAIN], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, "error: the sentence\n")

    @pytest.mark.parametrize(
        ("raised", "said"), [("KeyboardInterrupt", "Stopped."), ("KeyboardInterrupt('3 of 5')", "3 of 5")]
    )
    def test_interrupt_has_status_130(self, raised, said):
        code = f"import scripts.errors\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    raise {raised}"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (130, f"{said}\n")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no\n such\tvalue"), "no such value"),
        (KeyError(105), "KeyError 105"),
        (EOFError(), "EOFError"),
        (ValueError("x" * 300), "x" * 120),
    ],
)
def test_reason_has_words(error, reason):
    assert reason_of(error) == reason
