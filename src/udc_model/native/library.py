"""Finds and loads the compiled library of ``native.c``. Without it, torch's and numpy's operators are used."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from functools import cache

VERSION = 2  # of the functions that native.c exports
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
    "udc_crop_resize_grey": [_POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _INT, _POINTER],
    "udc_scales_images": [],
    "udc_scale_columns": [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _LONG, _LONG, _POINTER],
    "udc_scale_rows": [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _POINTER],
    "udc_score_areas": [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER],
    "udc_score_curves": [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _POINTER,
                         _POINTER],
}  # fmt: skip

logger = logging.getLogger(__name__)


@cache
def load_library() -> ctypes.CDLL | None:
    """Load the library that was compiled at installation; return None and log the reason if it cannot be used.

    The library is the module ``udc_native`` of the environment, not a file beside this one, so that an experiment in
    a copy of the repository computes the same bits. The environment variable ``UDC_KERNELS=off`` disables it.
    """
    if os.environ.get("UDC_KERNELS", "on").lower() in ("off", "0"):
        logger.info("native kernels are disabled by UDC_KERNELS; torch's operators are used")
        return None
    spec = importlib.util.find_spec("udc_native")
    if spec is None or spec.origin is None:
        logger.info("no native kernels: there was no C compiler when the package was installed; training is slower")
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        version = library.udc_kernels_version()
    except (OSError, AttributeError) as error:
        logger.warning("native kernels cannot be loaded (%s); training is slower", error)
        return None
    if version != VERSION or not all(hasattr(library, name) for name in _ARGUMENTS):
        logger.warning("native kernels are of another version; install the package again, training is slower")
        return None
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library


def call(name: str, *arguments: object) -> None:
    """Call a function of the library, which must be available.

    Raises
    ------
    MemoryError
        The function could not allocate memory.
    """
    if getattr(load_library(), name)(*arguments):
        raise MemoryError(name)
