"""Thousands of damaged sources for every reader: each is read whole or refused with one sentence, nothing in between.

What went in is counted without the reader under test: entries of a JSON list, rows of a table, files in a folder. The
same seed makes the same sources; CROSSPAIR_FUZZ=100 makes a hundred times as many.
"""

import copy
import csv
import inspect
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crosspair.data import prepare
from crosspair.data.conversion import Converted, convert_image
from crosspair.data.images import ImageError, read_source
from crosspair.data.records import Record
from crosspair.data.scratch import short_checksum
from crosspair.errors import UserError
from crosspair.formats.crc32c import masked_crc32c
from crosspair.registry import READERS
from tests.fixtures.paths import TFRECORDS

SCALE = int(os.environ.get("CROSSPAIR_FUZZ", "1"))
STORED = 8  # every so many of the sources that are read are stored too

ODD_TEXTS = [
    "",
    " ",
    ".",
    "..",
    "../../a.jpg",
    "/etc/passwd",
    "a b.jpg",
    "a\nb.jpg",
    "a\0b",
    "\ud800",
    "é" * 300,
    "x" * 5000,
]
ODD_TEXTS += ["C:\\a.jpg", "c/../../a.jpg", "link/a.jpg", "leaves.jpg", "pipe.jpg", "\u202e", "true", "-0", "1e5", "٣"]
ODD_VALUES: list[Any] = [
    *ODD_TEXTS,
    None,
    True,
    -1,
    0,
    2**63,
    10**40,
    1.5,
    1e308,
    float("nan"),
    [],
    {},
    [[]],
    [None],
    {"a": 1},
]
ODD_BYTES = [
    b"\0",
    b"\xff",
    b"\n",
    b"\r",
    b'"',
    b",",
    b";",
    b"\t",
    b"{",
    b"[",
    b"]",
    b"\\u",
    b"\xef\xbb\xbf",
    b"9" * 5000,
]


@dataclass(frozen=True)
class Source:
    """A source that can be read, as files below a folder, and how to count its records or captions without a reader."""

    files: dict[str, bytes]
    annotations: str  # below that folder; the pictures are in its folder `images`
    counted: Callable[[Path], int]  # raises what it likes for a source that can't be read
    what: Callable[[list[Record]], int] = len


def captions(records: list[Record]) -> int:
    return sum(len(record.captions) for record in records)


def image(number: int = 0, format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, format)
    return file.getvalue()


IMAGES = {f"images/{name}": image(number) for number, name in enumerate(("a.jpg", "b.jpg", "c/d.jpg"))}
NAMES = [name.removeprefix("images/") for name in IMAGES]


def json_source(content: Any, counted: Callable[[Any], list[Any]] = list) -> Source:
    files = {**IMAGES, "source.json": json.dumps(content).encode()}
    return Source(files, "source.json", lambda path: len(counted(json.loads(path.read_bytes()))))


def karpathy() -> Source:
    words = (["a", "dog"], ["it", "runs"])
    sentences = [{"raw": " ".join(tokens), "tokens": tokens, "sentid": len(tokens[0])} for tokens in words]
    entries = [
        {"imgid": number, "cocoid": 7, "filename": name, "split": split, "sentences": sentences}
        for number, (name, split) in enumerate(zip(NAMES, ("train", "val", "restval"), strict=True))
    ]
    return json_source({"dataset": "coco", "images": entries}, lambda content: content["images"])


def pedes(key: str, tokens: bool) -> Source:
    entries = [
        {"id": number, key: name, "split": "train", "captions": ["a man", "he walks"]}
        | ({"processed_tokens": [["a", "man"], ["he", "walks"]]} if tokens else {})
        for number, name in enumerate(NAMES)
    ]
    return json_source(entries)


ROWS = [
    {"image": name, "caption": f"{words} {name}", "label": label, "split": "train", "image_id": name}
    for name, label in zip(NAMES, ("x", "y", "x"), strict=True)
    for words in ("a dog, running", 'the "dog"')
]


def table(suffix: str) -> Source:
    return Source({**IMAGES, f"t.{suffix}": table_bytes(suffix)}, f"t.{suffix}", table_captions, captions)


def table_bytes(suffix: str) -> bytes:
    if suffix == "parquet":
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), file)
        return file.getvalue()
    if suffix == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter="\t" if suffix == "tsv" else ",")
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def table_captions(path: Path) -> int:
    """The captions of a table, by simpler means than the reader's."""
    if path.suffix == ".parquet":
        return len(pq.read_table(path))
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
        values = [
            next((line.get(name) for name in ("caption", "captions", "text") if name in lines[0]), None)
            for line in lines
        ]
        return sum(len(value) if isinstance(value, list) else 1 for value in values)
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read()
    first = text.splitlines()[0]
    delimiter = "\t" if path.suffix == ".tsv" else ";" if ";" in first and "," not in first else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return sum(bool(row) for row in rows) - 1


def folder(metadata: bool) -> Source:
    if metadata:
        rows = "".join(f"{name},a dog\r\n" for name in NAMES)
        extra = {"images/metadata.csv": f"file_name,text\r\n{rows}".encode()}
    else:
        extra = {name.replace(".jpg", ".txt"): b"A dog.\nIt runs.\n" for name in IMAGES}
    what = lambda records: sum(is_image(record.image) for record in records)  # noqa: E731
    return Source({**IMAGES, **extra}, "images", lambda path: sum(map(is_image, path.rglob("*"))), what)


def is_image(path: Path) -> bool:
    is_there = os.path.lexists(path) and not path.is_dir()
    return is_there and path.suffix == ".jpg" and not path.name.startswith(".")


def fine_grained() -> Source:
    classes = {"trainclasses.txt": b"001.A\n", "valclasses.txt": b"002.B\n", "testclasses.txt": b"003.C\n"}
    texts = {f"text_c10/{name}/p.txt": b"A bird.\nIt sings.\n" for name in ("001.A", "002.B", "003.C")}
    images = {f"images/{name}/p.jpg": image() for name in ("001.A", "002.B", "003.C")}

    def counted(path: Path) -> int:
        lists = [(path / name).read_text("utf-8-sig").splitlines() for name in classes]
        names = [name.strip() for one in lists for name in one if name.strip()]
        stems = [
            {file.stem for file in (path / "text_c10" / name).glob("*.txt")}
            | {file.stem for file in (path / "images" / name).glob("*.jpg")}
            for name in names
        ]
        return sum(map(len, stems))

    return Source({**classes, **texts, **images}, ".", counted)


def webdataset() -> Source:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(4):
            for suffix, content in (("jpg", image(number)), ("txt", b"A dog."), ("json", b'{"label": 3}')):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    def counted(path: Path) -> int:
        """Samples by the names that headers hold, found without following one header to the next."""
        data = path.read_bytes()
        blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
        return len({block.split(b".")[0] for block in blocks if block[257:262] == b"ustar"})

    return Source({"train-0.tar": file.getvalue()}, "train-0.tar", counted)


def tfrecord() -> Source:
    files = {
        f"records/{path.name}": path.read_bytes()
        for path in (TFRECORDS / "flickr").iterdir()
        if path.name.startswith("val-")
    }
    return Source(files, "records", lambda path: sum(map(frames, path.iterdir())), captions)


def frames(path: Path) -> int:
    data, position, found = path.read_bytes(), 0, 0
    while position < len(data):
        position += 16 + int.from_bytes(data[position : position + 8], "little")
        found += 1
    return found


def huggingface(tmp_path: Path) -> Source:
    rows = {
        "image": [{"bytes": image(number), "path": None} for number in range(3)],
        "caption": ["a dog", "a cat", "a bird"],
        "label": [3, 4, 5],
    }
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), label=datasets.Value("int64")
    )
    saved = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(str(tmp_path / "saved"))
    found = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in found}
    return Source(files, "saved", lambda path: 3 * len(json.loads((path / "dataset_dict.json").read_bytes())["splits"]))


SOURCES: dict[str, tuple[str, int, Callable[..., Source]]] = {  # reader, how many, the source to damage
    "karpathy": ("coco", 2000, karpathy),
    "cuhk-pedes": ("cuhk-pedes", 1200, lambda: pedes("file_path", True)),
    "icfg-pedes": ("icfg-pedes", 400, lambda: pedes("file_path", True)),
    "rstpreid": ("rstpreid", 800, lambda: pedes("img_path", False)),
    "csv": ("table", 1200, lambda: table("csv")),
    "tsv": ("table", 400, lambda: table("tsv")),
    "jsonl": ("table", 1200, lambda: table("jsonl")),
    "parquet": ("table", 500, lambda: table("parquet")),
    "folder": ("folder", 400, lambda: folder(False)),
    "metadata": ("folder", 500, lambda: folder(True)),
    "cub": ("cub", 300, fine_grained),
    "webdataset": ("webdataset", 800, webdataset),
    "tfrecord": ("tfrecord", 300, tfrecord),
    "huggingface": ("huggingface", 100, huggingface),
}


def frame(record: bytes) -> bytes:
    """A record as it stands in a shard."""
    length = len(record).to_bytes(8, "little")
    return b"".join(part for data in (length, record) for part in (data, masked_crc32c(data).to_bytes(4, "little")))


class Damage:
    """Random changes to a source."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def source(self, source: Source, folder: Path) -> None:
        """Write a source with something wrong."""
        files = dict(source.files)
        name = self.random.choice(sorted(name for name in files if name not in IMAGES) or sorted(files))
        kind = self.random.random()
        if kind < 0.5 and name.endswith((".json", ".jsonl")):
            files[name] = self.json(files[name], by_line=name.endswith("l"))
        elif kind < 0.7 and name.startswith("records/"):
            length = int.from_bytes(files[name][:8], "little")
            files[name] = frame(self.bytes(files[name][12 : 12 + length])) + files[name][16 + length :]
        elif kind < 0.9:
            for _ in range(self.random.choice((1, 1, 2, 5))):
                files[name] = self.bytes(files[name])
        else:
            odd = self.random.choice(["a b", "a\nb", "ä", "..a", "-", "%s", "'", "*", "[x]"])
            path = Path(name)
            files[str(path.with_name(odd + path.suffix))] = files.pop(name)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        self.places(folder)

    def places(self, folder: Path) -> None:
        """Sometimes among the pictures: links out of the folder, a pipe, a folder named as a picture."""
        images = folder / "images"
        if self.random.random() < 0.2 and images.is_dir():
            (images / "leaves.jpg").symlink_to("/etc/passwd")
            (images / "link").symlink_to(folder)
            os.mkfifo(images / "pipe.jpg")
            (images / "folder.jpg").mkdir()

    def json(self, data: bytes, by_line: bool) -> bytes:
        lines = data.splitlines(keepends=True) if by_line else [data]
        place = self.random.randrange(len(lines))
        value = json.loads(lines[place])
        for _ in range(self.random.choice((1, 1, 2, 4))):
            value = self.value(value)
        lines[place] = json.dumps(value).encode() + b"\n"
        return b"".join(lines)

    def value(self, value: Any) -> Any:
        """A value with one part, at any depth, replaced, removed or doubled."""
        value = copy.copy(value)
        if not isinstance(value, dict | list) or not value or self.random.random() < 0.1:
            return copy.deepcopy(self.random.choice(ODD_VALUES))
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = self.random.choice(keys)
        kind = self.random.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2 and isinstance(value, list):
            value.append(value[key])
        elif kind < 0.2:
            value[self.random.choice(ODD_TEXTS)] = value.pop(key)
        else:
            value[key] = self.value(value[key])
        return value

    def bytes(self, data: bytes) -> bytes:
        if not data:
            return self.random.choice(ODD_BYTES)
        start = self.random.randrange(len(data))
        end = min(len(data), start + self.random.choice((1, 1, 2, 8, 100)))
        return self.random.choice(
            [
                data[:start],
                data[:start] + data[end:],
                data[:end] + data[start:],
                data[:start] + bytes([data[start] ^ 1 << self.random.randrange(8)]) + data[start + 1 :],
                data[:start] + self.random.randbytes(end - start) + data[end:],
                data[:start] + self.random.choice(ODD_BYTES) + data[start:],
                data[:start] + self.random.choice(ODD_TEXTS).encode("utf-8", "surrogatepass") + data[end:],
            ]
        )


def unconverted(records: Iterator[Record], size: int, workers: int, folder: Path) -> Iterator[tuple[Record, Converted]]:
    """What `convert_images` gives, without decoding."""
    for record in records:
        try:
            data = record.image if isinstance(record.image, bytes) else read_source(record.image, folder)
            yield (
                record,
                Converted(data, len(data), checksum=short_checksum(data)) if data else Converted(b"", 0, "is empty"),
            )
        except ImageError as error:
            yield record, Converted(b"", 0, error.reason)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_damaged_source_is_read_whole_or_refused_with_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "convert_images", unconverted)
    read, count, make = SOURCES[name]
    source = make(tmp_path) if name == "huggingface" else make()
    folder = tmp_path / "source"
    read_whole = 0
    sentences = []
    for number in range(count * SCALE):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        Damage(f"{name} {number}").source(source, folder)
        (folder / "images").mkdir(exist_ok=True)
        try:
            read_and_store(read, source, folder, tmp_path / "work", store=read_whole % STORED == 0)
            read_whole += 1
        except UserError as error:
            sentences.append(str(error))
        except Exception as error:
            raise AssertionError(f"{name} {number}: {type(error).__name__}: {error}") from error
    assert read_whole > 0
    assert sentences
    assert not [sentence for sentence in sentences if "\n" in sentence or len(sentence) > 2000]


def read_and_store(reader: str, source: Source, folder: Path, work: Path, store: bool) -> None:
    annotations = folder / source.annotations
    taken = inspect.signature(READERS.get(reader)).parameters
    paths = {"annotations": annotations, "images": folder / "images"}
    records = list(READERS.get(reader)(**{name: path for name, path in paths.items() if name in taken}))
    counted = source.counted(annotations)
    assert source.what(records) == counted, f"{source.what(records)} of {counted}"
    assert not any(isinstance(record.image, Path) and ".." in record.image.parts for record in records)
    if not store or not records:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    with_splits = [Record(**{**vars(record), "split": record.split or "train"}) for record in records]
    filled = prepare._fill(
        with_splits, work, {}, size=0, processes=1, on_error="skip", folder=folder / "images", progress=False
    )
    stored = sum(facts.images for facts in filled.manifest.splits.values())
    assert stored + len(filled.manifest.skipped) == len(records)


@pytest.mark.parametrize("name", SOURCES)
def test_each_source_is_damaged_in_its_own_way(name, tmp_path):
    source = SOURCES[name][2](*[tmp_path] * (name == "huggingface"))
    folder = tmp_path / "source"
    found = set()
    for number in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        Damage(f"{name} {number}").source(source, folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        found.add(tuple((str(path.relative_to(folder)), path.read_bytes()) for path in paths))
    assert len(found) > 40
    assert sum(dict(files) == source.files for files in found) == 0


@pytest.mark.slow
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_damaged_picture_is_converted_or_has_a_problem(format):
    data = image(3, format)
    for number in range(150 * SCALE):
        damage = Damage(f"{format} {number}")
        converted = convert_image(damage.bytes(damage.bytes(data)), 4)
        assert bool(converted.data) != bool(converted.problem), number
        assert "\n" not in (converted.problem or ""), number
