"""What protects the page from other sites: the checks of each request, and the headers of each answer.

A page elsewhere can send requests to this machine, and a name that it controls can be made to point here (DNS
rebinding). Therefore all addresses begin with a secret that only the terminal shows, the header Host must name this
machine, and a request that another site has sent is refused.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing is loaded from elsewhere, and no other page shows this one in a frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_ENCODED = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


class Guard:
    """Middleware that refuses requests of other sites, and adds `_HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_ENCODED]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = request_problem(scope["method"], headers)
        app = self._app if problem is None else JSONResponse({"error": problem}, 403)
        await app(scope, receive, send_with_headers)


def request_problem(method: str, headers: dict[str, str]) -> str | None:
    """Why a request is refused; None if it is not.

    Parameters
    ----------
    headers : by lower-case name.
    """
    host = headers.get("host", "")
    if not _is_this_machine(host):
        return "the address must name this machine, as 127.0.0.1, localhost or its IP address"
    is_foreign = (urlsplit(headers.get("origin", f"//{host}")).netloc != host
                  or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"))  # fmt: skip
    return "the request comes from another site" if is_foreign and method != "GET" else None


def _is_this_machine(host: str) -> bool:
    """Whether a header Host has an IP address or the name of this machine; a rebound name is neither."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets without an address
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", socket.gethostname().lower())
    return True
