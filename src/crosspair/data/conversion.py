"""Conversion of images to the bytes that are stored, in worker processes; results come in the order of the records."""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

import PIL
import torch

from crosspair.data.images import (
    ImageError,
    decode_image,
    encode_jpeg,
    jpeg_header,
    read_source,
    resize_shorter_side,
)
from crosspair.data.records import Record
from crosspair.data.scratch import short_checksum
from crosspair.errors import UserError
from crosspair.version import __version__

# At 224 pixels the loss of this quality (42.4 dB) is below that of resizing twice instead of once (41.7 dB).
QUALITY = 92
CHUNK = 8  # images a task
TASKS_WAITING = 4  # for each worker


@dataclass(frozen=True)
class Converted:
    """A converted image, or the reason why it can't be stored."""

    data: bytes
    source_bytes: int
    problem: str | None = None
    checksum: bytes = b""  # of the source's bytes


# Whatever changes the bytes that come out: images of two kinds of converter are not mixed in one data set.
CONVERTER = f"JPEG {QUALITY}, crosspair {__version__}, torch {torch.__version__}, Pillow {PIL.__version__}"


def convert_image(image: Path | bytes, size: int, folder: Path | None = None) -> Converted:
    """Read, check and, where needed, resize and encode one image.

    size: shorter side in pixels, 0 keeps the bytes. An image that is small enough keeps its bytes too when every
    reader shows them alike: a plain upright JPEG or an RGB PNG. folder: of a path below it no link may lead out of it.
    """
    data = b""
    try:
        data = image if isinstance(image, bytes) else read_source(image, folder)
        pixels = decode_image(data)
    except ImageError as error:
        return Converted(b"", len(data), error.reason)
    resized = resize_shorter_side(pixels, size) if size else pixels
    if size and (resized.shape != pixels.shape or not _is_plain(data)):
        return Converted(encode_jpeg(resized, QUALITY), len(data), checksum=short_checksum(data))
    return Converted(data, len(data), checksum=short_checksum(data))


def _is_plain(data: bytes) -> bool:
    header = jpeg_header(data)
    if header is not None:
        return header.upright
    # a PNG of 8 bits in RGB, with no transparent colour, orientation or animation
    is_rgb_png = data.startswith(b"\x89PNG") and data[24:26] == b"\x08\x02"
    return is_rgb_png and not any(chunk in data for chunk in (b"tRNS", b"eXIf", b"acTL"))


def convert_images(
    records: Iterable[Record], size: int, workers: int, folder: Path | None = None
) -> Iterator[tuple[Record, Converted]]:
    """Every record with its image, in the order of the records.

    folder: of a path below it no link may lead out of it. workers: processes. No more than a few chunks a worker are in
    memory at once. Leaving the loop early, by an error or Ctrl-C, ends the processes.
    """
    records = iter(records)
    # fork starts in milliseconds what spawn needs seconds for (torch is imported already), and is safe here because
    # the workers run no threads of torch's; elsewhere than on Linux it is not.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: deque[tuple[list[Record], Future[list[Converted]]]] = deque()
    try:
        while True:
            while len(waiting) < workers * TASKS_WAITING and (chunk := list(islice(records, CHUNK))):
                waiting.append((chunk, pool.submit(_convert_chunk, [record.image for record in chunk], size, folder)))
            if not waiting:
                return
            chunk, result = waiting.popleft()
            yield from zip(chunk, _finished(chunk, result), strict=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _convert_chunk(images: list[Path | bytes], size: int, folder: Path | None) -> list[Converted]:
    return [convert_image(image, size, folder) for image in images]


def _finished(chunk: list[Record], result: "Future[list[Converted]]") -> list[Converted]:
    try:
        return result.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker process was killed while it read one of the pictures from {chunk[0].image_id} on "
            "(the system does so when memory runs out); run again with fewer --processes"
        ) from error


def _start_worker() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what makes an image unusable is a problem
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
