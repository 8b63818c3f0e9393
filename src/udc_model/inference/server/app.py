"""The routes of ``udc serve``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
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
from udc_model.inference.server.admission import Admission
from udc_model.inference.server.batching import Batcher, BusyError
from udc_model.inference.server.bodies import (
    FORMS,
    MEBI,
    TooLargeError,
    costs_in_json,
    files_in_form,
    images_in_json,
    read_body,
)
from udc_model.inference.serving import image_of
from udc_model.inference.stored_model import open_stored
from udc_model.native.memory import keep_freed_memory

_STORED_POLICIES = 64  # under costs of requests, at most
_STORED_COSTS = 4_000_000  # numbers in the lists of these policies, 32 bytes each
_JSON_MEMORY = 10  # bytes that parsed lists take, for each byte of JSON
Result = TypeVar("Result")
_BRIEF = 4096  # numbers or bytes that take less time than another thread: 0.2 ms
_CLOSED_BY_CLIENT = 499  # as other servers count it; nobody reads the answer
_LATER = {"Retry-After": "1"}
logger = logging.getLogger(__name__)
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
    waiting : images of all requests that are not answered yet; with more, requests are answered with status 503.
    waiting_mebibytes : of the bodies of these requests, those of JSON counted ten times.
    """

    mebibytes: int = 64
    json_mebibytes: int = 16
    images: int = 256
    waiting: int = 1024
    waiting_mebibytes: int = 2048


class Service:
    """A model with its policy, and the threads that decode images and run the network."""

    def __init__(self, root: Path, limits: Limits) -> None:
        keep_freed_memory()
        stored = open_stored(Workspace(root))
        self.limits, self.policy = limits, stored.policy
        self.classifier: TrainedClassifier = stored.load()
        self.preprocessing: Preprocessing = stored.preprocessing
        self.version = {"udc_model": udc_model.__version__, "model_sha256": stored.model.weights_sha256}
        fitting = _STORED_COSTS // self.policy.outcome_costs.size
        self._changed_policy = lru_cache(min(_STORED_POLICIES, max(1, fitting)))(self._policy_under)
        largest = max(limits.mebibytes, _JSON_MEMORY * limits.json_mebibytes)  # a request alone is always accepted
        self.admission = Admission(max(limits.waiting, limits.images), max(limits.waiting_mebibytes, largest) * MEBI)
        self.decoders = ThreadPoolExecutor(torch.get_num_threads(), "decoder")
        self.batcher = Batcher(self.classifier.outputs_of_stored, most_waiting=limits.waiting,
                               on_batch=self._count_batch)  # fmt: skip
        example = np.zeros((1, *(self.preprocessing.stored_size,) * 2, self.preprocessing.channels), np.uint8)
        self.classifier.outputs_of_stored(example)  # the first batch prepares the weights

    def close(self) -> None:
        """Finish what was accepted."""
        self.decoders.shutdown()
        self.batcher.close()

    async def policy_under(self, costs: str | None) -> Policy:
        """The policy under the costs of a request; :class:`UdcError` if they are not allowed."""
        return self.policy if costs is None else await run_in_threadpool(self._changed_policy, costs)

    def _policy_under(self, costs: str) -> Policy:
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
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(*(loop.run_in_executor(self.decoders, _prepared, value, self.preprocessing)
                                          for value in values))  # fmt: skip
        images = [each for each in prepared if not isinstance(each, str)]
        rows: list[dict[str, Any]] = []
        if images:
            computed = self.batcher.submit(np.stack(images))
            metrics.WAITING.set(self.batcher.waiting)
            outputs = await asyncio.wrap_future(computed)
            rows = await _called(outputs.logits.size, decided_rows, outputs, policy)
        metrics.IMAGES.labels("decided").inc(len(images))
        metrics.IMAGES.labels("error").inc(len(values) - len(images))
        decided = iter(rows)
        return [{"error": each} if isinstance(each, str) else next(decided) for each in prepared]


async def _called(size: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a function of ``size`` numbers or bytes; in a thread if it would delay other requests."""
    return function(*arguments) if size <= _BRIEF else await run_in_threadpool(function, *arguments)


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
        response = await _answer_always(service, request)
        metrics.SECONDS.observe(time.perf_counter() - started)
        metrics.REQUESTS.labels(str(response.status_code)).inc()
        return response

    for path in ("/predict", "/invocations"):  # the second is that of MLflow's server
        app.post(path, openapi_extra=_DESCRIPTION, name="predict")(predict)

    def state() -> dict[str, str]:
        status = "busy" if service.admission.is_full else "ready"
        return {"status": status, **service.version, "costs_digest": service.policy.costs_digest}

    @app.get("/health", summary="The process runs")
    async def health() -> Response:
        return JSONResponse(state())

    @app.get("/ready", summary="The model is loaded and the queue is not full")
    async def ready() -> Response:
        return JSONResponse(state(), 503 if service.admission.is_full else 200)

    @app.get("/metrics", summary="Counts for Prometheus")
    async def counts() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")

    return app


async def _answer_always(service: Service, request: Request) -> Response:
    """The answer to a request, which a failure of the server has too; the log has its cause."""
    try:
        return await _answer(service, request)
    except (MemoryError, torch.OutOfMemoryError):
        logger.warning("memory ran out; a request was answered with status 503")
        return _error(503, "the memory of the server ran out; send fewer images, or try again later", _LATER)
    except Exception:
        logger.exception("a request was answered with status 500")
        return _error(500, "internal error; the log of the server has its cause")


async def _answer(service: Service, request: Request) -> Response:
    """The predictions, or one sentence that says what is wrong with the request."""
    admission = service.admission
    try:
        with admission.request() as held:
            policy = await service.policy_under(request.query_params.get("costs"))
            values, is_list = await _images(request, service.limits, partial(admission.add, held))
            admission.add(held, images=len(values) - 1)
            predictions = await service.decide(values, policy)
    except UdcError as error:
        return _error(400, str(error))
    except TooLargeError as error:
        return _error(413, str(error))
    except BusyError:
        return _error(503, "too many images wait; try again later", _LATER)
    except ClientDisconnect:
        return Response(status_code=_CLOSED_BY_CLIENT)
    if all("error" in each for each in predictions):
        return _error(400, "; ".join(f"image {i}: {each['error']}" if is_list else each["error"]
                                     for i, each in enumerate(predictions[:20])))  # fmt: skip
    content = {"predictions": predictions, **service.version, "costs_digest": policy.costs_digest}
    return await _called(len(predictions) * len(policy.classes), JSONResponse, content)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _images(request: Request, limits: Limits, add: Callable[..., None]) -> tuple[list[Any], bool]:
    """The images of a request, and whether they were sent as a list; ``add`` counts the bytes of the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await files_in_form(request, limits.mebibytes, limits.images, lambda count: add(n_bytes=count)), True
    if kind == "application/json":
        body = await read_body(request, limits.json_mebibytes, lambda count: add(n_bytes=_JSON_MEMORY * count))
        return await _called(len(body), images_in_json, body, limits.images)
    if not (kind.startswith("image/") or kind in ("application/octet-stream", "application/dicom")):
        raise UdcError(f"content type {kind[:100] or 'missing'}: {FORMS}")
    return [await read_body(request, limits.mebibytes, lambda count: add(n_bytes=count))], False
