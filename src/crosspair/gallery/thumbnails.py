"""Small pictures for pages that show many: JPEG files named by the checksum of their picture."""

from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from crosspair.data.images import decode_image, encode_jpeg

SIDE = 256  # pixels of the longer side, at most
QUALITY = 80


def thumbnail_path(folder: Path, sha256: str) -> Path:
    return folder / sha256[:2] / f"{sha256}.jpg"


def make_thumbnail(data: bytes, name: str = "") -> bytes:
    """Of an encoded picture. Raises ImageError with `name` when it can't be read."""
    return encode_thumbnail(decode_image(data, name))


def encode_thumbnail(image: Tensor) -> bytes:
    """uint8 [3, h, w] -> a JPEG of at most SIDE pixels a side; small pictures keep their size."""
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    if scale < 1:
        image = F.resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)
    return encode_jpeg(image, QUALITY)
