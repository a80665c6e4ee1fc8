"""The contact sheet: pictures of the data at their places, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crosspair.cli import main
from crosspair.data import sheet
from crosspair.data.dataset import open_data
from crosspair.data.prepare import prepare
from crosspair.data.records import Record
from crosspair.data.sheet import write_sheet
from crosspair.errors import UserError


@pytest.fixture
def data(tmp_path: Path, encode) -> Path:
    def one(number: int) -> Record:
        image = encode(np.full((210, 280, 3), 5 * number, np.uint8), "PNG")
        captions = tuple(f"caption {word} of a picture, a long one that is wrapped" for word in range(number))
        return Record(f"{number}.png", image, number, captions, "test" if number > 25 else "train")

    records = [one(number) for number in range(1, 31)]
    prepare(records, tmp_path / "data", source={}, processes=1, progress=False)
    return tmp_path / "data"


def shades(path: Path) -> list[int]:
    """The grey of each place of the sheet."""
    pixels = np.asarray(Image.open(path).convert("L"))
    width, height = sheet.TILE[0] + sheet.MARGIN, sheet.TILE[1] + sheet.LINES * sheet.LINE + sheet.MARGIN
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    return [int(pixels[row * height + 100, column * width + 100]) for row in range(rows) for column in range(columns)]


def test_it_shows_different_pictures_of_all_splits(data, tmp_path):
    write_sheet(open_data(data), tmp_path / "sheet.png")
    seen = shades(tmp_path / "sheet.png")
    assert len(seen) == len(set(seen)) == 20
    assert set(seen) <= {5 * number for number in range(1, 31)}
    assert any(shade > 125 for shade in seen)


def test_the_seed_decides(data, tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        write_sheet(open_data(data), tmp_path / f"{name}.png", seed)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert shades(tmp_path / "a.png") != shades(tmp_path / "c.png")


def test_fewer_pictures_make_a_smaller_sheet(tmp_path, encode, pixels):
    record = Record("a", encode(pixels(30, 900)), 0, ("a dog",), "train")
    prepare([record], tmp_path / "data", source={}, processes=1, progress=False)
    write_sheet(open_data(tmp_path / "data"), tmp_path / "new" / "sheet.jpg")
    assert Image.open(tmp_path / "new" / "sheet.jpg").width == sheet.TILE[0] + 2 * sheet.MARGIN


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("words", [1, 8, 14, 60])
def test_captions_fit_under_their_picture_and_those_left_out_are_counted(count, words):
    lines = sheet._caption_lines(["caption " * words] * count)
    assert 0 < len(lines) < sheet.LINES
    shown = sum(line.startswith("- ") for line in lines)
    assert shown == count or lines[-1] == f"  and {count - shown} more"


def test_inspect_writes_it(data, tmp_path, capsys):
    assert main(["inspect", str(data), "--sheet", str(tmp_path / "sheet.jpg"), "--seed", "3"]) == 0
    assert capsys.readouterr().out.endswith(f"sheet: {tmp_path / 'sheet.jpg'}\n")
    assert Image.open(tmp_path / "sheet.jpg").format == "JPEG"


def test_another_kind_of_file_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"found --sheet .*expected a name that ends in \.jpg"):
        write_sheet(open_data(data), tmp_path / "sheet.pdf")
