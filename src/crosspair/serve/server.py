"""The server of `crosspair serve`: uvicorn with timeouts for slow clients, by default for this machine alone."""

import asyncio
import ipaddress
import logging
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from crosspair.devices import find_device
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.gallery.gallery import Gallery
from crosspair.serve.access import LOOPBACK_NAMES, checked_token
from crosspair.serve.service import create_app

CONNECTIONS = 500
HEADER_SECONDS = 10.0  # for a client to send a request's head
STALL_SECONDS = 30.0  # that a client may leave an answer unread
STOP_SECONDS = 5  # for answers under way when the service is stopped
ENVIRONMENT_TOKEN = "CROSSPAIR_TOKEN"


def serve(directory: Path, host: str, port: int, token: str | None, device: str = "auto") -> None:
    """Answer until a signal comes. Raises UserError when the gallery, the address or the token is no good."""
    find_device(device)  # before the gallery is opened
    loopback = _is_loopback(host)
    token = token or os.environ.get(ENVIRONMENT_TOKEN)
    generated = token is None and not loopback
    token = secrets.token_urlsafe(24) if generated else token
    if token is not None:
        checked_token(token)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every broken form
    gallery = Gallery.open(directory, device=device)
    listening = _listen(host, port)
    with listening:
        hosts = LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host.lower()}
        _compile(gallery.model())
        app = create_app(gallery, token=token, hosts=hosts)
        address = _address(host, listening.getsockname()[1])
        message = f"{len(gallery):,} pictures at {address}{f'#token={token}' if generated else ''}"
        _Server(configuration(app), f"{message} (Ctrl-C stops it)").run([listening])


def configuration(app: ASGIApp) -> uvicorn.Config:
    """uvicorn's settings for the service."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


class _Server(uvicorn.Server):
    """A uvicorn server that prints its address when it is ready."""

    def __init__(self, config: uvicorn.Config, message: str) -> None:
        super().__init__(config)
        self._message = message

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._message, flush=True)


class PatientProtocol(H11Protocol):
    """Hangs up on a client that takes too long to send a request's head, or to read an answer.

    uvicorn limits neither, so that a few thousand idle connections would shut everybody else out. What comes after the
    head is limited where it is read (uploads.py).
    """

    header_seconds = HEADER_SECONDS
    stall_seconds = STALL_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = _Deadline(self)
        self._reading = _Deadline(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # to hear of everything that is left unread
        self._head.start(self.header_seconds)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        theirs, ours = self.conn.their_state, self.conn.our_state
        # The second: a body that goes on after its answer.
        if theirs is h11.IDLE or (theirs is h11.SEND_BODY and ours is h11.DONE):
            self._head.start(self.header_seconds)
        else:
            self._head.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.start(self.stall_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.stop()
        self._reading.stop()
        super().connection_lost(exc)


class _Deadline:
    """Cuts a connection unless stopped in time; starting it again while it runs changes nothing."""

    def __init__(self, protocol: H11Protocol) -> None:
        self._protocol = protocol
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._protocol.loop.call_later(seconds, self._protocol.transport.abort)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _compile(model: DualEncoder) -> None:
    """Let a model on the CPU encode through OpenVINO where that is installed and knows its encoders, in float32."""
    if model.device.type != "cpu":
        return
    with suppress(UserError):
        model.use_backend("openvino")


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"there is no host {host}; name an address of this machine with --host") from None
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UserError(f"found port {port}; expected 1 to 65535, or 0 for any that is free")
    family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
    try:
        return socket.create_server(address, family=family, backlog=CONNECTIONS)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"can't listen at {host}:{port} ({reason}); name another with --port, or --port 0 for any that is free"
        ) from None


def _address(host: str, port: int) -> str:
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
