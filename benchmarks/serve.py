"""How fast `crosspair serve` answers, and whether it holds.

    python benchmarks/serve.py GALLERY [--seconds 10] [--clients 1 8 64]
    python benchmarks/serve.py GALLERY --soak 10

Starts the service on GALLERY as a process of its own and asks it from this one over kept connections: sentences, and
the same mixed with uploads of the gallery's own images, one in four. Prints p50 and p99 in milliseconds, requests per
second and the mean size of the service's batches. --soak: 64 clients with the mix for that many minutes, a line every
half minute with the errors and the service's resident memory; its exit code is 1 after any error, or when the memory at
the end is more than 5 % above what it was after a quarter of the time.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np

from crosspair.gallery.gallery import Gallery

WORDS = ["a", "two", "man", "dog", "children", "running", "playing", "red", "black", "water", "snow", "beach", "ball"]
SOAK_CLIENTS = 64
UPLOAD_SHARE = 0.25
GROWTH = 1.05


class Load:
    """Requests to send, and what became of them."""

    def __init__(self, port: int, images: list[bytes], uploads: float) -> None:
        self.port = port
        self.images = images
        self.uploads = uploads
        self.milliseconds: list[float] = []
        self.errors: list[str] = []

    async def client(self, seed: int, until: float) -> None:
        """One client: the next request when the answer is there."""
        draw = random.Random(seed)
        connection = None
        while time.monotonic() < until:
            start = time.perf_counter()
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", self.port)
                status, body = await asyncio.wait_for(ask(*connection, self.request(draw)), 30)
                if status != 200 or not json.loads(body)["results"]:
                    self.errors.append(f"{status} {body[:100]!r}")
            except (OSError, ValueError, EOFError, TimeoutError) as error:
                self.errors.append(repr(error))
                connection = None
            self.milliseconds.append(1000 * (time.perf_counter() - start))
        if connection:
            connection[1].close()

    def request(self, draw: random.Random) -> bytes:
        if draw.random() < self.uploads:
            body = draw.choice(self.images)
            return b"POST /search?top=40 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
                len(body),
                body,
            )
        sentence = quote(" ".join(draw.choices(WORDS, k=draw.randint(2, 9))))
        return f"GET /search?q={sentence}&top=40 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    async def run(self, clients: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self.client(seed, until) for seed in range(clients)))


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Status and body of one answer on a kept connection."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


def metric(port: int, name: str) -> float:
    async def read() -> bytes:
        connection = await asyncio.open_connection("127.0.0.1", port)
        _, body = await ask(*connection, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection[1].close()
        return body

    return float(re.search(rf"^{name} (\S+)$", asyncio.run(read()).decode(), re.MULTILINE)[1])


def batch_totals(port: int) -> np.ndarray:
    """Queries answered and the batches they came in."""
    return np.array([metric(port, "crosspair_batch_size_sum"), metric(port, "crosspair_batch_size_count")])


def speed(port: int, images: list[bytes], clients: list[int], seconds: float) -> None:
    for (name, uploads), count in itertools.product((("sentences", 0.0), ("1 in 4 uploads", UPLOAD_SHARE)), clients):
        before = batch_totals(port)
        load = Load(port, images, uploads)
        asyncio.run(load.run(count, seconds))
        asked, batches = batch_totals(port) - before
        p50, p99 = np.percentile(load.milliseconds, [50, 99])
        print(
            f"{name:<15} {count:>3} clients: p50 {p50:7.1f} ms, p99 {p99:7.1f} ms, "
            f"{len(load.milliseconds) / seconds:7.1f} requests/s, batches of {asked / batches:4.1f}, "
            f"{len(load.errors)} errors {load.errors[:1] or ''}",
            flush=True,
        )


def soak(port: int, images: list[bytes], minutes: float) -> bool:
    """Whether it held."""
    begun, requests, errors, memory = time.monotonic(), 0, [], {}
    step = min(30.0, 60 * minutes / 8)
    while (elapsed := time.monotonic() - begun) < 60 * minutes:
        load = Load(port, images, UPLOAD_SHARE)
        asyncio.run(load.run(SOAK_CLIENTS, step))
        requests += len(load.milliseconds)
        errors += load.errors
        memory[elapsed + step] = metric(port, "process_resident_memory_bytes") / 2**20
        print(f"{elapsed + step:6.0f} s: {requests:,} requests, {len(errors)} errors, {memory[elapsed + step]:.0f} MB")
    early = max(value for at, value in memory.items() if at <= max(15 * minutes, min(memory)))
    last = list(memory.values())[-1]
    print(f"{len(errors)} errors {errors[:3] or ''}, memory {last / early - 1:+.1%} since a quarter of the time")
    return not errors and last <= GROWTH * early


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    options = parser.parse_args()
    gallery = Gallery.open(options.gallery)
    images = [gallery.image(row) for row in range(0, len(gallery), max(1, len(gallery) // 50))]
    command = [sys.executable, "-m", "crosspair", "serve", str(options.gallery), "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "CROSSPAIR_TOKEN"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as service:
        try:
            said = service.stdout.readline()
            print(said.strip())
            port = int(re.search(r":(\d+)/", said)[1])
            asyncio.run(Load(port, images, UPLOAD_SHARE).run(8, 2))  # warm
            if options.soak:
                return 0 if soak(port, images, options.soak) else 1
            speed(port, images, options.clients, options.seconds)
        finally:
            service.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
