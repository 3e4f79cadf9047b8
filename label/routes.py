"""Endpoints that replace MONAI Label's: inference by one worker, and runs on many images.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from answers import DICOM_OBJECTS, OUTPUTS, answer_to
from bundle_tasks import AnomalyInference
from explanations import explain
from fastapi import APIRouter, BackgroundTasks, Depends, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import infer as label_infer
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType, BatchInferTask
from monailabel.interfaces.utils.app import app_instance
from parameters import AnswerParameters, BatchParameters, check_parameters, shown
from starlette.concurrency import run_in_threadpool

logger = logging.getLogger(__name__)

MAX_WAITING = 64  # requests for the worker
INFER_QUERY = {"image", "session_id", "output"}
USER = [Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
ANNOTATOR = [Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
ADMIN = [Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]

router = APIRouter()


@router.post("/infer/{model}", dependencies=USER)
async def infer(
    background_tasks: BackgroundTasks,
    request: Request,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: UploadFile | None = None,
    label: UploadFile | None = None,
    output: str = "all",
) -> Any:
    """Segment an image of the studies, of a session, or in the request; the worker does it, one after another."""
    app = app_instance()
    task = app.anomaly_inference(model)
    if not (image or session_id or file):
        raise HTTPException(422, "Which image? Name one (image, session_id) or upload it (file).")
    if request.headers.get("content-type", "").startswith("application/json") and await request.body():
        raise HTTPException(422, "Parameters are read from the field params of a form, not from a JSON body.")
    if unknown := sorted(set(request.query_params) - INFER_QUERY):
        raise HTTPException(
            422, f"There is no {shown(unknown[0])} in the address; parameters are in the form's params."
        )
    if app.n_waiting >= MAX_WAITING:
        raise HTTPException(503, "Too many requests are waiting; try again later.", {"Retry-After": "30"})
    if task is None:
        arguments = (background_tasks, model, image, session_id, params, file, label, output)
        return await asyncio.wrap_future(app.submit(label_infer.run_inference, *arguments))
    if output not in OUTPUTS:
        raise HTTPException(422, f"output must be one of {', '.join(OUTPUTS)}; got {shown(output)}.")
    if output in DICOM_OBJECTS and (file or session_id or not isinstance(app.datastore(), DICOMWebDatastore)):
        raise HTTPException(422, f"{output} needs an image of a DICOMweb server; give output=image.")
    parameters, chosen = task.parameters.check(json.loads(params or "{}"), AnswerParameters)
    with tempfile.TemporaryDirectory() as folder:
        source = await run_in_threadpool(stored_upload, file, folder) if file else ""
        done = app.submit(run_inference, task, source, image, session_id, parameters, chosen, output)
        try:
            return await asyncio.wrap_future(done)
        except Exception as error:  # explained here, so that the log has no page of traceback for wrong input
            status, detail = explain(error)
            logger.log(logging.WARNING if status < 500 else logging.ERROR, detail, exc_info=status >= 500)
            raise HTTPException(status, detail) from None


def stored_upload(upload: UploadFile, folder: str) -> str:
    """Store an uploaded image under a name that says nothing of its patient, and return its path."""
    name = (upload.filename or "").lower()
    path = Path(folder, "image" + (".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix or ".nii.gz"))
    with path.open("wb") as target:
        shutil.copyfileobj(upload.file, target)
    return str(path)


def run_inference(
    task: AnomalyInference,
    source: str,
    image: str,
    session_id: str,
    parameters: AnswerParameters,
    chosen: dict[str, Any],
    output: str,
) -> Response:
    """Segment an image and make the answer.

    Args:
        task: the inference.
        source: an uploaded file, or empty.
        image: name of the image in the studies.
        session_id: session of an uploaded image.
        parameters: format of the answer.
        chosen: settings.
        output: kind of the answer.

    Returns:
        The answer.
    """
    datastore: Datastore = app_instance().datastore()
    if session_id:
        if (session := app_instance().sessions().get_session(session_id)) is None:
            raise HTTPException(404, "The session has expired; upload the image again.")
        source = session.image
    is_of_studies = not source
    source = source or datastore.get_image_uri(image)
    scored = task.score(source, chosen, parameters.device)
    if parameters.save_label and is_of_studies:
        task.save_label(scored, source, datastore, image, parameters.label_tag)
    return answer_to(output, scored, source, parameters, task)


@router.get("/batch/infer", dependencies=USER)
def batch_status(
    all: bool = False,
    check_if_running: bool = False,
) -> Any:
    """Return the last run of inference on many images, or all of them."""
    batch = app_instance().batch
    if not batch.tasks or (check_if_running and not batch.running):
        raise HTTPException(404, "No inference on many images runs." if batch.tasks else "None has run yet.")
    return list(batch.tasks) if all else batch.running or batch.tasks[-1]


@router.post("/batch/infer/{model}", dependencies=ADMIN)
def batch_infer(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
) -> Any:
    """Segment many images of the studies, one after another, and save the masks as their labels."""
    app = app_instance()
    known = app.info()["models"]
    if model not in known:
        raise HTTPException(404, f"There is no fitted model {model!r} here; there is: {', '.join(known) or 'none'}.")
    task, chosen, wanted = app.anomaly_inference(model), {}, params or {}
    if task:
        parameters, chosen = task.parameters.check(wanted, BatchParameters)
    else:
        parameters = check_parameters(wanted, BatchParameters)
    request = {**chosen, "label_tag": parameters.label_tag, "device": parameters.device}
    names = BatchInferTask().get_images({"images": images, "label_tag": parameters.label_tag}, app.datastore())
    infer_one = functools.partial(_infer_and_save, app, model, request)
    started = app.batch.start(list(names), infer_one, {"model": model, "images": images, **request}, run_sync)
    if started is None:
        raise HTTPException(429, "An inference on many images runs already; GET /batch/infer shows its progress.")
    return started


def _infer_and_save(app: Any, model: str, request: dict[str, Any], image: str) -> None:
    try:
        app.infer_and_save(model, image, request)
    except Exception as error:
        raise RuntimeError(explain(error)[1]) from error


@router.delete("/batch/infer", dependencies=ADMIN)
def batch_stop() -> Any:
    """Stop the inference on many images after its current image."""
    return app_instance().batch.stop()


@router.get("/datastore/dataset", dependencies=ANNOTATOR)
def download_dataset(background_tasks: BackgroundTasks, limit_cases: int | None = None) -> FileResponse:
    """Return an archive of images and labels, and remove it afterwards; MONAI Label leaves it."""
    path = Path(app_instance().datastore().get_dataset_archive(limit_cases))
    background_tasks.add_task(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip")


@router.put("/model/{model}")
@router.delete("/model/{model}")
def refuse_model_change(model: str) -> None:
    """Refuse to replace or delete a model, which only a fit does."""
    raise HTTPException(403, "Only a fit replaces a model; start another server for another model.")
