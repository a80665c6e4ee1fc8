"""The images of a report inside its HTML: those shown large once each, and all of the map in one sheet."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crosspair.report.text import attribute, shortened

_THUMBNAIL = 200  # pixels of the longer side; shown at half of that or less
_CELL = 128  # pixels of a side on the sheet, fewer where the sheet would grow beyond _SHEET pixels
_SHEET = 13_000_000

Thumbnail = Callable[[int], bytes]


class ShownImages:
    """Thumbnails as backgrounds of style classes, so that an image shown many times is stored once.

    thumbnail: row of an image to its encoded bytes; None where there are no images, then names stand for them.
    names [n], ids [n]: written below. captions [n]: said of it to who can't see it.
    """

    def __init__(
        self, thumbnail: Thumbnail | None, names: Sequence[str], ids: Sequence[str], captions: Sequence[str]
    ) -> None:
        self.thumbnail, self.names, self.ids, self.captions = thumbnail, names, ids, captions
        self._data: dict[int, str] = {}

    def show(self, row: int) -> str:
        """An image as HTML, with its name and id below."""
        name = f'<span class="of">{shortened(self.names[row])} <span class="id">{escape(self.ids[row])}</span></span>'
        if self.thumbnail is None:
            return f'<span class="unseen">{name}</span>'
        if row not in self._data:
            small = _decode(self.thumbnail(row), _THUMBNAIL)
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            self._data[row] = _webp(small, 70)
        return f'<span class="image p{row}" role="img" aria-label="{attribute(self.describe(row))}"></span>{name}'

    def describe(self, row: int) -> str:
        """A description of an image in words."""
        return f"{self.names[row]}: {self.captions[row]}" if self.captions[row].strip() else self.names[row]

    def styles(self) -> str:
        """The style sheet that the images shown so far need."""
        return "\n".join(f".p{row}{{background-image:{data}}}" for row, data in self._data.items())


class Sheet:
    """Many images, each cut to a square, side by side in one. rows: of the images, in their order."""

    def __init__(self, thumbnail: Thumbnail, rows: NDArray[np.int64]) -> None:
        self.rows = rows
        self.columns = math.ceil(math.sqrt(len(rows)))
        self.lines = math.ceil(len(rows) / self.columns)
        cell = min(_CELL, int(math.sqrt(_SHEET / (self.columns * self.lines))))
        sheet = Image.new("RGB", (self.columns * cell, self.lines * cell), "white")
        for place, row in enumerate(rows.tolist()):
            square = _square(_decode(thumbnail(row), cell), cell)
            sheet.paste(square, (place % self.columns * cell, place // self.columns * cell))
        self._data = _webp(sheet, 50)

    def position(self, place: int) -> str:
        """The CSS background-position that shows the image at a place."""
        across, down = place % self.columns, place // self.columns
        return f"{_percent(across, self.columns - 1)} {_percent(down, self.lines - 1)}"

    def styles(self) -> str:
        """The style sheet of the class `sheet`."""
        return f".sheet{{background:{self._data} 0 0 / {self.columns * 100}% {self.lines * 100}% no-repeat}}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0:.4g}%"


def _decode(image: bytes, side: int) -> Image.Image:
    """An image in RGB over white, decoded no larger than needed for `side` pixels."""
    with Image.open(io.BytesIO(image)) as opened:
        opened.draft("RGB", (2 * side, 2 * side))
        if opened.mode == "RGB":
            return opened.copy()
        layers = opened.convert("RGBA")
    white = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(white, layers).convert("RGB")


def _square(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))


def _webp(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return f"url(data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')})"
