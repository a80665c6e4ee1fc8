"""TensorFlow checkpoints, both formats, read without TensorFlow.

V2 (`NAME.index` and `NAME.data-00000-of-00001`, TensorFlow 0.12 and later): the index is a table of entries that say
where in the raw data files a variable lies. V1 (one file, as TF-slim's older ImageNet models): the table holds the
variables themselves.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from crosspair.errors import UserError
from crosspair.formats import protobuf
from crosspair.formats.crc32c import masked_crc32c
from crosspair.formats.sstable import is_table, read_table

# TensorFlow's DataType numbers.
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "b1", 17: "<u2", 19: "<f2"}
# Field of a V1 tensor that holds its values packed, and how: raw numbers or varints.
_RAW_FIELDS = {"<f4": 5, "<f8": 6}
_VARINT_FIELDS = {"<i4": 7, "<i2": 7, "i1": 7, "u1": 7, "<u2": 7, "<i8": 10, "b1": 11}


class Checkpoint(Mapping[str, np.ndarray]):
    """Variable name to array, read when asked for. Looking up a damaged variable raises UserError."""

    def __init__(self, path: Path, readers: dict[str, Callable[[], np.ndarray]]) -> None:
        self._path = path
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        read = self._readers[name]
        try:
            return read()
        except (ValueError, OSError) as error:
            raise UserError(_damaged(self._path, f"variable {name}: {error}")) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`: a V2 prefix (`.../model.ckpt-39`), its `.index` file, or a V1 file.

    Raises UserError for a missing, damaged or unsupported file (compressed index, partitioned variables). Checksums of
    the index are checked here, those of a variable when it is read.
    """
    path = Path(path)
    index = path if path.suffix == ".index" else path.with_name(f"{path.name}.index")
    try:
        if index.is_file():
            return Checkpoint(path, _v2_readers(index))
        if not path.is_file():
            raise UserError(
                f"no checkpoint at {path}; expected {index.name} and its data files, or one V1 file, in {path.parent}"
            )
        return Checkpoint(path, _v1_readers(path))
    except (ValueError, OSError) as error:
        raise UserError(_damaged(path, str(error))) from error


def _damaged(path: Path, what: str) -> str:
    return f"can't read the checkpoint {path}: {what}; expected a whole TensorFlow checkpoint, copy it again"


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _dtype(number: int) -> np.dtype:
    if number not in _DTYPES:
        raise ValueError(f"values of TensorFlow type {number} are not supported")
    return np.dtype(_DTYPES[number])


def _shape(message: memoryview) -> list[int]:
    """Sizes in a TensorShapeProto."""
    return [protobuf.integer(dimension, 1) for dimension in protobuf.messages(message, 2)]


def _v2_readers(index: Path) -> dict[str, Callable[[], np.ndarray]]:
    entries = {key.decode(): entry for key, entry in read_table(_map(index))}
    header = entries.pop("", None)
    if header is None:
        raise ValueError("the index has no header")
    if protobuf.integer(header, 2):
        raise ValueError("its numbers are big-endian")
    count = protobuf.integer(header, 1)
    names = [f"{index.name.removesuffix('.index')}.data-{shard:05d}-of-{count:05d}" for shard in range(count)]
    shards = [_map(index.with_name(name)) for name in names]
    return {name: partial(_read_v2, entry, shards) for name, entry in entries.items()}


def _read_v2(entry: memoryview, shards: list[memoryview]) -> np.ndarray:
    """A variable by its BundleEntryProto."""
    if any(True for _ in protobuf.messages(entry, 7)):
        raise ValueError("it is stored in partitions, which is not supported")
    dtype = _dtype(protobuf.integer(entry, 1))
    shape = [size for message in protobuf.messages(entry, 2) for size in _shape(message)]
    shard, offset, size = (protobuf.integer(entry, number) for number in (3, 4, 5))
    if shard >= len(shards) or offset + size > len(shards[shard]) or size != prod(shape) * dtype.itemsize:
        raise ValueError(f"its {size} bytes at byte {offset} of data file {shard} are not there or not {shape}")
    content = shards[shard][offset : offset + size]
    if masked_crc32c(content) != protobuf.integer(entry, 6):
        raise ValueError("its checksum is wrong")
    return np.frombuffer(content, dtype).reshape(shape).copy()


def _v1_readers(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    data = _map(path)
    if not is_table(data):
        raise ValueError("it is neither a V2 prefix nor a V1 file")
    shapes: dict[str, list[int]] = {}
    readers: dict[str, Callable[[], np.ndarray]] = {}
    for key, entry in read_table(data):
        if key == b"":  # SavedTensorSliceMeta: names and shapes of all variables
            for meta in protobuf.messages(entry, 1):
                for tensor in protobuf.messages(meta, 1):
                    shape = [size for message in protobuf.messages(tensor, 2) for size in _shape(message)]
                    shapes[protobuf.text(tensor, 1)] = shape
            continue
        for saved in protobuf.messages(entry, 2):
            name = protobuf.text(saved, 1)
            if name not in shapes or name in readers:
                raise ValueError(f"variable {name} is not declared, or stored in partitions, which is not supported")
            readers[name] = partial(_read_v1, saved, shapes[name])
    return readers


def _read_v1(saved: memoryview, shape: list[int]) -> np.ndarray:
    """A variable by its SavedSlice."""
    (tensor,) = protobuf.messages(saved, 3)
    dtype = _dtype(protobuf.integer(tensor, 1))
    code = dtype.str.lstrip("|")  # numpy's sign for types of one byte
    if code in _RAW_FIELDS:
        values = np.frombuffer(b"".join(protobuf.messages(tensor, _RAW_FIELDS[code])), dtype)
    elif code in _VARINT_FIELDS:
        values = np.array(protobuf.integers(tensor, _VARINT_FIELDS[code])).astype(dtype)
    else:
        raise ValueError(f"{dtype} values of a V1 checkpoint are not supported")
    return values.reshape(shape).copy()
