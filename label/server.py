"""MONAI Label server that changes no file outside its folder and explains errors in its answers.

MONAI Label itself writes and deletes through links, and answers 500 "Internal Server Error" to wrong input. This module
is run by uvicorn in the folder of the app, next to `request_rules` and `scripts.data.dicom`. It imports no other module
of the bundle, because each bundle brings its own ``scripts``.
"""

from __future__ import annotations

import json
import re

from dicom import validate_series
from dicomweb_client import DICOMwebClient
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from monailabel.app import app as label_app
from monailabel.app import static_dir
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.utils.app import app_instance
from pydicom import Dataset
from request_rules import refusal

EMPTY = "Nothing reaches the threshold: the mask is empty, and there is no DICOM SEG without a segment."
TASKS = {"infer": "models", "train": "trainers"}
FOLDERS = re.compile(r"(?<![\w./])/(?:[^/\s'\":;](?:[^/\n'\":;]*[^/\s'\":;])?/)+")  # in an absolute path


async def refuse_unsafe(request: Request) -> None:
    """Refuse a request that could reach a file outside the folder of the server; see `request_rules`."""
    form, body = [], None
    if "form" in request.headers.get("content-type", ""):
        form = (await request.form()).multi_items()
    elif content := await request.body():
        try:
            body = json.loads(content)
        except ValueError:  # FastAPI reports it if the endpoint expects JSON
            body = None
        except RecursionError:
            raise HTTPException(422, "The body is nested too deeply.") from None
    refused = refusal(
        request.method,
        request.url.path,
        request.path_params,
        request.query_params.multi_items(),
        [(key, value) for key, value in form if isinstance(value, str)],
        [value.filename or "" for _, value in form if not isinstance(value, str)],
        body,
    )
    if refused:
        raise HTTPException(*refused)


def refuse_unknown(request: Request) -> None:
    """Refuse a request for a missing model, a missing image, or a series that is not one volume.

    The image of a session is the uploaded one, whatever name the request gives.
    """
    _, endpoint, *names = request.url.path.split("/")
    if endpoint in TASKS and any(names):
        known = app_instance().info()[TASKS[endpoint]]
        if names[0] not in known:
            raise HTTPException(
                404, f"There is no fitted model {names[0]!r} here; there is: {', '.join(known) or 'none'}."
            )
    datastore = app_instance().datastore()
    is_remote = isinstance(datastore, DICOMWebDatastore)
    if is_remote and request.method in ("PUT", "DELETE") and endpoint == "datastore" and names in ([""], ["image"]):
        raise HTTPException(403, "Images on the DICOMweb server are only read through this server.")
    image = request.query_params.get("image")
    if endpoint != "infer" or not image or request.query_params.get("session_id"):
        return
    if is_remote:
        headers = fetch_headers(image, datastore._client)
        is_known, wrong = bool(headers), validate_series(headers) if headers else ""
    else:
        is_known, wrong = image in datastore.list_images(), ""
    if not is_known:
        raise HTTPException(404, f"There is no image {image!r} among the studies.")
    if wrong:
        raise HTTPException(422, f"The series cannot be scored: {wrong}.")


def fetch_headers(series: str, client: DICOMwebClient) -> list[Dataset]:
    """Fetch the headers of a series from a DICOMweb server; an empty list if it does not exist."""
    for match in client.search_for_series(search_filters={"SeriesInstanceUID": series}):
        if match["0020000E"]["Value"] == [series]:  # servers treat * as a wildcard
            study = match["0020000D"]["Value"][0]
            return [Dataset.from_json(header) for header in client.retrieve_series_metadata(study, series)]
    return []


async def explain_error(_: Request, error: Exception) -> JSONResponse:
    """Answer with the message of an error: status 422 for an `InputError` of the bundle, otherwise 500."""
    cause: BaseException = error
    while not is_input_error(cause) and (inner := cause.__cause__ or cause.__context__):
        cause = inner
    if isinstance(cause, FileNotFoundError) and cause.filename == "":  # MONAI Label's error for an empty mask
        return answer(422, EMPTY)
    if is_input_error(cause):
        return answer(422, remove_folders(str(cause)))
    reason = remove_folders((getattr(cause, "msg", "") or str(cause) or type(cause).__name__)[:1000])
    return answer(500, f"It failed ({reason}); check the image and the model, and see the server's log.")


def is_input_error(error: BaseException) -> bool:
    """Return whether an error is an `InputError` of any bundle."""
    return type(error).__name__ == "InputError"


def remove_folders(sentence: str) -> str:
    """Reduce absolute paths to their last part, because folders may be named after patients."""
    return FOLDERS.sub("", sentence)


def answer(status: int, detail: str) -> JSONResponse:
    """Make an answer in the format of FastAPI."""
    return JSONResponse({"detail": detail}, status_code=status)


app = FastAPI(openapi_url=None, middleware=label_app.user_middleware, exception_handlers={Exception: explain_error})
app.mount("/static", StaticFiles(directory=static_dir), name="static")
app.include_router(label_app.router, dependencies=[Depends(refuse_unsafe), Depends(refuse_unknown)])
