"""How wrong input is said: one sentence to the user, not a page of traceback."""

from __future__ import annotations

import sys
from types import TracebackType

INTERRUPTED = 130  # exit status after Ctrl-C


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: what was expected, what came, and what to do.
    """


def reason_of(error: BaseException, length: int = 120) -> str:
    """What an error of a library says, on one line of at most ``length`` characters."""
    return " ".join(str(error).split())[:length]


def reason(error: BaseException) -> str:
    """Return why a file could not be read or written, without its name."""
    return getattr(error, "strerror", None) or reason_of(error)


def printable(text: str) -> str:
    """Replace characters that are not text: controls, marks of direction, bytes that are not UTF-8."""
    return "".join(character if character.isprintable() else "_" for character in text)


def cause_of(error: BaseException) -> BaseException:
    """The error that the user can act on, among those that ``error`` was raised from.

    Args:
        error: an exception, possibly wrapped by MONAI's transforms or config parser.

    Returns:
        The first `InputError` in the chain, otherwise the innermost exception.
    """
    while not isinstance(error, InputError):
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    return error


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = cause_of(error)
    if isinstance(error, KeyboardInterrupt):
        print(str(error) or "Stopped.", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    if isinstance(cause, InputError):
        print(f"error: {cause}", file=sys.stderr)
    else:
        _previous(kind, error, trace)


# `python -m monai.bundle run` wraps what its configs raise; this prints the sentence inside. Only an exception that
# ends the process gets here, so a server that imports the bundle (MONAI Label, MONAI Deploy) is not affected.
# Label imports it again and again: each time it takes the place of the one before.
_previous = getattr(sys.excepthook, "previous", sys.excepthook)
_say.previous = _previous  # type: ignore[attr-defined]
sys.excepthook = _say
