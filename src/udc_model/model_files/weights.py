"""Reads ``model.safetensors``: its header, compared with the network, and then its bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, TypeAdapter, ValidationError

from udc_model.errors import UdcError
from udc_model.files import open_regular, parse_json
from udc_model.model_files.shapes import Shape
from udc_model.model_files.timm_networks import COUNTER
from udc_model.records import Record

_MAX_HEADER = 4 * 2**20  # bytes; ConvNeXt-xlarge needs 40,000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = ("F64", "F32", "F16", "BF16")

_Size = Annotated[int, Field(ge=0, lt=2**53)]


class Tensor(Record):
    """Type, shape and position of a tensor in the file."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: Annotated[list[_Size], Field(max_length=8)]
    data_offsets: Annotated[list[_Size], Field(min_length=2, max_length=2)]


_TENSORS = TypeAdapter(dict[str, Tensor])


def read_weights(
    path: Path, expected: Iterable[tuple[str, Shape]], advice: str, described_by: str = "config.json"
) -> bytes:
    """The contents of a safetensors file with exactly the expected tensors.

    Nothing but the header is read before it is found to match.

    Parameters
    ----------
    expected : name and shape of each tensor.
    advice : what to do if the file is missing, damaged or does not match; the end of the message.
    described_by : the file that describes the tensors; for messages.

    Raises
    ------
    UdcError
        One line with the first tensor that does not match.
    """
    with open_regular(path, advice) as (handle, size):
        _compare(read_header(handle, size, str(path), advice), expected, path, advice, described_by)
        check_fits_memory(size, path)
        handle.seek(0)
        return handle.read(size)


def read_header(handle: BinaryIO, size: int, origin: str, advice: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of ``size`` bytes, by name; :class:`UdcError` if its header is damaged."""
    length = int.from_bytes(handle.read(8), "little")
    if not 2 <= length <= min(size - 8, _MAX_HEADER):
        raise UdcError(f"{origin}: is not a safetensors file: {size:,} bytes with a header of {length:,} (at most "
                       f"{_MAX_HEADER:,}); {advice}")  # fmt: skip
    header = parse_json(handle.read(length), origin, advice)
    header.pop("__metadata__", None)
    try:
        tensors = _TENSORS.validate_python(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))[:200]
        raise UdcError(f"{origin}: its header is damaged: {name}: {first['msg']}; {advice}") from None
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, end = tensor.data_offsets
        if start != position or end - start != math.prod(tensor.shape) * _BYTES[tensor.dtype]:
            raise UdcError(f"{origin}: its header is damaged: {name[:200]!r} has the shape {tensor.shape} and "
                           f"the bytes {start} to {end}; {advice}")  # fmt: skip
        position = end
    if position != size - 8 - length:
        raise UdcError(f"{origin}: is incomplete: its header describes {position:,} bytes, but there are "
                       f"{size - 8 - length:,}; {advice}")  # fmt: skip
    return tensors


def _compare(
    tensors: dict[str, Tensor], expected: Iterable[tuple[str, Shape]], path: Path, advice: str, described_by: str
) -> None:
    unexpected = dict(tensors)
    for name, shape in expected:
        tensor = unexpected.pop(name, None)
        if tensor is None:
            raise UdcError(f"{path}: has no weight {name} {shape}, which {described_by} describes; {advice}")
        if tuple(tensor.shape) != shape:
            raise UdcError(f"{path}: {name} has the shape {tuple(tensor.shape)}, but {described_by} describes {shape}; "
                           f"{advice}")  # fmt: skip
        if tensor.dtype not in (("I64",) if name.endswith(COUNTER) else _FLOATS):
            raise UdcError(f"{path}: {name} has the type {tensor.dtype}; allowed: {', '.join(_FLOATS)} (counters: "
                           f"I64); {advice}")  # fmt: skip
    if unexpected:
        name = next(iter(unexpected))
        raise UdcError(f"{path}: has a weight {name[:200]!r}, which {described_by} does not describe; {advice}")


def check_fits_memory(size: int, path: Path) -> None:
    """:class:`UdcError` if a file and the tensors that are made from it need more memory than this machine has."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * size > memory:
        raise UdcError(f"{path}: {size / 2**30:,.1f} GiB of weights need twice as much memory while they are loaded, "
                       f"but this machine has {memory / 2**30:,.1f} GiB")  # fmt: skip
