"""Pictures and annotation files made on the spot."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def _pixels(height: int, width: int) -> np.ndarray:
    """Smooth colours with a corner that tells which way is up: dark blue at the top left."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(40, 250, width).astype(np.uint8)[None]
    pixels[..., 1] = np.linspace(40, 250, height).astype(np.uint8)[:, None]
    pixels[..., 2] = 120
    pixels[: height // 3, : width // 3] = (10, 20, 90)
    return pixels


@pytest.fixture
def pixels() -> Callable[[int, int], np.ndarray]:
    """uint8 [height, width, 3]."""
    return _pixels


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """A PIL picture or an array as the bytes of a file."""

    def encode(source: Image.Image | np.ndarray, format: str = "JPEG", **options: Any) -> bytes:
        image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
        file = io.BytesIO()
        image.save(file, format, **({"quality": 95} if format == "JPEG" else {}), **options)
        return file.getvalue()

    return encode


@pytest.fixture
def karpathy(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., tuple[Path, Path]]:
    """Writes a data set in Karpathy's schema: a picture and two captions per (filename, split); its two paths."""

    def write(entries: list[tuple[str, str]], size: tuple[int, int] = (40, 60)) -> tuple[Path, Path]:
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        rows = []
        for number, (name, split) in enumerate(entries):
            shade = np.full((*size, 3), 20 + 7 * number % 200, dtype=np.uint8)
            (images / name).write_bytes(encode(shade))
            words = [["a", "dog", "number", str(number)], ["it", "runs"]]
            sentences = [{"raw": " ".join(tokens) + " .", "tokens": tokens} for tokens in words]
            rows.append({"imgid": number, "filename": name, "split": split, "sentences": sentences})
        annotations = tmp_path / "dataset.json"
        annotations.write_text(json.dumps({"dataset": "flickr8k", "images": rows}))
        return annotations, images

    return write
