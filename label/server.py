"""MONAI Label server that changes no file outside its folder and explains errors in its answers.

MONAI Label itself writes and deletes through links, blocks all requests during an inference, answers 500 "Internal
Server Error" to wrong input, and lets any web page read images. This module is run by uvicorn in the folder of the app,
next to the other modules of `label` and `scripts.data.dicom`. It imports no other module of the bundle, because each
bundle brings its own ``scripts``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import jwt
from checks import check_fit, refuse_unknown, refuse_unsafe
from explanations import explain_error, explain_invalid
from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    datastore,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
)
from monailabel.endpoints.user import auth
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from origins import LOOPBACK, OriginFilter
from routes import router
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "PS256")  # of signatures of tokens
ENDPOINTS = (info, model, train, activelearning, scoring, datastore, logs, ohif, proxy, session)  # others are replaced
REPLACED = {"/model/{model}"}  # except for reading
UPLOADS = (  # log names of uploaded files
    "monailabel.endpoints.datastore",
    "monailabel.endpoints.session",
    "monailabel.utils.sessions",
)

# MONAI Label names no algorithms, which PyJWT requires: no token would be valid.
auth.jwt = SimpleNamespace(decode=functools.partial(jwt.decode, algorithms=ALGORITHMS))


def in_thread(endpoint: Callable) -> Callable:
    """Run one of MONAI Label's endpoints in a thread; they are coroutines, but block all requests."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        return asyncio.run(endpoint(*arguments, **keywords))

    run.__name__ = endpoint.__name__
    run.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
    return run


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Prepare the app before the first request, and end fits with the server."""
    for name in UPLOADS:
        logging.getLogger(name).setLevel(logging.WARNING)
    instance = app_instance()
    instance.server_mode(True)
    instance.on_init_complete()
    instance.preload()
    yield
    instance.batch.stop()
    AsyncTask.stop("train")


def middleware() -> list[Middleware]:
    """Close the server to pages of other addresses, but for those that its command names."""
    origins = json.loads(os.environ.get("DPMM_LABEL_ORIGINS", "[]"))
    hosts = () if settings.MONAI_LABEL_AUTH_ENABLE else {*LOOPBACK, os.environ.get("DPMM_LABEL_HOST", "127.0.0.1")}
    layers = [Middleware(OriginFilter, origins=origins, hosts=hosts)]
    if origins:
        layers.insert(
            0,
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], allow_credentials=True
            ),
        )
    return layers


def label_routes() -> APIRouter:
    """Return MONAI Label's endpoints that remain, in threads and with checks."""
    routes = APIRouter()
    for module in ENDPOINTS:
        for route in module.router.routes:
            if route.path in REPLACED and route.methods != {"GET"}:
                continue
            if asyncio.iscoroutinefunction(route.endpoint):
                route.endpoint = in_thread(route.endpoint)
            if module is train and route.methods == {"POST"}:
                route.dependencies = [*route.dependencies, Depends(check_fit)]
            routes.routes.append(route)
    return routes


has_users = settings.MONAI_LABEL_AUTH_ENABLE
checks = [Depends(auth.get_current_user)] * has_users + [Depends(refuse_unsafe), Depends(refuse_unknown)]
app = FastAPI(
    openapi_url=None,
    middleware=middleware(),
    exception_handlers={Exception: explain_error, RequestValidationError: explain_invalid},
    lifespan=lifespan,
)
app.mount("/static", StaticFiles(packages=[("monailabel", "endpoints/static")]), name="static")
app.include_router(router, dependencies=checks)
app.include_router(label_routes(), dependencies=checks)
if has_users:
    app.include_router(login.router, dependencies=[Depends(refuse_unsafe)])
