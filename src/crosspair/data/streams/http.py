"""A file behind http(s), read from start to end; where the connection breaks, reading goes on at that byte."""

import http.client
import io
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from crosspair.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ATTEMPTS = 6  # without a byte between them
FIRST_PAUSE = 0.5  # seconds; each next one is twice as long
TIMEOUT = 60  # seconds without a byte
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


class HttpFile(io.RawIOBase):
    """Readable, not seekable. Raises UserError when the server refuses, or fails ATTEMPTS times at one place."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._position = 0
        self._length: int | None = None  # None: the server doesn't say
        self._response: http.client.HTTPResponse | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        if len(view) == 0 or self._position == self._length:
            return 0
        for attempt in range(ATTEMPTS):
            try:
                self._response = self._response or self._connect()
                read = self._response.readinto(view)
                if read == 0 and self._length is not None:
                    raise ConnectionError(f"it ended after {self._position:,} of {self._length:,} bytes")
                self._position += read
                return read
            except (OSError, http.client.HTTPException) as error:
                self._disconnect()
                if isinstance(error, urllib.error.HTTPError) and error.code not in _WORTH_ANOTHER_TRY:
                    raise self._unreadable(error) from error
                if attempt + 1 == ATTEMPTS:
                    raise self._unreadable(error, f" after {ATTEMPTS} attempts") from error
                time.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _connect(self) -> http.client.HTTPResponse:
        """The response whose next byte is the one at the position."""
        request = urllib.request.Request(self.url, headers={"Accept-Encoding": "identity"})
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
        if response.status == http.client.PARTIAL_CONTENT:
            return response
        length = response.headers.get("Content-Length")
        self._length = int(length) if length else None
        left = self._position  # a server without ranges sends the whole file again
        while left:
            skipped = len(response.read(min(left, 1 << 20)))
            if not skipped:
                raise ConnectionError(f"it ended before byte {self._position:,}")
            left -= skipped
        return response

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _unreadable(self, error: Exception, when: str = "") -> UserError:
        reason = " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
        code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        return UserError(f"{self.url} can't be read{when} ({code}{reason:.200}); check the address and the server")
