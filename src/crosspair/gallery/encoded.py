"""What an indexing run has encoded so far, on disk: a killed run loses the pictures under way, no more.

pictures.jsonl has a line per picture, after a line with the settings all were made with; vectors.f32 has their vectors
one behind the other. A picture is known by the SHA-256 of its bytes, so that neither order nor names matter.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_VECTORS = "vectors.f32"
_LINES = "pictures.jsonl"


@dataclass(frozen=True)
class EncodedImage:
    """Of a line. width, height: pixels, upright. crc: of the vector's bytes."""

    sha256: str
    width: int
    height: int
    backend: str
    crc: int


class EncodedImages:
    """Opened in a folder that no other process writes to; what an earlier run left whole is taken over.

    settings: what the vectors depend on; what was made with others is thrown away.
    """

    def __init__(self, folder: Path, dimension: int, settings: dict[str, Any]) -> None:
        self.dimension = dimension
        self._path = folder / _VECTORS
        self._vectors: BinaryIO = self._path.open("a+b")
        self._lines: BinaryIO = (folder / _LINES).open("a+b")
        header = json.dumps({**settings, "dimension": dimension}).encode() + b"\n"
        self.images: dict[str, tuple[int, EncodedImage]] = {}
        self._take_over(header)
        self.taken_over = len(self.images)

    def _take_over(self, header: bytes) -> None:
        self._lines.seek(0)
        self._vectors.seek(0)
        end = 0
        count = 0
        if self._lines.readline() == header:
            end = len(header)
            for line in self._lines:
                image = _parse(line)
                data = self._vectors.read(4 * self.dimension)
                if image is None or len(data) < 4 * self.dimension or zlib.crc32(data) != image.crc:
                    break
                self.images[image.sha256] = (count, image)
                count += 1
                end += len(line)
        self._lines.truncate(end)
        self._vectors.truncate(4 * self.dimension * count)
        self._count = count
        if not end:
            self._lines.write(header)

    def add(self, sha256: str, size: tuple[int, int], vector: np.ndarray, backend: str) -> None:
        """size: width and height. vector: float32 [dimension] of unit length."""
        data = np.ascontiguousarray(vector, dtype=np.float32).tobytes()
        image = EncodedImage(sha256, *size, backend, zlib.crc32(data))
        self._vectors.write(data)
        self._lines.write(json.dumps(asdict(image)).encode() + b"\n")
        self.images[sha256] = (self._count, image)
        self._count += 1

    def flush(self) -> None:
        """Give what was added to the system, from where even a kill does not take it."""
        self._vectors.flush()
        self._lines.flush()

    def vectors(self) -> np.ndarray:
        """float32 [count, dimension], memory-mapped; row i of the picture whose number is i."""
        self.flush()
        shape = (self._count, self.dimension)
        return np.memmap(self._path, np.float32, "r", shape=shape) if self._count else np.empty(shape, np.float32)

    def close(self) -> None:
        self._vectors.close()
        self._lines.close()


def encoded_bytes(folder: Path) -> int:
    """Of the vectors in a folder, and of the parts that other machines have done; 0 where there are none."""
    files = [folder / _VECTORS, *(folder / "parts").glob("*.parquet")]
    return sum(path.stat().st_size for path in files if path.is_file())


def _parse(line: bytes) -> EncodedImage | None:
    try:
        return EncodedImage(**json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None
