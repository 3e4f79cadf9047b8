"""User input errors, shown as one sentence instead of a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

INTERRUPTED = 130  # exit status after Ctrl-C


class InputError(ValueError):
    """Invalid input of the user.

    The message is one sentence: what was expected, what was given, and what to do.
    """


def reason_of(error: BaseException, length: int = 120) -> str:
    """Return the message of an error on one line of at most ``length`` characters, or its kind if it has no words."""
    message = " ".join(str(error).split())[:length]
    return message if any(map(str.isalpha, message)) else f"{type(error).__name__} {message}".rstrip()


def reason(error: BaseException) -> str:
    """Return why a file could not be read or written, without the name of the file."""
    return getattr(error, "strerror", None) or reason_of(error)


def printable(text: str) -> str:
    """Replace unprintable characters by ``_``: controls, marks of direction, bytes that are not UTF-8."""
    return "".join(character if character.isprintable() else "_" for character in text)


def cause_of(error: BaseException) -> BaseException:
    """Find the error that the user can act on, in the chain of causes of an exception.

    Args:
        error: the exception, possibly wrapped by MONAI's transforms or config parser.

    Returns:
        The first `InputError` of the chain, otherwise the innermost exception.
    """
    while not isinstance(error, InputError):
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    return error


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = cause_of(error)
    if isinstance(error, KeyboardInterrupt):
        print(str(error) or "Stopped.", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    if isinstance(cause, InputError):
        print(f"error: {cause}", file=sys.stderr)
    else:
        _previous(kind, error, trace)


# `python -m monai.bundle run` wraps the errors of configs; the hook prints the inner sentence. It is called only for
# exceptions that end the process, so servers that import the bundle (MONAI Label, MONAI Deploy) are not affected.
# MONAI Label imports this module repeatedly; each import replaces the hook of the previous one.
_previous = getattr(sys.excepthook, "previous", sys.excepthook)
_show_error.previous = _previous  # type: ignore[attr-defined]
sys.excepthook = _show_error
