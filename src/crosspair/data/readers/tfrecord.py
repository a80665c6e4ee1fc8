"""TFRecord shards that the original's converters wrote, one record a caption.

train-00000-of-00032 .. train-00031-of-00032  val-00000-of-00001  test-00000-of-00001

Each record is a SequenceExample with the image's JPEG bytes, label, file name and split, and one caption's words; an
image with five captions stands in five records, in a shuffled order. Here it comes once, with all its captions.

The converter for COCO wrote Karpathy's restval to the shards named val, and no val; the records say what they are of.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path

from crosspair.data.records import Record
from crosspair.data.scratch import pack, scratch_database, unpack
from crosspair.errors import UserError
from crosspair.formats.tfrecord import SequenceExample, read_record
from crosspair.registry import register_reader

# What a record's split may be, by what its shard is called.
_SPLITS_OF_SHARD = {"train": ("train",), "val": ("val", "restval"), "test": ("test",)}
_SPLITS = tuple(split for splits in _SPLITS_OF_SHARD.values() for split in splits)
_SHARD = re.compile(rf"({'|'.join(_SPLITS_OF_SHARD)})-(\d{{5}})-of-(\d{{5}})")
# CUHK-PEDES by the folders of its images: its persons are numbered from 1, and the converter stored them as they are.
_CUHK_PEDES = re.compile(r"(.*/)?(CUHK01|CUHK03|Market|cam_a|cam_b|test_query|train_query)/[^/]+")
_CUHK_PEDES_FIRST_ID = 1


@dataclass(frozen=True)
class _Caption:
    """The content of one record: an image and one of its captions."""

    split: str
    name: str
    label: int
    words: tuple[str, ...]
    image: memoryview  # encoded


@register_reader("tfrecord")
def read_tfrecords(annotations: Path, *, merge_restval: bool = False) -> Iterator[Record]:
    """The TFRecord shards that the original's converters wrote; --merge-restval adds COCO's split restval to train.

    Gives the images by split, label and name, their captions in the order of the shards' records; the images are in
    the shards.
    annotations: the directory with `train-00000-of-00032` and so on.
    A Record's split is the stored one: of COCO's shards val it is restval, as the converter took Karpathy's restval.
    A Record's image_id is the stored path without the directory that all paths share; <START> and <END> are left out.
    Its label is the stored one, for CUHK-PEDES the person's number less one as the data set's own reader gives it.
    All shards are checked before the first record; where each caption is, is kept on disk.
    Raises UserError for a missing shard, a damaged record (naming file and byte) and records that contradict another.
    """
    shards = _shards(annotations)
    places = scratch_database(
        "images(split INTEGER, name BLOB, label INTEGER, PRIMARY KEY (split, name)) WITHOUT ROWID",
        "captions(split INTEGER, label INTEGER, name BLOB, shard INTEGER, position INTEGER)",
    )
    for number, shard in enumerate(shards):
        for position, caption in _captions(shard):
            row = (_SPLITS.index(caption.split), caption.label, pack(caption.name), number, position)
            with _damage(shard, position):
                _enter(places, caption, row)
    shared = _shared_directory(_names(places))
    first_label = _CUHK_PEDES_FIRST_ID if all(map(_CUHK_PEDES.fullmatch, _names(places))) else 0
    rows = places.execute("SELECT * FROM captions ORDER BY split, label, name, rowid")
    for (split, label, packed), group in groupby(rows, key=itemgetter(0, 1, 2)):
        captions = [_caption_at(shards[shard], position) for *_, shard, position in group]
        tokens = tuple(caption.words for caption in captions)
        texts = tuple(" ".join(words) for words in tokens)
        image = bytes(captions[0].image)
        name = unpack(packed)[len(shared) :]
        yield Record(name, image, label - first_label, texts, _split_name(split, merge_restval), tokens)


def _split_name(place: int, merge_restval: bool) -> str:
    split = _SPLITS[place]
    return "train" if merge_restval and split == "restval" else split


def _names(places: sqlite3.Connection) -> Iterator[str]:
    return (unpack(name) for (name,) in places.execute("SELECT name FROM images"))


def _enter(places: sqlite3.Connection, caption: _Caption, row: tuple[int, int, bytes, int, int]) -> None:
    """Enter where a caption is. Raises ValueError when its label is not that of the image's earlier records."""
    split, label, name, *_ = row
    if places.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", (split, name, label)).rowcount == 0:
        query = "SELECT label FROM images WHERE split = ? AND name = ?"
        ((first,),) = places.execute(query, (split, name))
        if first != label:
            raise ValueError(f"{caption.name} has label {label} here and {first} in an earlier record")
    places.execute("INSERT INTO captions VALUES (?, ?, ?, ?, ?)", row)


@contextmanager
def _damage(shard: Path, position: int) -> Iterator[None]:
    """A ValueError as a sentence that names the record."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"{shard}: the record at byte {position} is damaged ({error}); expected a shard of the original's "
            "converter, copy it again"
        ) from error


def _captions(shard: Path) -> Iterator[tuple[int, _Caption]]:
    """Every record of a shard, with the byte it begins at."""
    end = shard.stat().st_size
    with shard.open("rb") as file:
        while (position := file.tell()) < end:
            with _damage(shard, position):
                caption = _parse(read_record(file, position))
                _check_split(caption.split, shard.name)
            yield position, caption


def _check_split(split: str, shard: str) -> None:
    """Raises ValueError when a record's split is none of those that its shard may hold."""
    expected = _SPLITS_OF_SHARD[shard.partition("-")[0]]
    if split not in expected:
        raise ValueError(f"its split is {split[:40]!r}, not {' or '.join(expected)}")


def _caption_at(shard: Path, position: int) -> _Caption:
    with _damage(shard, position), shard.open("rb") as file:
        return _parse(read_record(file, position))


def _shards(directory: Path) -> list[Path]:
    """All shards in order, after checking that none is missing."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; expected the one that holds train-00000-of-... and so on")
    found = [match for path in sorted(directory.iterdir()) if (match := _SHARD.fullmatch(path.name))]
    if not found:
        raise UserError(f"no shards in {directory}; expected files named like train-00000-of-00032")
    shards = []
    for split in _SPLITS_OF_SHARD:
        counts = {int(match[3]) for match in found if match[1] == split}
        if len(counts) > 1:
            raise UserError(f"{directory} holds {split} shards of {sorted(counts)} in all; expected those of one run")
        for count in counts:
            names = [f"{split}-{number:05d}-of-{count:05d}" for number in range(count)]
            missing = [name for name in names if not (directory / name).is_file()]
            if missing:
                raise UserError(
                    f"{len(missing)} of {count} {split} shards are missing in {directory}, first {missing[0]}; copy "
                    "the directory again"
                )
            shards += [directory / name for name in names]
    return shards


def _parse(record: memoryview) -> _Caption:
    example = SequenceExample.parse(record)
    name, split = example.text("image/filename"), example.text("image/split")
    labels = example.integers("image/label")
    if len(labels) != 1:
        raise ValueError(f"it has {len(labels)} labels where one is expected")
    words = tuple(word for word in example.texts("image/caption") if word not in ("<START>", "<END>"))
    return _Caption(split, name, labels[0], words, example.data("image/data"))


def _shared_directory(names: Iterable[str]) -> str:
    """The directories, with the last slash, that all paths begin with; often the one the converter was given."""
    shared: list[str] | None = None
    for name in names:
        directories = name.split("/")[:-1]
        pairs = zip(directories if shared is None else shared, directories, strict=False)
        shared = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return "/".join([*(shared or []), ""])
