"""Decoding and encoding of images: the one decoder of the project, for preparing, training and serving alike.

Every image comes out as uint8 [3, h, w], RGB, upright (EXIF orientation applied), transparency over white.
"""

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from crosspair.data.records import printable
from crosspair.errors import UserError
from crosspair.storage.files import leads_out

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's own limit: 0.5 GB of pixels, more than any camera makes, less than what stops a machine.
MAX_PIXELS = 178_956_970
MAX_FILE_BYTES = 1 << 30
_ORIENTATION = 0x0112


class ImageError(UserError):
    """An image that can't be read. `reason` is the sentence without the image's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name) or 'the picture'} {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.name, self.reason)  # so that it comes whole out of a worker process


class TooManyPixelsError(ImageError):
    """An image that is not decoded, as it would take too much memory."""


@dataclass(frozen=True)
class JpegHeader:
    """Header of a JPEG that torchvision decodes correctly: 8 bits, Huffman coded, grey or three colours."""

    width: int
    height: int
    upright: bool  # no EXIF orientation, or the one that changes nothing


def read_image(path: str | Path) -> Tensor:
    """The image of a file: uint8 [3, h, w]. Raises ImageError."""
    return decode_image(read_image_bytes(Path(path)), str(path))


def read_image_bytes(path: Path) -> bytes:
    """The bytes of an image's file. Raises ImageError when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(str(path), "is missing") from None
    except OSError as error:
        raise ImageError(str(path), f"can't be read ({error.strerror})") from error


def read_source(path: Path, folder: Path | None) -> bytes:
    """The bytes of an image's file, if it is one that a stranger's annotations may name. Raises ImageError.

    folder: of a path below it no link may lead out of it.
    """
    try:
        status = path.stat()
    except OSError:
        return read_image_bytes(path)  # says what is wrong
    except ValueError:
        raise ImageError(str(path), "has a name that no file can have") from None
    if folder is not None and leads_out(path, folder):
        raise ImageError(str(path), "is behind a link that leads out of the folder of pictures")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(str(path), "is a folder, a device or a pipe, not a file")  # reading a pipe would never end
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(str(path), f"is too large ({status.st_size:,} bytes); at most {MAX_FILE_BYTES:,} are read")
    return read_image_bytes(path)


def load_image(image: "str | Path | bytes | Image | np.ndarray | Tensor", name: str = "") -> Tensor:
    """A path, encoded bytes, PIL image, array uint8 [h, w] or [h, w, 3 or 4] or tensor uint8 [3, h, w] -> the last.

    name: of what is no path, for errors. Raises ImageError when it can't be read, UserError when a tensor or an array
    has another shape.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, bytes):
        return decode_image(image, name)
    if isinstance(image, Image.Image):
        with _pillow_errors(name):
            return _from_pillow(image, name)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        if image.numel() == 0:
            raise ImageError(name, "has no pixels")
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        is_image = image.ndim in (2, 3) and image.shape[2:] in [(), (3,), (4,)]
        if is_image:
            return _from_pillow(Image.fromarray(image), name)
    found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor | np.ndarray) else type(image)
    raise UserError(
        f"found {found} as {printable(name) or 'a picture'}; expected a path, bytes, a PIL picture, an array uint8 "
        "[h, w, 3] or a tensor uint8 [3, h, w]"
    )


def decode_image(data: bytes, name: str = "") -> Tensor:
    """Encoded bytes -> uint8 [3, h, w]; of an animation the first frame. Raises ImageError with `name`."""
    header = jpeg_header(data)
    if header is not None:
        _check_size(header.width, header.height, name)
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        try:
            pixels: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)  # type: ignore[assignment]
            return pixels
        except RuntimeError:
            pass  # broken, most likely: Pillow decides, and says why in words a user can read
    return _decode_with_pillow(data, name)


def image_format(data: bytes, name: str = "") -> tuple[int, int, str]:
    """Width and height as stored and the format ("jpeg", "png"), without decoding. Raises ImageError."""
    from PIL import Image

    with _pillow_errors(name), Image.open(io.BytesIO(data)) as image:
        return *image.size, str(image.format).lower()


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """uint8 [3, h, w] -> a JPEG. quality: 1..100."""
    from PIL import Image

    # Pillow takes the pixels as the decoder left them, colours side by side; torchvision writes the same bytes, but
    # rearranges the pixels twice on the way, for half the time again.
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
    return file.getvalue()


def resize_shorter_side(image: Tensor, size: int) -> Tensor:
    """[3, h, w] with the shorter side `size` pixels long, antialiased; a smaller image stays as it is."""
    if min(image.shape[-2:]) <= size:
        return image
    return F.resize(image, [size], antialias=True)


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG, from the segments before its pixels; None for other images and rarer kinds of JPEG."""
    if data[:2] != b"\xff\xd8":
        return None
    position, frame, upright = 2, None, True
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:  # the pixels begin
            return JpegHeader(*frame, upright) if frame else None
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        segment = data[position + 4 : end]
        if marker in (0xC0, 0xC1, 0xC2):
            frame = _frame_size(segment)
        elif 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None  # lossless or arithmetic coding
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            upright = upright and _is_upright(segment)
        position = end
    return None


def _frame_size(segment: bytes) -> tuple[int, int] | None:
    """(width, height) of a frame header with 8 bits and 1 or 3 components."""
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3):
        return None
    height, width = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
    return (width, height) if width and height else None


def _is_upright(exif_segment: bytes) -> bool:
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(exif_segment)
        return bool(exif.get(_ORIENTATION, 1) == 1)
    except Exception:  # damaged EXIF raises anything; the image is then encoded anew, without it
        return False


def _decode_with_pillow(data: bytes, name: str) -> Tensor:
    from PIL import Image

    if not data:
        raise ImageError(name, "is empty")
    with _pillow_errors(name), Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size, name)
        return _from_pillow(image, name)


@contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Turn any error of Pillow into an ImageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixelsError(name, f"is too large; at most {MAX_PIXELS:,} pixels are read") from None
    except UnidentifiedImageError:
        raise ImageError(name, "is not a picture in a known format") from None
    except Exception as error:  # its decoders raise many kinds: OSError, SyntaxError, struct.error, ValueError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"is broken or cut off ({reason})") from error


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise TooManyPixelsError(name, f"is too large ({width} x {height}); at most {MAX_PIXELS:,} pixels are read")


def _from_pillow(image: "Image", name: str) -> Tensor:
    from PIL import Image, ImageOps

    if 0 in image.size:
        raise ImageError(name, "has no pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    elif image.mode in ("I", "F"):
        raise ImageError(name, "has 32 bits a pixel, which say not how bright white is; save it with 8 or 16 bits")
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
