"""What a request has: images, as a file, a form with files, or JSON in one of several forms, and costs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from udc_model.decisions.session_costs import SessionCosts
from udc_model.errors import UdcError
from udc_model.records import validated

if TYPE_CHECKING:
    from starlette.requests import Request

MEBI = 2**20
_LISTS = ("images", "inputs", "instances", "dataframe_records")
FORMS = (
    "send an image file with its content type, a form with files, or JSON: "
    '{"image": BASE64}, {"images": [BASE64, …]}, or what MLflow\'s server takes'
)
_COSTS_EXAMPLE = '{"cells": [{"true": CLASS, "decided": CLASS, "cost": 20}], "refer": 0.5}'


class TooLargeError(Exception):
    """A body is larger than allowed."""


async def chunks(
    request: Request, mebibytes: int, on_bytes: Callable[[int], None] = lambda count: None
) -> AsyncGenerator[bytes, None]:
    """Yield the parts of the body of a request, which is not read further than the limit.

    Parameters
    ----------
    mebibytes : that the body may have.
    on_bytes : is called with the number of bytes of each part, and may refuse it by an error.

    Raises
    ------
    TooLargeError
        It has more than ``mebibytes`` MiB.
    ClientDisconnect
        The client ended the connection before the end of the body.
    """
    size = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size > mebibytes * MEBI:
                raise TooLargeError(f"the body has more than {mebibytes} MiB")
            on_bytes(len(chunk))
            yield chunk


async def read_body(request: Request, mebibytes: int, on_bytes: Callable[[int], None] = lambda count: None) -> bytes:
    """The body of a request; parameters and errors of `chunks`."""
    body = bytearray()
    async with aclosing(chunks(request, mebibytes, on_bytes)) as parts:
        async for chunk in parts:
            body += chunk
    return bytes(body)


async def files_in_form(
    request: Request, mebibytes: int, most_images: int, on_bytes: Callable[[int], None] = lambda count: None
) -> list[bytes]:
    """The files of a form; parameters and errors of `chunks`.

    Raises
    ------
    UdcError
        The form is damaged, or has no or too many files.
    """
    try:
        async with aclosing(chunks(request, mebibytes, on_bytes)) as parts:
            parser = MultiPartParser(request.headers, parts, max_files=most_images, max_fields=most_images)
            form = await parser.parse()
    except MultiPartException as error:
        raise UdcError(f"the form cannot be read: {error.message}") from None
    try:
        files = [await each.read() for _, each in form.multi_items() if isinstance(each, UploadFile)]
    finally:
        await form.close()
    check_count(len(files), most_images)
    return files


def images_in_json(body: bytes, most_images: int) -> tuple[list[Any], bool]:
    """The images in a JSON object, each base64 text or nested lists of pixels.

    Parameters
    ----------
    body : ``{"image": …}``, ``{"images": […]}``, or the forms of MLflow's server: ``inputs``, ``instances``,
        ``dataframe_records`` and ``dataframe_split``.
    most_images : images that a request may have.

    Returns
    -------
    The values, which are not checked, and whether they were a list.

    Raises
    ------
    UdcError
        The body is none of these forms, or has no or too many images.
    """
    values = _parsed(body, "the body")
    if not isinstance(values, dict):
        raise UdcError(f"the JSON must be an object; {FORMS}")
    if "image" in values:
        return [values["image"]], False
    images = _columns(values["dataframe_split"]) if "dataframe_split" in values else next(
        (values[name] for name in _LISTS if name in values), None
    )  # fmt: skip
    if images is None:
        raise UdcError(f"the JSON has no images; {FORMS}")
    if not isinstance(images, list):
        raise UdcError(f"the images must be a list; {FORMS}")
    check_count(len(images), most_images)
    return [each["image"] if isinstance(each, dict) and "image" in each else each for each in images], True


def costs_in_json(text: str) -> SessionCosts:
    """The costs that a request has in its address: ``{"cells": […], "refer": …}``, see `SessionCosts`.

    Raises
    ------
    UdcError
        The text is no JSON of this form.
    """
    advice = f'send costs={_COSTS_EXAMPLE}, where "refer" may be left out'
    return validated(_parsed(text, "costs"), SessionCosts, "costs", advice)


def _parsed(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also text that is not UTF-8 and very long numbers
        reason = "lists are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UdcError(f"{what} is not valid JSON: {reason[:200]}") from None


def _columns(split: Any) -> list[Any] | None:
    """The column ``image`` of a data frame in MLflow's form ``split``; None if there is none."""
    try:
        column = split["columns"].index("image")
        return [row[column] for row in split["data"]]
    except (TypeError, KeyError, ValueError, IndexError, AttributeError):
        return None


def check_count(count: int, most_images: int) -> None:
    """:class:`UdcError` if a request has no images, or too many."""
    if not count:
        raise UdcError("the request has no images")
    if count > most_images:
        raise UdcError(f"the request has {count:,} images; at most {most_images:,} are allowed, send several requests")
