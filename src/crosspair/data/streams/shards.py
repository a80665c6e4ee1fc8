"""Shards of a stream, each read from start to end: on a server, on this machine or on the hub."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from crosspair.data.images import read_image_bytes
from crosspair.data.readers.huggingface import image_of
from crosspair.data.readers.schema import SchemaError, captions_of, find_columns, kind_of, tokens_of
from crosspair.data.readers.webdataset import Sample, expand_braces, read_samples
from crosspair.data.streams.http import HttpFile
from crosspair.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

READ_AHEAD = 1 << 20  # bytes a request to the server's connection asks for
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_EXPECTED = (
    "expected tar shards (http://host/train-{000000..000123}.tar, a path like it, a .txt file with one a line) "
    "or the name of a data set on the hub (user/name)"
)


class Shard(Protocol):
    """A part of a stream; `name` is its address."""

    @property
    def name(self) -> str: ...

    def samples(self) -> Iterator[Sample]:
        """The samples, in the same order every time. Raises UserError."""
        ...


def find_shards(source: str) -> list[Shard]:
    """The shards that a source names: a pattern, a list in a .txt file, or a data set. Raises UserError."""
    if source.endswith(".txt"):
        return [_tar_shard(name) for name in _lines(Path(source))]
    if "://" in source or source.endswith((".tar", ".tar.gz", ".tgz")) or "{" in source:
        return [_tar_shard(name) for name in expand_braces(source)]
    if Path(source).is_dir() and any(Path(source).glob("*.tar")):
        return [_tar_shard(str(path)) for path in sorted(Path(source).glob("*.tar"))]
    if Path(source).is_dir() or _HUB_NAME.fullmatch(source):
        return _hub_shards(source)
    raise UserError(f"'{source}' is no stream; {_EXPECTED}")


@dataclass(frozen=True)
class TarShard:
    """A tar of the webdataset kind, behind http(s) or on this machine."""

    name: str

    def samples(self) -> Iterator[Sample]:
        with self._open() as file:
            yield from read_samples(self.name, file)

    def _open(self) -> io.BufferedReader:
        if "://" in self.name:
            return io.BufferedReader(HttpFile(self.name), READ_AHEAD)
        try:
            return Path(self.name).open("rb")
        except OSError as error:
            raise UserError(f"{self.name} can't be read ({error.strerror}); {_EXPECTED}") from error


@dataclass(frozen=True)
class HubShard:
    """One of the `count` files (or parts) of a data set that `datasets` streams."""

    source: str
    rows: "IterableDataset"
    number: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.source} part {self.number + 1} of {self.count}"

    def samples(self) -> Iterator[Sample]:
        try:
            rows = self.rows.shard(self.count, self.number)
            image_column, caption_column = find_columns(rows.column_names or [], None, None)
            for number, row in enumerate(rows):
                yield self._sample(row, f"row {number}", image_column, caption_column)
        except SchemaError as problem:
            raise UserError(f"{self.name} can't be used: {problem}; name other data, or prepare it") from None
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{self.name} can't be read ({reason}); check the network and the data set") from error

    def _sample(self, row: dict[str, Any], where: str, image_column: str, caption_column: str) -> Sample:
        image = image_of(row[image_column], Path(), where, image_column)
        label = row.get("label")
        if not isinstance(label, int | None):
            raise SchemaError(f"{where} has {kind_of(label)} as 'label', not a whole number")
        captions = captions_of(row[caption_column], where, caption_column)
        return Sample(
            str(row.get("image_id", where)),
            image if isinstance(image, bytes) else read_image_bytes(image),
            captions,
            label,
            tokens_of(row["tokens"], where, len(captions)) if "tokens" in row else None,
        )


def _tar_shard(name: str) -> Shard:
    scheme = name.partition("://")[0] if "://" in name else ""
    if scheme not in {"", "http", "https"}:
        raise UserError(f"{name} can't be read: only http:// and https:// are; {_EXPECTED}")
    return TarShard(name if scheme else str(Path(name).absolute()))


def _lines(path: Path) -> list[str]:
    """The shards a .txt file names, a pattern a line; relative paths start at the file's folder."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); {_EXPECTED}") from error
    names = [name for line in lines if line for name in expand_braces(line)]
    if not names:
        raise UserError(f"{path} names no shards; {_EXPECTED}")
    return [name if "://" in name else str(path.parent / name) for name in names]


def _hub_shards(source: str) -> list[Shard]:
    """The files of the split `train`."""
    import datasets

    try:
        rows: Any = datasets.load_dataset(source, split="train", streaming=True)
        for column, kind in (rows.features or {}).items():
            if isinstance(kind, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source} can't be opened as a data set ({reason}); {_EXPECTED}") from error
    return [HubShard(source, rows, number, rows.num_shards) for number in range(rows.num_shards)]
