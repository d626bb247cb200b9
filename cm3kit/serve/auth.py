"""Access control: requests need the token, the server's own `Host` and its own `Origin`.

A page of another site can reach 127.0.0.1 through the visitor's browser, by a host name that resolves to it (DNS
rebinding). It does not have the token, and its `Host` and `Origin` differ.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 48 * 2**20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Auth:
    """Middleware: 403 for another host or origin, 401 without the token, 413 for large bodies; security headers."""

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str]) -> None:
        self._app, self._token, self._hosts = app, token, frozenset(hosts)
        self.cookie = f"cm3kit-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host", "").lower() not in self._hosts:
            return refused(403, "forbidden", "the Host is not the server's; open the URL that it printed")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self._hosts}:
            return refused(403, "forbidden", "requests from other origins are refused")
        try:
            too_large = int(headers.get("content-length") or 0) > MAX_BODY
        except ValueError:
            too_large = True
        if too_large or "chunked" in headers.get("transfer-encoding", "").lower():
            return refused(413, "page_too_large", f"send at most {MAX_BODY >> 20} MiB, with Content-Length")
        if self._known(headers):
            return self._entry(scope, headers)
        return self._first(scope) or refused(
            401, "forbidden", "the token is missing or wrong; open the URL that the server printed"
        )

    def _known(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._equal(bearer.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return cookie is not None and self._equal(cookie.value)

    def _entry(self, scope: Scope, headers: Headers) -> Response | None:
        """Redirect a client that has the cookie and opens the printed URL again to the URL without the token."""
        return self._first(scope) if scope["method"] == "GET" and b"token=" in scope["query_string"] else None

    def _first(self, scope: Scope) -> Response | None:
        """Set the token of the first URL as a cookie, and redirect to the URL without it."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = query.pop("token", [""])[0]
        if scope["method"] != "GET" or scope["path"] != "/" or not self._equal(given):
            return None
        rest = urlencode(query, doseq=True)
        answer = RedirectResponse(f"/?{rest}" if rest else "/", status_code=303)
        answer.set_cookie(self.cookie, self._token, httponly=True, samesite="strict", path="/")
        return answer

    def _equal(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token.encode())


def refused(status: int, code: str, message: str) -> JSONResponse:
    """An error in the format of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status
    )


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
