"""Runs the server's processes."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.inference.stored_model import open_stored

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

# Of a process, at most; uvicorn refuses all requests above it, also those of /health. `Limits` refuses images before.
_CONNECTIONS = 4096
logger = logging.getLogger(__name__)


def serve(root: Path, host: str, port: int, workers: int) -> None:
    """Serve until SIGTERM or Ctrl-C, which lets the processes finish what they have accepted.

    A process that dies is started again.

    Raises
    ------
    UdcError
        The extra ``[serve]`` is not installed, the model cannot be used, or the port is not free.
    """
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import swagger_ui_bundle  # noqa: F401
        import uvicorn
        from uvicorn.supervisors import Multiprocess
    except ImportError as error:
        raise UdcError(f"{error.name} is not installed; pip install 'udc-model[serve]'") from None
    open_stored(Workspace(root))  # what cannot be used is said at once, and once
    with tempfile.TemporaryDirectory(prefix="udc-serve-") as counts:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts  # the processes count there, together
        config = uvicorn.Config(partial(_create_app, root.absolute()), host, port, factory=True, workers=workers,
                                access_log=False, log_level="warning", timeout_worker_healthcheck=60,
                                limit_concurrency=_CONNECTIONS)  # fmt: skip
        listener = bound_socket(config)
        logger.info("http://%s:%d/docs describes the requests; Ctrl-C ends", host, listener.getsockname()[1])
        Multiprocess(config, sockets=[listener]).run()


def bound_socket(config: uvicorn.Config, *, listens: bool = False) -> socket.socket:
    """The socket of a server, whose connections send the parts of an answer at once; with ``listens`` it listens.

    Raises
    ------
    UdcError
        The port is not free.
    """
    try:
        bound = config.bind_socket()
        if listens:
            bound.listen()
    except (SystemExit, OSError):
        raise UdcError(f"--port {config.port}: cannot be used on {config.host}; name another one") from None
    # Connections inherit it. asyncio sets it only if the socket names TCP, and uvicorn's does not: the second part of
    # an answer would wait for the acknowledgement of the first, 40 ms.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _create_app(root: Path) -> FastAPI:
    """The application; called in each process, so that the one that starts them needs no torch."""
    from udc_model.inference.server.app import Limits, create_app

    return create_app(root, Limits())
