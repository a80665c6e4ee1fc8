"""Tar shards as webdataset writes them: files that share their name up to the first dot are one image's.

train-000000.tar: 000017.jpg  000017.txt               a caption a line
                  000018.png  000018.json  000018.cls  {"caption": "A dog.", "label": 3}, "captions": [...]; a label

.json may have "tokens", the words of each caption as a list of lists, where the captions came split into words.
"""

import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from crosspair.data.readers.schema import CAPTION_COLUMNS, SchemaError, captions_of, split_name, tokens_of
from crosspair.data.records import Record
from crosspair.data.tokens import Tokenizer
from crosspair.errors import UserError
from crosspair.registry import register_reader

MAX_BYTES = 1 << 30  # of one file in a shard
_IMAGES = {"jpg", "jpeg", "png", "webp"}
_FIX = "expected a tar shard, a folder of them, or a pattern such as shards/train-{000000..000009}.tar"
_BRACES = re.compile(r"\{([^{}]*)\}")
_SPLITS = {"train", "val", "test"}


@register_reader("webdataset")
def read_webdataset(annotations: Path) -> Iterator[Record]:
    """Tar shards as webdataset writes them, with the images inside.

    Gives a record per sample, in the order of the shards, read as they are needed.
    annotations: a shard, a folder of them or a pattern with {a,b} and {000..009}. label: `.cls`, or `label` in `.json`,
    else the sample's number. split: what a shard's name begins with, if it is a split's. image_id: shard/key.
    A sample without an image or a caption becomes a record without it. Raises UserError.
    """
    shards = _shards(annotations)
    number = 0
    labelled: bool | None = None
    tokenized: bool | None = None
    for shard in shards:
        split = split_name(re.split("[^A-Za-z]", shard.stem, maxsplit=1)[0])
        with _named_errors(str(shard)), shard.open("rb") as file:
            for sample in _samples(file):
                labelled = sample.label is not None if labelled is None else labelled
                if labelled != (sample.label is not None):
                    raise SchemaError(f"only some samples have a label ({sample.key[:80]!r} differs); give it to all")
                tokenized = sample.tokens is not None if tokenized is None else tokenized
                if tokenized != (sample.tokens is not None):
                    raise SchemaError(f"only some samples have tokens ({sample.key[:80]!r} differs); give them to all")
                label = number if sample.label is None else sample.label
                name = f"{shard.stem}/{sample.key}"
                split = split if split in _SPLITS else ""
                yield Record(name, sample.image, label, tuple(sample.captions), split, sample.tokens)
                number += 1


def read_samples(name: str, file: IO[bytes]) -> "Iterator[Sample]":
    """The samples of one shard in their order, read as they are needed. Raises UserError with the shard's name."""
    with _named_errors(name):
        yield from _samples(file)


@contextmanager
def _named_errors(shard: str) -> Iterator[None]:
    """Turn errors in a shard into one sentence with its name."""
    try:
        yield
    except SchemaError as problem:
        raise UserError(f"{shard} can't be used: {problem}; {_FIX}") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise UserError(f"{shard} is damaged or no tar shard ({error}); copy it again") from error


def expand_braces(pattern: str) -> list[str]:
    """a-{0..2}{x,y} as a-0x, a-0y, ... A range counts up, with leading zeros where its first number has them."""
    parts = _BRACES.split(pattern)
    choices = [[part] if place % 2 == 0 else _choices(part) for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(text: str) -> list[str]:
    ends = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", text)
    if not ends:
        return text.split(",")
    width = len(ends[1]) if ends[1].startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(ends[1]), int(ends[2]) + 1)]


def _shards(annotations: Path) -> list[Path]:
    if annotations.is_dir():
        shards = sorted(annotations.glob("*.tar"))
    else:
        shards = [annotations] if annotations.exists() else [Path(name) for name in expand_braces(str(annotations))]
    if not shards:
        raise UserError(f"{annotations} names no shards; {_FIX}")
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{missing[0]} does not exist ({len(missing)} of {len(shards)} shards are missing); {_FIX}")
    return shards


@dataclass
class Sample:
    """The image, captions, label (if any) and the captions' words (if any) of one sample of a shard."""

    key: str
    image: bytes = b""
    captions: list[str] = field(default_factory=list)
    label: int | None = None
    tokens: tuple[tuple[str, ...], ...] | None = None

    def texts(self, tokenizer: Tokenizer) -> Sequence[str | Sequence[str]]:
        """The texts for a text encoder: the captions or, for `stored`, their words if there are any."""
        return self.tokens if tokenizer == "stored" and self.tokens is not None else self.captions


class _CheckedHeader(tarfile.TarInfo):
    """Headers of which a damaged or missing one is an error: tarfile alone takes either for the end of the shard."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark of the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset:,}") from error


def _samples(file: IO[bytes]) -> Iterator[Sample]:
    """The samples of a shard; the files of one lie next to each other."""
    sample: Sample | None = None
    fields: dict[str, Any] = {}  # of its .json, which may come before its captions
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_CheckedHeader) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isdir() or not path.name or path.name.startswith("."):
                continue
            if not member.isfile():
                raise SchemaError(f"{member.name[:80]!r} is a link or a device; a shard must hold the files themselves")
            stem, _, extension = path.name.partition(".")
            key = str(path.with_name(stem))
            if sample is None or sample.key != key:
                if sample is not None:
                    yield _finished(sample, fields)
                sample, fields = Sample(key), {}
            content, where = _content(tar, member), f"{member.name[:80]!r}"
            if extension.lower() == "json":
                fields = _object(content, where)
            else:
                _add(sample, extension.lower(), content, where)
    if sample is not None:
        yield _finished(sample, fields)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_BYTES:
        raise SchemaError(f"{member.name[:80]!r} has {member.size:,} bytes; at most {MAX_BYTES:,} are read")
    file = tar.extractfile(member)
    return file.read() if file else b""


def _add(sample: Sample, extension: str, content: bytes, where: str) -> None:
    """Enter one file other than .json; those of other kinds are left alone."""
    if extension in _IMAGES:
        if sample.image:
            raise SchemaError(f"{where} is the sample's second picture")
        sample.image = content
    elif extension == "txt":
        sample.captions += [line.strip() for line in _text(content, where).splitlines() if line.strip()]
    elif extension == "cls":
        sample.label = _label(_text(content, where).strip(), where)


def _finished(sample: Sample, fields: dict[str, Any]) -> Sample:
    """A sample with what its .json says besides its other files."""
    where = f"{f'{sample.key}.json'[:80]!r}"
    column = next((name for name in CAPTION_COLUMNS if name in fields), None)
    if column and not sample.captions:  # img2dataset writes the caption as .txt and again into .json
        sample.captions += captions_of(fields[column], where, column)
    if "tokens" in fields:
        sample.tokens = tokens_of(fields["tokens"], where, len(sample.captions))
    if "label" in fields:
        sample.label = _label(str(fields["label"]), where)
    return sample


def _label(text: str, where: str) -> int:
    if not re.fullmatch("-?[0-9]{1,20}", text):
        raise SchemaError(f"{where} has the label {text[:40]!r}, not a whole number")
    return int(text)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{where} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(_text(content, where))
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{where} is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise SchemaError(f"{where} is not an object")
    return fields
