"""CUB-200-2011 and Oxford-102 Flowers with ten sentences an image, as Reed et al. (CVPR 2016) collected them.

    annotations/trainclasses.txt  valclasses.txt  testclasses.txt    a class a line: 001.Black_footed_Albatross
    annotations/text_c10/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.txt    a sentence a line
    images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg    Flowers: images/image_06734.jpg

The splits are zero-shot: no class is in two of them.
"""

from collections.abc import Iterator
from pathlib import Path

from crosspair.data.reader import ALL_SPLITS, Counts, published
from crosspair.data.readers.schema import SchemaError, path_inside, require_folder, unreadable
from crosspair.data.records import Record
from crosspair.errors import UserError
from crosspair.registry import register_reader

_FIX = "expected the folder with trainclasses.txt, valclasses.txt, testclasses.txt and text_c10 of Reed et al."
_LISTS = {"train": "trainclasses.txt", "val": "valclasses.txt", "test": "testclasses.txt"}
_TRAIN_AND_VAL = "trainvalclasses.txt"


# Reed et al. (2016); train and val differ between papers, their sum does not.
_CUB = {
    "train": Counts(labels=100),
    "val": Counts(labels=50),
    "test": Counts(2_933, 29_330, 50),
    ALL_SPLITS: Counts(11_788, 117_880, 200),
}
_FLOWERS = {
    "train": Counts(labels=62),
    "val": Counts(labels=20),
    "test": Counts(1_155, 11_550, 20),
    ALL_SPLITS: Counts(8_189, 81_890, 102),
}


@register_reader("cub")
@published(_CUB)
def read_cub(annotations: Path, images: Path) -> list[Record]:
    """CUB-200-2011 with ten sentences an image, by the folder of Reed et al."""
    return read_fine_grained(annotations, images)


@register_reader("flowers")
@published(_FLOWERS)
def read_flowers(annotations: Path, images: Path) -> list[Record]:
    """Oxford-102 Flowers with ten sentences an image, by the folder of Reed et al."""
    return read_fine_grained(annotations, images)


def read_fine_grained(annotations: Path, images: Path) -> list[Record]:
    """A record per image, by split, class and name; label: the class's place among all classes in order of name.

    A folder that has trainvalclasses.txt alone for both gives a train split with the classes of both. An image whose
    sentences are missing becomes a record without captions. Raises UserError, before the first record.
    """
    require_folder(images)
    if not annotations.is_dir():
        raise UserError(f"{annotations} is not a folder; {_FIX}")
    try:
        splits = _class_lists(annotations)
        names = sorted(name for classes in splits.values() for name in classes)
        labels = {name: number for number, name in enumerate(names)}
        records = [
            record
            for split, classes in splits.items()
            for name in classes
            for record in _class_records(annotations, images, name, labels[name], split)
        ]
    except SchemaError as problem:
        raise UserError(f"{annotations} can't be used: {problem}; {_FIX}") from None
    except OSError as error:
        raise unreadable(Path(error.filename or annotations), error, _FIX) from error
    return records


def _class_lists(annotations: Path) -> dict[str, list[str]]:
    """The classes of each split."""
    lists = dict(_LISTS)
    if not (annotations / _LISTS["train"]).exists() and (annotations / _TRAIN_AND_VAL).exists():
        lists = {"train": _TRAIN_AND_VAL, "test": _LISTS["test"]}
    splits: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for split, file in lists.items():
        splits[split] = [path_inside(name, file, "class") for name in _lines(annotations / file)]
        for name in splits[split]:
            if name in seen:
                raise SchemaError(f"class {name!r} is in {seen[name]} and in {file}")
            seen[name] = file
    return splits


def _class_records(annotations: Path, images: Path, name: str, label: int, split: str) -> Iterator[Record]:
    texts = annotations / "text_c10" / name
    if not texts.is_dir():
        raise SchemaError(f"class {name!r} has no folder {texts}")
    folder = images / name if (images / name).is_dir() else images  # the images of Flowers lie in one folder
    captions = {path.stem: tuple(_lines(path)) for path in texts.glob("*.txt")}
    present = {path.stem for path in folder.glob("*.jpg")} if folder != images else set()
    for stem in sorted(captions.keys() | present):
        image = folder / f"{stem}.jpg"
        yield Record(str(image.relative_to(images)), image, label, captions.get(stem, ()), split)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without blank ones."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
