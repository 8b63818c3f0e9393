"""The routes of ``udc serve``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from swagger_ui_bundle import swagger_ui_path

import udc_model
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.decisions.session_costs import changed_costs
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.prediction import decided_rows
from udc_model.inference.server import metrics
from udc_model.inference.server.batching import Batcher, BusyError
from udc_model.inference.server.bodies import (
    FORMS,
    MEBI,
    TooLargeError,
    check_count,
    costs_in_json,
    images_in_json,
    read_body,
)
from udc_model.inference.serving import image_of
from udc_model.inference.stored_model import open_stored
from udc_model.native.memory import keep_freed_memory

_STORED_POLICIES = 64  # under costs of requests
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each damaged form
# A PNG of 8 x 8 grey pixels.
_EXAMPLE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR4nGNsYIAAJgaKGAAmCACQXTClHgAAAABJRU5ErkJggg=="
_DESCRIPTION = {
    "summary": "Decide images",
    "description": f"The body: {FORMS}. The answer has one prediction for each image; one that cannot be used has "
    "`error` instead of a decision.",
    "parameters": [{
        "name": "costs", "in": "query", "required": False, "schema": {"type": "string"},
        "description": "Costs of this request, as JSON: `cells`, each with `true`, `decided` and `cost`, and `refer`; "
        "the others stay as the policy has them.",
    }],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": {"image": _EXAMPLE}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {"schema": {"type": "object", "additionalProperties": {
                "type": "string", "format": "binary"}}},
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a request may have, and how much may wait.

    Parameters
    ----------
    mebibytes : of a body.
    json_mebibytes : of a body of JSON, of which the parsed lists take ten times the memory.
    images : in a request.
    waiting : images that wait; with more, requests are answered with status 503.
    """

    mebibytes: int = 64
    json_mebibytes: int = 16
    images: int = 256
    waiting: int = 1024


class Service:
    """A model with its policy, and the threads that decode images and run the network."""

    def __init__(self, root: Path, limits: Limits) -> None:
        keep_freed_memory()
        stored = open_stored(Workspace(root))
        self.limits, self.policy = limits, stored.policy
        self.classifier: TrainedClassifier = stored.load()
        self.preprocessing: Preprocessing = stored.preprocessing
        self.version = {"udc_model": udc_model.__version__, "model_sha256": stored.model.weights_sha256}
        self.policy_under = lru_cache(_STORED_POLICIES)(self._policy_under)
        self.decoders = ThreadPoolExecutor(torch.get_num_threads(), "decoder")
        self.batcher = Batcher(self.classifier.outputs_of_stored, most_waiting=limits.waiting,
                               on_batch=self._count_batch)  # fmt: skip
        example = np.zeros((1, *(self.preprocessing.stored_size,) * 2, self.preprocessing.channels), np.uint8)
        self.classifier.outputs_of_stored(example)  # the first batch prepares the weights

    def close(self) -> None:
        """Finish what was accepted."""
        self.decoders.shutdown()
        self.batcher.close()

    def _policy_under(self, costs: str | None) -> Policy:
        """The policy under the costs of a request; :class:`UdcError` if they are not allowed."""
        if costs is None:
            return self.policy
        changes = costs_in_json(costs)
        if self.policy.guarantee:
            raise UdcError(f"costs: the guarantee of the policy ({self.policy.guarantee}) would have to be fitted "
                           "again; leave costs out, or use udc decide")  # fmt: skip
        return changed_costs(self.policy, changes)

    def _count_batch(self, size: int) -> None:
        metrics.BATCH.observe(size)
        metrics.WAITING.set(self.batcher.waiting)

    async def decide(self, values: list[Any], policy: Policy) -> list[dict[str, Any]]:
        """A prediction, or an error, for each image.

        Raises
        ------
        BusyError
            Too many images wait.
        """
        if self.batcher.waiting >= self.limits.waiting:
            raise BusyError
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(*(loop.run_in_executor(self.decoders, _prepared, value, self.preprocessing)
                                          for value in values))  # fmt: skip
        images = [each for each in prepared if not isinstance(each, str)]
        rows: list[dict[str, Any]] = []
        if images:
            computed = self.batcher.submit(np.stack(images))
            metrics.WAITING.set(self.batcher.waiting)
            outputs = await asyncio.wrap_future(computed)
            rows = decided_rows(outputs, policy)
        metrics.IMAGES.labels("decided").inc(len(images))
        metrics.IMAGES.labels("error").inc(len(values) - len(images))
        decided = iter(rows)
        return [{"error": each} if isinstance(each, str) else next(decided) for each in prepared]


def _prepared(value: Any, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """The prepared image (S, S, C) of a file or of a JSON value, or why there is none."""
    try:
        return preprocessing.to_stored(image_of(value, preprocessing.decoding))
    except BadImageError as error:
        return str(error)
    except MemoryError:
        return "the image does not fit into memory"


def create_app(root: Path, limits: Limits) -> FastAPI:
    """The application of one process.

    Raises
    ------
    UdcError
        The model or the policy is missing or damaged, or they do not belong together.
    """
    service = Service(root, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="UDC-Model", version=udc_model.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi_version = "3.0.3"  # the newest that this version of Swagger UI shows
    app.mount("/swagger", StaticFiles(directory=swagger_ui_path))  # FastAPI's own page loads it from another server

    @app.get("/docs", include_in_schema=False)
    async def description() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json", title="UDC-Model", swagger_js_url="swagger/swagger-ui-bundle.js",
            swagger_css_url="swagger/swagger-ui.css", swagger_favicon_url="swagger/favicon-32x32.png",
        )  # fmt: skip

    async def predict(request: Request) -> Response:
        started = time.perf_counter()
        response = await _answer(service, request)
        metrics.SECONDS.observe(time.perf_counter() - started)
        metrics.REQUESTS.labels(str(response.status_code)).inc()
        return response

    for path in ("/predict", "/invocations"):  # the second is that of MLflow's server
        app.post(path, openapi_extra=_DESCRIPTION, name="predict")(predict)

    @app.get("/health", summary="The process runs")
    @app.get("/ready", summary="The model is loaded and the queue is not full")
    async def ready() -> Response:
        is_full = service.batcher.waiting >= limits.waiting
        return JSONResponse(
            {"status": "busy" if is_full else "ready", **service.version, "costs_digest": service.policy.costs_digest},
            503 if is_full else 200,
        )

    @app.get("/metrics", summary="Counts for Prometheus")
    async def counts() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")

    return app


async def _answer(service: Service, request: Request) -> Response:
    """The predictions, or one sentence that says what is wrong with the request."""
    try:
        policy = service.policy_under(request.query_params.get("costs"))
        values, is_list = await _images(request, service.limits)
        predictions = await service.decide(values, policy)
    except UdcError as error:
        return _error(400, str(error))
    except TooLargeError as error:
        return _error(413, str(error))
    except BusyError:
        return _error(503, "too many images wait; try again later", {"Retry-After": "1"})
    if all("error" in each for each in predictions):
        return _error(400, "; ".join(f"image {i}: {each['error']}" if is_list else each["error"]
                                     for i, each in enumerate(predictions[:20])))  # fmt: skip
    return JSONResponse({"predictions": predictions, **service.version, "costs_digest": policy.costs_digest})


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _images(request: Request, limits: Limits) -> tuple[list[Any], bool]:
    """The images of a request, and whether they were sent as a list."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _files(request, limits), True
    is_json = kind == "application/json"
    if not (is_json or kind.startswith("image/") or kind in ("application/octet-stream", "application/dicom")):
        raise UdcError(f"content type {kind[:100] or 'missing'}: {FORMS}")
    body = await read_body(request, limits.json_mebibytes if is_json else limits.mebibytes)
    return images_in_json(body, limits.images) if is_json else ([body], False)


async def _files(request: Request, limits: Limits) -> list[bytes]:
    """The files of a form."""
    announced = request.headers.get("content-length", "")
    if not announced.isdigit():
        raise UdcError("a form needs the header Content-Length")
    if int(announced) > limits.mebibytes * MEBI:
        raise TooLargeError(f"the body has more than {limits.mebibytes} MiB")
    try:
        async with request.form(max_files=limits.images, max_fields=limits.images) as form:
            files = [await each.read() for _, each in form.multi_items() if isinstance(each, UploadFile)]
    except (MultiPartException, HTTPException) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", None)
        raise UdcError(f"the form cannot be read: {reason}") from None
    check_count(len(files), limits.images)
    return files
