"""Protection from other web pages: a page in a user's browser must not reach this server.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class OriginFilter:
    """Middleware that refuses requests of foreign web pages.

    A browser sends the ``Origin`` of the page with each request that could change something, and viewers outside a
    browser send none. A page whose name resolves to this machine has that name as its ``Host``.

    Args:
        app: the application.
        origins: addresses of pages that may send requests, such as ``http://viewer.hospital:3000``.
        hosts: names of this server; empty for any.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = (), hosts: Collection[str] = ()) -> None:
        self.app = app
        self.origins = frozenset(origin.rstrip("/") for origin in origins)
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] == "http" and (sentence := self._refusal(Headers(scope=scope))):
            await JSONResponse({"detail": sentence}, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        try:
            return self._refused_address(headers)
        except ValueError:
            return "The address of the request cannot be read."

    def _refused_address(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return "This server is addressed by another name than its own; use the address that it prints at its start."
        is_embedded = headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (
            headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        )
        if origin in self.origins or (origin is None and not is_embedded) or urlsplit(origin or "").netloc == host:
            return ""
        return "Web pages of other addresses get no answer; name theirs in MONAI_LABEL_CORS_ORIGINS (docs/label.md)."
