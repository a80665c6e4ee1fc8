"""A contact sheet: random images of a DATA directory with their captions, to see what training will see."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crosspair.data.dataset import Data, PreparedSplit
from crosspair.data.images import load_image
from crosspair.data.records import printable
from crosspair.errors import UserError
from crosspair.storage.files import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 5
IMAGES = 20
TILE = (280, 210)  # pixels, width and height, of an image's place
MARGIN = 12
FONT_SIZE = 13
LINE = 17  # pixels from one line of text to the next
LINE_CHARACTERS = 42
LINES = 8  # under an image
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def write_sheet(data: Data, path: Path, seed: int = 0) -> None:
    """Write up to 20 images, drawn by `seed` from all splits, with their captions as one image.

    Raises UserError when the file's name does not end as an image's.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"found --sheet {printable(str(path))}; expected a name that ends in .jpg, .png or .webp")
    from PIL import Image

    splits = [data.split(name) for name in data.split_names]
    ends = np.cumsum([len(split) for split in splits])
    drawn = np.random.default_rng(seed).choice(ends[-1], min(IMAGES, ends[-1]), replace=False)
    tiles = []
    for place in sorted(drawn):
        number = int(np.searchsorted(ends, place, side="right"))
        row = int(place - ends[number] + len(splits[number]))
        tiles.append(_tile(splits[number], data.split_names[number], row))
    sheet = _sheet(tiles)
    with whole_file(path) as file:
        sheet.save(file, Image.registered_extensions()[path.suffix.lower()])


def _sheet(tiles: "list[Image]") -> "Image":
    from PIL import Image

    columns = min(COLUMNS, len(tiles))
    width, height = tiles[0].width + MARGIN, tiles[0].height + MARGIN
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (MARGIN + column * width, MARGIN + row * height))
    return sheet


def _tile(split: PreparedSplit, name: str, row: int) -> "Image":
    """One image, whole, above what the data say about it."""
    from PIL import Image, ImageDraw, ImageFont

    tile = Image.new("RGB", (TILE[0], TILE[1] + LINES * LINE), "white")
    image = Image.fromarray(load_image(split.image(row)).permute(1, 2, 0).numpy())
    image.thumbnail(TILE)
    tile.paste(image, ((TILE[0] - image.width) // 2, TILE[1] - image.height))
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(FONT_SIZE)
    about = f"{name}, label {split.labels[row]}: {printable(split.image_ids[row])}"
    about = about if len(about) <= LINE_CHARACTERS else f"{about[: LINE_CHARACTERS - 3]}..."
    lines = [about, *_caption_lines(split.captions[row])]
    for number, line in enumerate(lines):
        colour = "gray" if number == 0 else "black"
        draw.text((0, TILE[1] + 2 + number * LINE), line, fill=colour, font=font)
    return tile


def _caption_lines(captions: list[str]) -> list[str]:
    """The captions, wrapped, as far as there is room under an image; a last line counts those that are left out."""
    room = LINES - 1
    lines: list[str] = []
    for number, caption in enumerate(captions):
        wrapped = textwrap.wrap(f"- {caption}", LINE_CHARACTERS, subsequent_indent="  ", max_lines=3, placeholder="...")
        left = len(captions) - number
        if len(lines) + len(wrapped) > room - (left > 1):
            return [*lines, f"  and {left} more"]
        lines += wrapped
    return lines
