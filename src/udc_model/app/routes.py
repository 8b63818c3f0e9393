"""The addresses of ``udc app``."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

from pydantic import AfterValidator, Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from udc_model.app.archives import MOST_FILES, images_in_archive
from udc_model.app.decisions import Decider, NamedOutputs
from udc_model.app.explanations import UploadExplainer
from udc_model.app.guard import Guard
from udc_model.app.review import Answer, Review
from udc_model.decisions.session_costs import SessionCosts
from udc_model.errors import UdcError
from udc_model.files import parse_json
from udc_model.inference.inputs import BadInput, ImageInput
from udc_model.inference.server.bodies import MEBI, TooLargeError, read_body
from udc_model.records import Record, validated

_PAGE = Path(__file__).parent / "page"
_ADVICE = "load the page again"
_FRAME = re.compile("[0-9]{1,4}")
MOST_IMAGES = 2 * MOST_FILES  # that the page has at once
_OUTPUTS_SHARE = 0.75  # of the bytes of a request; names are the others
_BYTES_OF_NUMBER = 6  # of the outputs: four in base64, and what separates images

Kind = TypeVar("Kind", bound=Record)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the page may send.

    Parameters
    ----------
    image_mebibytes, archive_mebibytes, json_mebibytes : of an image, a zip archive, and other requests.
    images : that the page decides at once.
    """

    image_mebibytes: int = 64
    archive_mebibytes: int = 1024
    json_mebibytes: int = 32
    images: int = 100


def _are_few(images: list[str]) -> list[str]:
    if len(images) > MOST_IMAGES:
        raise ValueError(f"are of {len(images):,} images; at most {MOST_IMAGES:,} are decided at once")
    return images


Outputs = Annotated[list[Annotated[str, Field(max_length=2**20)]], AfterValidator(_are_few)]


class DecisionRequest(Record):
    """Outputs of images, and the costs under which to decide them."""

    outputs: Outputs
    costs: SessionCosts
    is_brief: bool = False


class TableRequest(Record):
    """Names and outputs of images, and the costs under which to decide them."""

    names: list[Annotated[str, Field(max_length=70_000)]]
    outputs: Outputs
    costs: SessionCosts


class Service:
    """What the page asks for.

    Parameters
    ----------
    decider : the model.
    review : the labels to review.
    explainer : saliency and similar training images.
    project : name of the project, for the page.
    """

    def __init__(
        self, decider: Decider, review: Review, explainer: UploadExplainer, limits: Limits, project: str
    ) -> None:
        self.decider, self.review, self.explainer, self.limits = decider, review, explainer, limits
        self.project = project

    async def page(self, request: Request) -> Response:
        """The page."""
        return FileResponse(_PAGE / "index.html")

    async def state(self, request: Request) -> Response:
        """What does not change: classes, decisions, stored costs, limits."""
        policy = self.decider.policy
        return JSONResponse({
            "project": self.project, "classes": policy.classes, "outcomes": policy.outcomes,
            "actions": list(policy.actions), "costs": policy.outcome_costs.tolist(), "refer": policy.refer,
            "class_costs": policy.class_costs, "action_costs": policy.actions, "guarantee": policy.guarantee,
            "limits": asdict(self.limits) | {"kept": self._most_kept()}, "side": self.decider.preprocessing.stored_size,
        })  # fmt: skip

    def _most_kept(self) -> int:
        """Images that the page has at once: their outputs are one request."""
        bytes_of_image = _BYTES_OF_NUMBER * self.decider.width
        return min(MOST_IMAGES, int(_OUTPUTS_SHARE * self.limits.json_mebibytes * MEBI) // bytes_of_image)

    async def outputs(self, request: Request) -> Response:
        """The outputs of an uploaded image."""
        image = await self._image(request)
        images, bad = await run_in_threadpool(self.decider.outputs_of, image)
        return JSONResponse({"images": [asdict(each) for each in images], "problems": [each.reason for each in bad]})

    async def archive(self, request: Request) -> Response:
        """The outputs of the images in a zip archive, one line of JSON for each batch."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 - without a name; closed when the answer is complete
        try:
            size, largest = 0, self.limits.archive_mebibytes
            async for chunk in request.stream():
                size += len(chunk)
                if size > largest * MEBI:
                    raise TooLargeError(f"the archive has more than {largest:,} MiB")
                await run_in_threadpool(file.write, chunk)
        except BaseException:
            file.close()
            raise
        return StreamingResponse(self._lines(file), media_type="application/x-ndjson")

    def _lines(self, file: IO[bytes]) -> Iterator[str]:
        """The outputs of the images of an archive, and what cannot be used, as lines of JSON."""
        bad: list[BadInput] = []

        def line(images: list[NamedOutputs]) -> str:
            problems = [{"name": each.name, "reason": each.reason} for each in bad]
            bad.clear()
            return json.dumps({"images": [asdict(each) for each in images], "problems": problems}) + "\n"

        with file:
            try:
                for images in self.decider.outputs_of_all(images_in_archive(file), bad.append):
                    yield line(images)
                if bad:
                    yield line([])
            except UdcError as error:
                yield json.dumps({"error": str(error)}) + "\n"

    async def decide(self, request: Request) -> Response:
        """Decisions from outputs and costs."""
        asked = await self._json(request, DecisionRequest)
        return JSONResponse(await run_in_threadpool(self.decider.decide, asked.outputs, asked.costs, asked.is_brief))

    async def table(self, request: Request) -> Response:
        """Decisions as CSV."""
        asked = await self._json(request, TableRequest)
        if len(asked.names) != len(asked.outputs):
            raise UdcError(f"the table has {len(asked.names):,} names and {len(asked.outputs):,} outputs; {_ADVICE}")
        text = await run_in_threadpool(self.decider.table, asked.names, asked.outputs, asked.costs)
        return Response(text, media_type="text/csv; charset=utf-8")

    async def explanation(self, request: Request) -> Response:
        """Why an image is decided as a class."""
        image = await self._image(request)
        name, frame = request.query_params.get("class", ""), request.query_params.get("frame", "1")
        if not _FRAME.fullmatch(frame):
            raise UdcError(f"frame: got {frame[:20]!r}; allowed: a number from 1; {_ADVICE}")
        return JSONResponse(await run_in_threadpool(self.explainer.explain, image, name, int(frame)))

    async def queue(self, request: Request) -> Response:
        """The labels to review."""
        return JSONResponse(await run_in_threadpool(self.review.load))

    async def answer(self, request: Request) -> Response:
        """A correction."""
        answer = await self._json(request, Answer)
        return JSONResponse(await run_in_threadpool(self.review.answer, answer))

    async def undo(self, request: Request) -> Response:
        """Take back the last correction."""
        return JSONResponse(await run_in_threadpool(self.review.undo))

    async def prepared_image(self, request: Request) -> Response:
        """A prepared image."""
        split, row = request.path_params["split"], request.path_params["row"]
        return Response(await run_in_threadpool(self.review.image, split, row), media_type="image/png")

    async def _image(self, request: Request) -> ImageInput:
        body = await read_body(request, self.limits.image_mebibytes)
        return ImageInput(request.query_params.get("name", "image")[:1000], body)

    async def _json(self, request: Request, kind: type[Kind]) -> Kind:
        body = await read_body(request, self.limits.json_mebibytes)
        return validated(parse_json(body, "the request", _ADVICE), kind, "the request", _ADVICE)


def create_app(service: Service, secret: str) -> Starlette:
    """The application; all addresses begin with ``/secret/``."""
    routes: list[tuple[str, Callable[[Request], Any], str]] = [
        ("/", service.page, "GET"),
        ("/api/state", service.state, "GET"),
        ("/api/outputs", service.outputs, "POST"),
        ("/api/archive", service.archive, "POST"),
        ("/api/decisions", service.decide, "POST"),
        ("/api/table", service.table, "POST"),
        ("/api/explanation", service.explanation, "POST"),
        ("/api/review", service.queue, "GET"),
        ("/api/review/answer", service.answer, "POST"),
        ("/api/review/undo", service.undo, "POST"),
        ("/api/images/{split}/{row:int}", service.prepared_image, "GET"),
    ]
    mounted = [*(Route(path, endpoint, methods=[method]) for path, endpoint, method in routes),
               Mount("/page", StaticFiles(directory=_PAGE))]  # fmt: skip
    return Starlette(
        routes=[Mount(f"/{secret}", routes=mounted)],
        middleware=[Middleware(Guard)],
        exception_handlers={UdcError: _refused, TooLargeError: _refused, ClientDisconnect: _closed, Exception: _failed},
    )


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 413 if isinstance(error, TooLargeError) else 400)


async def _closed(request: Request, error: Exception) -> Response:
    """The client ended the connection during its upload, so nobody reads the answer."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("%s", request.url.path.rpartition("/")[2], exc_info=error)
    return JSONResponse({"error": "an error of the program; the terminal has the details"}, 500)
