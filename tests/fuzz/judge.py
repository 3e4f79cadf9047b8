"""Conditions after every attack: printable sentences and unchanged sources."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from pathlib import Path

from scripts.errors import InputError, cause_of

LONGEST = 500  # characters of a sentence
# Control characters, line ends, directions of writing, and bytes that are no text
UNPRINTABLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
ABSOLUTE_PATH = re.compile(r"(?<![\w./*@-])/(?:[\w.@-]+/)+[\w.@-]*")
# Internals that users cannot know: names of exceptions, calls, types, addresses and source files
RAW_TEXT = re.compile(
    r"\b\w+(?:Error|Exception)\b|\b\w+\(\)|<class|\b0x[0-9a-f]{6,}|\.(?:py|cxx|hxx|cpp)\b|NoneType|has no attribute"
    r"|Traceback|\bitk::|\bargument must be\b|invalid literal|could not convert|out of range|broadcast|\bndarray\b"
    r"|codec can't|not subscriptable|unexpected keyword|positional argument|unsupported operand"
)


def judge_sentence(sentence: object, folder: Path) -> list[str]:
    """Judge the reason why a case failed.

    Args:
        sentence: the reason.
        folder: folder that it must not name: reasons name files relative to it.

    Returns:
        Problems of the sentence.
    """
    if not isinstance(sentence, str) or not sentence.strip():
        return [f"the reason is no sentence: {sentence!r}"]
    problems = []
    if len(sentence) > LONGEST:
        problems.append(f"the reason has {len(sentence)} characters: {sentence[:200]!r}")
    if not is_printable(sentence):
        problems.append(f"the reason has characters that cannot be shown: {sentence!r}")
    if str(folder) in sentence or ABSOLUTE_PATH.search(sentence):
        problems.append(f"the reason has an absolute path: {sentence!r}")
    if raw := RAW_TEXT.search(sentence):
        problems.append(f"the reason is raw library text ({raw.group()}): {sentence!r}")
    return problems


def judge_error(error: BaseException | None, folder: Path, output_dir: str = "") -> list[str]:
    """Judge the exception of a whole run.

    Args:
        error: the exception; None if the run succeeded.
        folder: folder of the images, whose absolute paths must not be in the message.
        output_dir: folder that the message may quote, also with a folder inside it.

    Returns:
        Problems: a traceback instead of a sentence, or a sentence that cannot be shown.
    """
    if error is None:
        return []
    cause = cause_of(error)
    if not isinstance(cause, InputError):
        return [f"a traceback instead of a sentence: {type(cause).__name__}: {str(cause)[:300]!r}"]
    problems = []
    for line in str(cause).split("\n"):
        if not is_printable(line):
            problems.append(f"the message has characters that cannot be shown: {line!r}")
        if raw := RAW_TEXT.search(line):
            problems.append(f"the message is raw library text ({raw.group()}): {line!r}")
    allowed = rf"{re.escape(output_dir)}(/anomaly_results)?(?=[,;.]?(\s|$))"
    if f"{folder}{os.sep}" in re.sub(allowed, "", str(cause)):
        problems.append(f"the message has an absolute path of an image: {str(cause)!r}")
    return problems


def judge_case_name(name: object) -> list[str]:
    """Judge whether the name of a case is valid as a folder, in a log and in JSON."""
    if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
        return [f"the name of a case does not serve as a folder's: {name!r}"]
    if not is_printable(name):
        return [f"the name of a case has characters that cannot be shown: {name!r}"]
    return []


def is_printable(text: str) -> bool:
    """Return whether text can be shown on one line of a log without doing anything to the terminal."""
    return not any(unicodedata.category(character) in UNPRINTABLE for character in text)


def snapshot(folder: Path) -> dict[str, str]:
    """Describe every file below a folder.

    Args:
        folder: links in it are described, not followed.

    Returns:
        SHA-256 of a file, target of a link, or kind of the entry, by path relative to the folder.
    """
    described = {}
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(place, name)
            described[str(path.relative_to(folder))] = _describe(path)
    return described


def judge_sources(before: dict[str, str], folder: Path) -> list[str]:
    """Compare with an earlier `snapshot`: new files are allowed, changed or missing ones are not."""
    after = snapshot(folder)
    return [
        f"the source {name!r} is {'changed' if name in after else 'gone'}"
        for name, description in before.items()
        if after.get(name) != description
    ]


def _describe(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return f"link to {path.readlink()}" if stat.S_ISLNK(mode) else f"mode {stat.S_IFMT(mode)}"
