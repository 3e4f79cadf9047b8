"""Types of settings: conversion and check of the values that the command line and the configs give.

PyTorch is imported only where it is used, because the help of the command `dpmm` reads the settings without it.
"""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fire.parser import DefaultParseValue
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from .ids import SEPARATOR

EXPRESSION = ("$", "@", "%")  # first characters of values that MONAI evaluates
OFF = ("off", "none", "null")

T = TypeVar("T")


def typed_text(name: str) -> str | None:
    """Return the text after ``--name`` on the command line, which `fire` may convert to a number, tuple or None."""
    text = None
    arguments = sys.argv[1:]
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        flag, equals, value = argument.partition("=")
        if not _is_flag(flag) or flag.lstrip("-").replace("-", "_") != name:
            continue
        text = value if equals else None if _is_flag(following) else following
    return text


def _is_flag(argument: str) -> bool:
    return re.match("--|-[a-zA-Z]", argument) is not None


def _as_typed(value: Any, info: ValidationInfo) -> Any:
    """Restore a name that `fire` converted to a number or a tuple, or cut off at a ``#``."""
    text = typed_text(str(info.field_name))
    if value is not None and text is not None and not text.startswith((*EXPRESSION, "'", '"')):
        parsed = DefaultParseValue(text)
        parsed = parsed.replace("#", SEPARATOR) if isinstance(parsed, str) else parsed
        if type(value) is type(parsed) and value == parsed:
            return text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and SEPARATOR in value:
        raise ValueError(f"{info.field_name} must have no '#' or '::' in its name, which MONAI does not tell apart")
    return value


def _none_if_off(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in OFF else value


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_path(value: str) -> str:
    if "\0" in value:
        raise ValueError("a path must have no null character in it")
    try:
        Path(value).stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{value[:40]}... is too long for the file system; give a shorter path") from error
    return value


def _check_device(value: Any) -> Any:
    import torch

    try:
        torch.empty(0, device=value)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one that is there, such as cpu or cuda:0; got {str(value)!r}") from error
    return torch.device(value)


OrOff = Annotated[T | None, BeforeValidator(_none_if_off)]
ListOf = Annotated[list[T], BeforeValidator(_as_list), Field(min_length=1)]
Text = Annotated[str, BeforeValidator(_as_typed), Field(strict=True)]
PathText = Annotated[Text, AfterValidator(_check_path), Field(json_schema_extra={"format": "path"})]
FilePath = Annotated[PathText, Field(min_length=1)]
Pattern = Annotated[Text, Field(min_length=1, json_schema_extra={"format": "pattern"})]
Device = Annotated[Any, BeforeValidator(_check_device), Field(json_schema_extra={"format": "device"})]
Integer = Annotated[int, Field(strict=True)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
