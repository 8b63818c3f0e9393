"""Finds and loads the compiled library of ``native.c``; without it torch's own operators serve."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from functools import cache

VERSION = 2  # of native.c's exported functions
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
_ARGUMENTS = {
    "udc_depthwise_gradient": [_POINTER, _POINTER, _INT, _LONG, _LONG, _LONG, _LONG, _INT, _INT, _POINTER, _POINTER],
    "udc_bias_gelu": [_POINTER, _POINTER, _INT, _LONG, _LONG, _INT, _POINTER],
    "udc_bias_gelu_backward": [_POINTER, _POINTER, _POINTER, _INT, _LONG, _LONG, _INT, _POINTER, _POINTER],
    "udc_scaled_residual": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _INT, _INT, _LONG, _LONG, _INT,
                            _POINTER],
    "udc_scaled_residual_backward": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _INT, _LONG, _LONG, _INT,
                                     _POINTER, _POINTER, _POINTER],
    "udc_crop_resize": [_POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _INT, _POINTER],
}  # fmt: skip

logger = logging.getLogger(__name__)


@cache
def load_library() -> ctypes.CDLL | None:
    """The library that was compiled when the package was installed, or None, with one line in the log that says why.

    It is the module ``udc_native`` of the environment, not a file beside this one: an experiment that runs in a copy
    of the repository must compute the same bits. ``UDC_KERNELS=off`` switches it off.
    """
    if os.environ.get("UDC_KERNELS", "on").lower() in ("off", "0"):
        logger.info("native kernels are switched off by UDC_KERNELS; torch's own operators are used")
        return None
    found = importlib.util.find_spec("udc_native")
    if found is None or found.origin is None:
        logger.info("no native kernels: there was no C compiler when the package was installed; training is slower")
        return None
    try:
        library = ctypes.CDLL(found.origin)
        version = library.udc_kernels_version()
    except (OSError, AttributeError) as error:
        logger.warning("native kernels cannot be loaded (%s); training is slower", error)
        return None
    if version != VERSION:
        logger.warning("native kernels are of version %d, not %d; install the package again", version, VERSION)
        return None
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library


def call(name: str, *arguments: object) -> None:
    """Call a function of the library, which must be there; MemoryError if it found no memory."""
    if getattr(load_library(), name)(*arguments):
        raise MemoryError(name)
