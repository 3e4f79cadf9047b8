"""MONAI Label's server, whose answers say what went wrong.

As it comes, it answers 500 "Internal Server Error" to all of that. This module stands in the app's folder, beside
`scripts.dicom_series`, and is what uvicorn runs. It imports nothing else of ours, for each bundle brings its own
``scripts``.
"""

from __future__ import annotations

from dicom_series import what_is_wrong
from dicomweb_client import DICOMwebClient
from fastapi import Request
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.utils.app import app_instance
from pydicom import Dataset
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

EMPTY = "Nothing reaches the threshold: the mask is empty, and there is no DICOM SEG without a segment."
TASKS = {"infer": "models", "train": "trainers"}


class Refusals:
    """Answers what can be refused before MONAI Label begins, and lets it answer the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        refused = await run_in_threadpool(refusal, Request(scope)) if scope["type"] == "http" else None
        await (refused or self.app)(scope, receive, send)


def refusal(request: Request) -> JSONResponse | None:
    """An answer where a request names a model or an image that is not there, or a series that is not one volume.

    With a session the image is what was uploaded to it, whatever name the request gives it besides.
    """
    _, endpoint, *names = request.url.path.split("/")
    if endpoint in TASKS and any(names):
        known = app_instance().info()[TASKS[endpoint]]
        if names[0] not in known:
            return answer(404, f"There is no fitted model {names[0]!r} here; there is: {', '.join(known) or 'none'}.")
    image = request.query_params.get("image")
    if endpoint != "infer" or not image or request.query_params.get("session_id"):
        return None
    datastore = app_instance().datastore()
    if isinstance(datastore, DICOMWebDatastore):
        headers = headers_of(image, datastore._client)
        is_known, wrong = bool(headers), what_is_wrong(headers) if headers else ""
    else:
        is_known, wrong = image in datastore.list_images(), ""
    if not is_known:
        return answer(404, f"There is no image {image!r} among the studies.")
    return answer(422, f"The series cannot be scored: {wrong}.") if wrong else None


def headers_of(series: str, client: DICOMwebClient) -> list[Dataset]:
    """The headers of a series on a DICOMweb server; none where there is no such series."""
    for found in client.search_for_series(search_filters={"SeriesInstanceUID": series}):
        if found["0020000E"]["Value"] == [series]:  # a server takes * for any
            study = found["0020000D"]["Value"][0]
            return [Dataset.from_json(header) for header in client.retrieve_series_metadata(study, series)]
    return []


@app.exception_handler(Exception)
async def say(request: Request, error: Exception) -> JSONResponse:
    """Answer with the sentence of an error: 422 where the bundle refused its input, otherwise 500."""
    cause: BaseException = error
    while not is_input_error(cause) and (inner := cause.__cause__ or cause.__context__):
        cause = inner
    if isinstance(cause, FileNotFoundError) and cause.filename == "":  # what MONAI Label makes of an empty mask
        return answer(422, EMPTY)
    if is_input_error(cause):
        return answer(422, str(cause))
    reason = getattr(cause, "msg", "") or str(cause) or type(cause).__name__
    return answer(500, f"It failed ({reason[:1000]}); check the image and the model, and see the server's log.")


def is_input_error(error: BaseException) -> bool:
    """Whether this is an `InputError` of any bundle."""
    return type(error).__name__ == "InputError"


def answer(status: int, detail: str) -> JSONResponse:
    """An answer in FastAPI's form."""
    return JSONResponse({"detail": detail}, status_code=status)


app.add_middleware(Refusals)
