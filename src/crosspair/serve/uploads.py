"""Uploaded images: received with limits on bytes, time and pixels, decoded in common formats of photographs alone."""

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import torch
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from crosspair.data.images import ImageError, TooManyPixelsError, decode_image, image_format
from crosspair.data.transforms import ImageInput

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MAX_SECONDS = 30.0  # to receive one
MAX_HELD = 256 * 2**20  # bytes of all that are being received or decoded
# What Pillow reads besides are documents, scientific formats and relics, with decoders that few have looked at.
FORMATS = {"jpeg", "mpo", "png", "webp", "gif", "bmp", "tiff", "avif"}


class Uploads:
    """Receives images and decodes them on threads, a core each."""

    def __init__(self, image_input: ImageInput, *, max_seconds: float = MAX_SECONDS, max_held: int = MAX_HELD):
        self._image_input = image_input
        self._max_seconds = max_seconds
        self._max_held = max_held
        self._held = 0
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    async def image(self, request: Request) -> Tensor:
        """The image in a request's body, as it is or as a file of a form: uint8 [3, h, w], at the model's size.

        Raises HTTPException with a sentence for whoever sent it.
        """
        async with self._body(request) as body:
            data = await _from_form(request.headers, body) if _is_form(request.headers) else bytes(body)
            if not data:
                raise HTTPException(400, "found no picture; send its bytes as the body, or as a file of a form")
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytearray]:
        body = bytearray()
        try:
            await self._receive(request, body)
            yield body
        finally:
            self._held -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._max_seconds):
                async for chunk in request.stream():
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > MAX_BYTES:
                        raise HTTPException(413, f"the picture has more than {MAX_BYTES:,} bytes; send a smaller one")
                    if self._held > self._max_held:
                        raise HTTPException(503, "too many pictures come at once; try again", {"Retry-After": "1"})
        except TimeoutError:
            raise HTTPException(408, f"the picture did not come within {self._max_seconds:g} seconds") from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection was cut before the picture was complete") from None

    def _decode(self, data: bytes) -> Tensor:
        try:
            width, height, kind = image_format(data)
            if kind not in FORMATS:
                raise HTTPException(415, f"found a picture of the format {kind}; send a JPEG, PNG or WebP")
            if width * height > MAX_PIXELS:
                raise HTTPException(
                    413, f"the picture has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read"
                )
            image = decode_image(data)
        except TooManyPixelsError:
            raise HTTPException(413, f"the picture has too many pixels; at most {MAX_PIXELS:,} are read") from None
        except ImageError as error:
            raise HTTPException(415, f"{error}; send a JPEG, PNG or WebP") from None
        except MemoryError:
            raise HTTPException(
                503, "there is no memory for this picture now; try again", {"Retry-After": "5"}
            ) from None
        resized = self._image_input.resize(image)
        # Only uint8 can go on as an image; where the resize gives fractions, the model does it itself.
        return resized if resized.dtype == torch.uint8 else image


class _InMemory(MultiPartParser):
    spool_max_size = MAX_BYTES + 1  # a stranger's bytes stay off the disk


def _is_form(headers: Headers) -> bool:
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _from_form(headers: Headers, body: bytearray) -> bytes:
    """The first file of a form."""

    async def whole() -> AsyncIterator[bytes]:
        yield bytes(body)

    try:
        form = await _InMemory(headers, whole(), max_files=1, max_fields=8).parse()  # type: ignore[arg-type]
    except MultiPartException as error:
        raise HTTPException(400, f"the form can't be read ({error.message.rstrip('.')}); send one file") from None
    try:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
        return b""
    finally:
        await form.close()
