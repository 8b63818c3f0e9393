"""Runs ``udc app``: one process, on this machine unless it is asked for more."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.inference.server.run import bound_socket
from udc_model.inference.stored_model import open_stored
from udc_model.tracking.provenance import git

if TYPE_CHECKING:
    from starlette.applications import Starlette

_CONNECTIONS = 64  # at most; each may send an image of 64 MiB
logger = logging.getLogger(__name__)


def run_app(root: Path, host: str, port: int) -> None:
    """Serve the page until Ctrl-C; its address is printed.

    Raises
    ------
    UdcError
        The extra ``[app]`` is not installed, the model cannot be used, or the port is not free.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UdcError(f"{error.name} is not installed; pip install 'udc-model[app]'") from None
    workspace = Workspace(root)
    open_stored(workspace)  # before PyTorch is imported
    secret = secrets.token_urlsafe(16)
    config = uvicorn.Config(build(workspace, secret), host, port, access_log=False, log_level="warning",
                            server_header=False, limit_concurrency=_CONNECTIONS)  # fmt: skip
    listener = bound_socket(config, listens=True)  # the address that is printed answers
    if not _is_local(host):
        logger.warning("--host %s: other machines reach the page; whoever has its address decides images, sees those "
                       "of the data set, and writes corrections", host)  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"http://{shown}:{listener.getsockname()[1]}/{secret}/\n")
    sys.stdout.flush()
    logger.info("open the address above in a browser; Ctrl-C ends")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def build(workspace: Workspace, secret: str) -> Starlette:
    """The application for a workspace; ``secret`` is the first part of its addresses."""
    from udc_model.app.decisions import Decider
    from udc_model.app.explanations import UploadExplainer
    from udc_model.app.review import Review
    from udc_model.app.routes import Limits, Service, create_app

    decider = Decider(workspace)
    review = Review(workspace, decider.policy.classes, git("config", "user.name"))
    project = workspace.root.resolve().name
    return create_app(Service(decider, review, UploadExplainer(workspace, decider), Limits(), project), secret)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
