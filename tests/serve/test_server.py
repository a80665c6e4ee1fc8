"""`crosspair serve` on real sockets: slow clients, garbage, signals."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

pytest.importorskip("fastapi", reason="the extra `search` is not installed")
import httpx
import uvicorn

from crosspair.cli import main
from crosspair.serve import server
from crosspair.serve.service import create_app


class Service:
    """The service on a thread, at a port of its own."""

    def __init__(self, gallery) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = self.socket.getsockname()
        self.server = uvicorn.Server(server.configuration(create_app(gallery)))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.address[1]}{path}"

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def open_connections(self) -> int:
        return len(self.server.server_state.connections)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def service(written_gallery, monkeypatch) -> Iterator[Service]:
    """With less patience than in use, which would make the tests slow."""
    monkeypatch.setattr(server.PatientProtocol, "header_seconds", 0.4)
    monkeypatch.setattr(server.PatientProtocol, "stall_seconds", 0.4)
    running = Service(written_gallery())
    yield running
    running.stop()


def comes_true(condition: Callable[[], bool], seconds: float = 8) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def drip(connection: socket.socket, data: bytes, seconds: float) -> bool:
    """Send a little again and again; whether the other side has cut the connection."""
    until = time.monotonic() + seconds
    connection.settimeout(0.05)
    while time.monotonic() < until:
        try:
            connection.sendall(data)
        except TimeoutError:
            pass
        except ConnectionError:
            return True
        time.sleep(0.02)
    return False


def test_garbage_and_cut_connections_leave_it_answering(service):
    draw = random.Random(0)
    for number in range(500):
        with closing(service.connect()) as connection:
            heads = [b"", b"GET /search?q=dog HTTP/1.1\r\nHost: localhost\r\n", b"POST /search HTTP/1.1\r\n"]
            ends = [b"", b"Host: localhost\r\nContent-Length: 9999\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"]
            connection.sendall(draw.choice(heads) + draw.choice(ends) + draw.randbytes(draw.randrange(400)))
            if number % 3 == 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # cut, not closed
    assert httpx.get(service.url("/search?q=red")).status_code == 200
    assert comes_true(lambda: service.open_connections() == 0)


def test_who_sends_a_request_too_slowly_is_cut_off(service):
    silent = [service.connect() for _ in range(40)]
    half = [service.connect() for _ in range(40)]
    for connection in half:
        connection.sendall(b"GET / HTTP/1.1\r\nHo")
    assert httpx.get(service.url("/search?q=red")).status_code == 200
    with closing(service.connect()) as dripping:
        assert drip(dripping, b"x", 5)
    assert comes_true(lambda: service.open_connections() == 0)
    for connection in silent + half:
        connection.close()


def test_who_goes_on_sending_after_the_answer_is_cut_off(service):
    with closing(service.connect()) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n")
        assert b" 404 " in connection.recv(65536)
        assert drip(connection, b"x", 5)


def test_who_does_not_read_answers_is_cut_off(service):
    with closing(service.connect()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert drip(connection, b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100, 20)
    assert httpx.get(service.url("/healthz")).status_code == 200


def test_a_connection_is_used_again_and_again(service):
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(service.url("/healthz")).status_code == 200
        assert service.open_connections() == 1
        time.sleep(0.6)  # longer than a head may take
        assert client.get(service.url("/healthz")).status_code == 200
        assert service.open_connections() == 1


def test_a_picture_of_unannounced_length_can_be_sent(service, images):
    def pieces() -> Iterator[bytes]:
        data = (images / "blue.png").read_bytes()
        yield data[:20]
        yield data[20:]

    response = httpx.post(service.url("/search?top=1"), content=pieces())
    assert response.json()["results"][0]["name"] == "blue.png"


def test_the_command_says_where_it_is_makes_up_a_token_and_stops_at_ctrl_c(written_gallery):
    environment = {key: value for key, value in os.environ.items() if key != "CROSSPAIR_TOKEN"} | {
        "OMP_NUM_THREADS": "1"
    }
    command = [
        sys.executable,
        "-m",
        "crosspair",
        "serve",
        str(written_gallery().path),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def heed_ctrl_c() -> None:  # a test that runs in the background of a shell has inherited that it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, env=environment, preexec_fn=heed_ctrl_c, **pipes) as process:
        said = process.stdout.readline()
        found = re.fullmatch(r"8 pictures at http://\S+:(\d+)/#token=(\S+) \(Ctrl-C stops it\)\n", said)
        assert found, (said, process.stderr.read())
        address = f"http://127.0.0.1:{found[1]}"
        with httpx.Client(base_url=address) as idle, closing(socket.create_connection(("127.0.0.1", int(found[1])))):
            assert idle.get("/images").status_code == 401
            assert idle.get("/images", headers={"Authorization": f"Bearer {found[2]}"}).status_code == 200
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (130, "crosspair: stopped\n")


class TestRefusals:
    @pytest.fixture
    def refused(self, written_gallery, capsys, monkeypatch) -> Callable[..., str]:
        monkeypatch.delenv("CROSSPAIR_TOKEN", raising=False)
        gallery = written_gallery()

        def run(*arguments: str) -> str:
            assert main(["serve", str(gallery.path), *arguments]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            return error

        return run

    def test_a_port_in_use_is_a_sentence(self, refused):
        with socket.create_server(("127.0.0.1", 0)) as other:
            assert "Address already in use" in refused("--port", str(other.getsockname()[1]))

    def test_what_is_no_port_host_or_token_is_a_sentence(self, refused, monkeypatch):
        assert "found port 70000" in refused("--port", "70000")
        assert "there is no host" in refused("--host", "no.such.host.invalid")
        assert "16 characters or more" in refused("--token", "short")
        monkeypatch.setenv("CROSSPAIR_TOKEN", "short")
        assert "16 characters or more" in refused()

    def test_what_is_no_gallery_is_a_sentence(self, tmp_path, capsys):
        assert main(["serve", str(tmp_path)]) == 2
        assert "is not a GALLERY directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("", False)]
)
def test_only_the_loopback_interface_goes_without_a_token(host, alone):
    assert server._is_loopback(host) is alone
