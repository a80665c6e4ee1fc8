"""Access control: security headers on every answer, and checks of token, host and origin before every request.

On the loopback interface the browser of this machine is the danger: any site it shows may send requests here, and by
DNS rebinding may make its own name mean 127.0.0.1. So the host asked for must be this machine's, and requests that
another site's page makes are refused. Where a token is needed, that is enough: such a page does not know it.
"""

import hashlib
import hmac
import json
import re
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crosspair.errors import UserError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
# What the page is made of holds nothing of the gallery; it asks for the token.
PUBLIC = {"/", "/page.js", "/page.css", "/icon.svg", "/docs", "/openapi.json", "/healthz"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TOKEN = re.compile(r"[!-~]{16,}")


def checked_token(token: str) -> str:
    """Raises UserError unless it can stand in a header and takes long to guess."""
    if not _TOKEN.fullmatch(token):
        raise UserError("the token is too short or has spaces or letters beyond ASCII; expected 16 characters or more")
    return token


def image_key(token: str, image_id: str) -> str:
    """HMAC that opens one image in place of the token: a page can't send headers with its images."""
    return hmac.new(token.encode(), image_id.encode(), hashlib.sha256).hexdigest()[:32]


class Access:
    """ASGI middleware. token: needed for everything but PUBLIC. hosts: names it answers to where there is no token."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: frozenset[str]) -> None:
        self.app = app
        self.token = token
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
        else:
            await _answer(send_with_headers, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence for a request that may not be answered."""
        headers = Headers(scope=scope)
        if self.token is not None:
            if scope["path"] in PUBLIC or self._knows_token(scope, headers):
                return None
            return 401, "this gallery needs its token; send the header Authorization: Bearer TOKEN"
        host = re.sub(r":\d*$", "", headers.get("host", "")).lower()
        if host not in self.hosts:
            return 421, "the request names another host than this machine; ask for localhost"
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, "another site's page may not search this gallery"
        return None

    def _knows_token(self, scope: Scope, headers: Headers) -> bool:
        assert self.token is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return _same(given.strip(), self.token)
        place, _, image_id = scope["path"].rpartition("/")
        if place != "/images":
            return False
        keys = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=100).get("key", [])
        return len(keys) == 1 and _same(keys[0], image_key(self.token, image_id))


def _same(given: str, expected: str) -> bool:
    """Constant-time comparison."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


async def _answer(send: Send, status: int, detail: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})
