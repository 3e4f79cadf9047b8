"""Errors of requests, explained in one sentence.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import re

import requests
from answers import EMPTY
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

FOLDERS = re.compile(r"(?<![\w./])/(?:[^/\s'\":;](?:[^/\n'\":;]*[^/\s'\":;])?/)+")  # in an absolute path


async def explain_error(_: Request, error: Exception) -> JSONResponse:
    """Answer with the message of an error."""
    status, detail = explain(error)
    return JSONResponse({"detail": detail}, status_code=status)


async def explain_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Answer that a request lacks a part, or that a part has a wrong type."""
    first = error.errors()[0]
    place = " ".join(str(part) for part in first["loc"] if not isinstance(part, int))
    return JSONResponse({"detail": f"The {place} of the request is wrong: {first['msg']}."}, status_code=422)


def explain(error: BaseException) -> tuple[int, str]:
    """Explain an error.

    Returns:
        HTTP status and a sentence: 422 for an `InputError` of the bundle or a series that is not delivered, 503 if
        another server does not answer, otherwise 500.
    """
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    cause = error
    while not is_input_error(cause) and (inner := cause.__cause__ or cause.__context__):
        cause = inner
    if isinstance(cause, FileNotFoundError) and cause.filename == "":  # MONAI Label's error for an empty mask
        return 422, EMPTY
    if is_input_error(cause):
        return 422, remove_folders(str(cause))
    if isinstance(cause, requests.HTTPError):
        return 422, "The DICOMweb server does not deliver the series; check there whether its files are whole."
    if isinstance(cause, requests.RequestException):
        return 503, "Another server that this one needs (DICOMweb, or of tokens) does not answer; try again later."
    reason = remove_folders((getattr(cause, "msg", "") or str(cause) or type(cause).__name__)[:1000])
    return 500, f"It failed ({reason}); check the image and the model, and see the server's log."


def is_input_error(error: BaseException) -> bool:
    """Return whether an error is an `InputError` of any bundle."""
    return type(error).__name__ == "InputError"


def remove_folders(sentence: str) -> str:
    """Reduce absolute paths to their last part, because folders may be named after patients."""
    return FOLDERS.sub("", sentence)
