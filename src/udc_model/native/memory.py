"""How the C library keeps memory."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the system; does nothing with other C libraries.

    Activations exceed malloc's limit for mapped blocks, so each batch would map, clear and unmap them again.
    Meant for a process that trains or predicts and does nothing else.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**28)):
        mallopt(option, value)
