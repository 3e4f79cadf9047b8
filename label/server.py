"""MONAI Label's server, which changes nothing outside its own folder, and whose answers say what went wrong.

As it comes, MONAI Label writes and deletes through links and answers 500 "Internal Server Error" to wrong input. This
module stands in the app's folder, beside `request_rules` and `scripts.data.dicom`, and is what uvicorn runs. It
imports nothing else of ours, for each bundle brings its own ``scripts``.
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
FOLDERS = re.compile(r"(?<![\w./])/(?:[^/\s'\":;](?:[^/\n'\":;]*[^/\s'\":;])?/)+")  # of an absolute path


async def refuse_unsafe(request: Request) -> None:
    """Refuse a request that could reach a file outside the server's folder; see `request_rules`."""
    form, body = [], None
    if "form" in request.headers.get("content-type", ""):
        form = (await request.form()).multi_items()
    elif content := await request.body():
        try:
            body = json.loads(content)
        except ValueError:  # FastAPI says so where it expects JSON
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
    """Refuse a request that names a model or an image that is not there, or a series that is not one volume.

    With a session the image is what was uploaded to it, whatever name the request gives it besides.
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
        headers = headers_of(image, datastore._client)
        is_known, wrong = bool(headers), validate_series(headers) if headers else ""
    else:
        is_known, wrong = image in datastore.list_images(), ""
    if not is_known:
        raise HTTPException(404, f"There is no image {image!r} among the studies.")
    if wrong:
        raise HTTPException(422, f"The series cannot be scored: {wrong}.")


def headers_of(series: str, client: DICOMwebClient) -> list[Dataset]:
    """Fetch the headers of a series of a DICOMweb server; none where there is no such series."""
    for found in client.search_for_series(search_filters={"SeriesInstanceUID": series}):
        if found["0020000E"]["Value"] == [series]:  # a server takes * for any
            study = found["0020000D"]["Value"][0]
            return [Dataset.from_json(header) for header in client.retrieve_series_metadata(study, series)]
    return []


async def say(_: Request, error: Exception) -> JSONResponse:
    """Answer with the sentence of an error: 422 where the bundle refused its input, otherwise 500."""
    cause: BaseException = error
    while not is_input_error(cause) and (inner := cause.__cause__ or cause.__context__):
        cause = inner
    if isinstance(cause, FileNotFoundError) and cause.filename == "":  # what MONAI Label makes of an empty mask
        return answer(422, EMPTY)
    if is_input_error(cause):
        return answer(422, without_folders(str(cause)))
    reason = without_folders((getattr(cause, "msg", "") or str(cause) or type(cause).__name__)[:1000])
    return answer(500, f"It failed ({reason}); check the image and the model, and see the server's log.")


def is_input_error(error: BaseException) -> bool:
    """Tell whether this is an `InputError` of any bundle."""
    return type(error).__name__ == "InputError"


def without_folders(sentence: str) -> str:
    """Leave of absolute paths their last part, for folders may be named after patients."""
    return FOLDERS.sub("", sentence)


def answer(status: int, detail: str) -> JSONResponse:
    """Answer in FastAPI's form."""
    return JSONResponse({"detail": detail}, status_code=status)


app = FastAPI(openapi_url=None, middleware=label_app.user_middleware, exception_handlers={Exception: say})
app.mount("/static", StaticFiles(directory=static_dir), name="static")
app.include_router(label_app.router, dependencies=[Depends(refuse_unsafe), Depends(refuse_unknown)])
