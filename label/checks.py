"""Checks of requests before they are carried out.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import json
from typing import Any

from dicom import validate_series
from dicomweb_client import DICOMwebClient
from fastapi import HTTPException, Request
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.utils.app import app_instance
from parameters import FitParameters, check_parameters, shown
from pydicom import Dataset
from request_rules import NotFiniteError, refusal, refuse_constant

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")  # anything else may be parsed as JSON
TASKS = {  # by endpoint: part of the description of the app, and what it holds
    "infer": ("models", "fitted model"),
    "train": ("trainers", "fitted model"),
    "activelearning": ("strategies", "strategy"),
    "scoring": ("scoring", "method"),
}


async def refuse_unsafe(request: Request) -> None:
    """Refuse a request that could reach a file outside the folder of the server; see `request_rules`."""
    form, body = [], None
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in FORMS:
        form = (await request.form()).multi_items()
    elif content := await request.body():
        try:
            body = json.loads(content, parse_constant=refuse_constant)
        except NotFiniteError as error:
            raise HTTPException(422, str(error)) from None
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
    """Refuse a request for a missing model, strategy, image or session, or for a series that is not one volume."""
    _, endpoint, *names = request.url.path.split("/")
    if endpoint in TASKS and any(names):
        part, kind = TASKS[endpoint]
        known = app_instance().info()[part]
        if names[0] not in known:
            raise HTTPException(404, f"There is no {kind} {names[0]!r} here; there is: {', '.join(known) or 'none'}.")
    is_remote = isinstance(app_instance().datastore(), DICOMWebDatastore)
    if is_remote and request.method in ("PUT", "DELETE") and endpoint == "datastore" and names in ([""], ["image"]):
        raise HTTPException(403, "Images on the DICOMweb server are only read through this server.")
    if endpoint == "infer":
        refuse_unknown_image(request)


def refuse_unknown_image(request: Request) -> None:
    """Refuse an inference on an image that does not exist; the image of a session is the uploaded one."""
    image, session = request.query_params.get("image"), request.query_params.get("session_id")
    if session:
        if app_instance().sessions().get_session(session) is None:
            raise HTTPException(
                404, f"There is no session {session!r}; it may have expired, so upload the image again."
            )
        return
    if not image:
        return
    datastore = app_instance().datastore()
    if isinstance(datastore, DICOMWebDatastore):
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


def check_fit(request: Request, params: dict[str, Any] | None = None) -> None:
    """Check the parameters of a fit, which are those of a model, or of each model by its name."""
    trainers = app_instance().info()["trainers"]
    for name, values in {"": params or {}, **{name: (params or {}).get(name) for name in trainers}}.items():
        if values is None:
            continue
        if not isinstance(values, dict):
            raise HTTPException(422, f"The parameters of {name} must be a JSON object; got {shown(values)}.")
        task = app_instance().anomaly_inference(name or request.path_params.get("model", ""))
        others = {key: value for key, value in values.items() if name or key not in trainers}
        if task:
            task.parameters.check(others, FitParameters)
        elif name == "" and not request.path_params.get("model"):
            check_parameters(others, FitParameters)
