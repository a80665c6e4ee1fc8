"""Vectors on disk that are appended as they are made: a killed process loses the group under way, no more."""

import io
import json
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class VectorStore:
    """float32 values of one shape a row, opened for this process alone; what an earlier one left whole is taken over.

    path: the file of the vectors, one behind the other after `header`. Beside it PATH.jsonl has a line of settings and
    then a line for each group of rows: their number, a checksum of their bytes and what is known of each.
    settings: what the vectors depend on; what was made with others is thrown away.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], settings: dict[str, Any], header: bytes = b"") -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []  # what is known of each row, where it was given
        self.count = 0  # of rows
        self._row_shape = row_shape
        self._row_bytes = 4 * math.prod(row_shape)
        self._header = header
        self._vectors: BinaryIO = path.open("a+b")
        self._lines: BinaryIO = path.with_name(f"{path.name}.jsonl").open("a+b")
        self._take_over(json.dumps({**settings, "row": row_shape}).encode() + b"\n")

    def _take_over(self, first_line: bytes) -> None:
        self._lines.seek(0)
        self._vectors.seek(0)
        end = 0
        if self._lines.readline() == first_line and self._vectors.read(len(self._header)) == self._header:
            end = len(first_line)
            for line in self._lines:
                group = _parse(line)
                if group is None:
                    break
                data = self._vectors.read(group["count"] * self._row_bytes)
                if len(data) < group["count"] * self._row_bytes or zlib.crc32(data) != group["crc"]:
                    break
                self.rows += group["rows"]
                self.count += group["count"]
                end += len(line)
        self._lines.truncate(end)
        self._vectors.truncate(len(self._header) + self.count * self._row_bytes if end else 0)
        if not end:
            self._lines.write(first_line)
            self._vectors.write(self._header)

    def append(self, vectors: np.ndarray, rows: Sequence[dict[str, Any]] = ()) -> None:
        """vectors: float32 [k, *row shape]. rows: what is known of each, as JSON takes it, or nothing."""
        data = np.ascontiguousarray(vectors, dtype=np.float32).tobytes()
        group = {"count": len(vectors), "crc": zlib.crc32(data), "rows": list(rows)}
        self._vectors.write(data)
        self._lines.write(json.dumps(group).encode() + b"\n")
        self.rows += rows
        self.count += len(vectors)

    def flush(self) -> None:
        """Flush what was appended to the operating system, so that it survives a kill of the process."""
        self._vectors.flush()
        self._lines.flush()

    def vectors(self) -> np.ndarray:
        """float32 [count, *row shape], memory-mapped."""
        self.flush()
        shape = (self.count, *self._row_shape)
        if not self.count:
            return np.empty(shape, np.float32)
        return np.memmap(self.path, np.float32, "r", offset=len(self._header), shape=shape)

    def finish(self, path: Path) -> None:
        """Rename the file of vectors, which is whole, to `path`."""
        self.flush()
        os.fsync(self._vectors.fileno())
        self.path.replace(path)
        self.close()
        Path(self._lines.name).unlink()

    def close(self) -> None:
        self._vectors.close()
        self._lines.close()


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file of float32 values."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _parse(line: bytes) -> dict[str, Any] | None:
    """A group's line; None where it was cut off or is damaged."""
    try:
        group: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        if isinstance(group["count"], int) and isinstance(group["crc"], int) and isinstance(group["rows"], list):
            return group
    except (ValueError, TypeError, KeyError):
        pass
    return None
