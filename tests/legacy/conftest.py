"""Reference arrays of the original's towers, and writers of the files that TensorFlow would write."""

import struct
from collections.abc import Callable
from importlib.resources import files
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from cmpl.legacy.crc32c import masked_crc32c
from cmpl.verify import reference

Arrays = dict[str, np.ndarray]

AVERAGE = "/ExponentialMovingAverage"


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Arrays]:
    """File name without suffix to its arrays: those that come with the package and those beside the tests."""

    def load(name: str) -> Arrays:
        packaged = files("cmpl.verify") / "fixtures" / f"{name}.npz"
        arrays = reference.load(name) if packaged.is_file() else {}
        beside = Path(__file__).parents[1] / "oracle" / "legacy" / f"{name}.npz"
        if beside.is_file():
            with np.load(beside) as file:
                arrays |= dict(file)
        assert arrays, f"there is no reference file {name}"
        return arrays

    return load


@pytest.fixture(scope="session")
def oracle_weights(oracle: Callable[[str], Arrays]) -> Callable[[str], Arrays]:
    """File name without suffix to the weights in it, under their TensorFlow names."""
    return lambda name: reference.weights(oracle(name))


@pytest.fixture
def trained(oracle: Callable[[str], Arrays]) -> Arrays:
    """The averages of the original's run, beside plain values and optimizer slots that must not be taken."""
    variables = dict(oracle("checkpoint/averages"))
    for name in list(variables):
        if name.endswith(AVERAGE):
            plain = name.removesuffix(AVERAGE)
            variables[plain] = variables[name] + 1
            variables[f"{plain}/Adam"] = variables[f"{plain}/Adam_1"] = np.zeros(3, dtype=np.float32)
    return {**variables, "global_step": np.array(39), "Wfc": np.zeros((32, 12), dtype=np.float32)}


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, value: int | bytes) -> bytes:
    """One protocol buffer field: a number or a string (or inner message)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def table(entries: list[tuple[bytes, bytes]], *, per_block: int = 3) -> bytes:
    """A sorted string table of `per_block` entries a block, keys sharing prefixes as the format allows."""
    output = bytearray()

    def add_block(block: list[tuple[bytes, bytes]]) -> bytes:
        """Append a block and return its handle."""
        content, previous = bytearray(), b""
        for key, value in block:
            equal = takewhile(lambda pair: pair[0] == pair[1], zip(previous, key, strict=False))
            shared = sum(1 for _ in equal)
            content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            previous = key
        content += struct.pack("<II", 0, 1)  # one restart point, at 0
        handle = varint(len(output)) + varint(len(content))
        checked = bytes(content) + b"\0"
        output.extend(checked + struct.pack("<I", masked_crc32c(checked)))
        return handle

    blocks = [entries[start : start + per_block] for start in range(0, len(entries), per_block)]
    index = [(block[-1][0], add_block(block)) for block in blocks]
    handles = add_block([]) + add_block(index)
    return bytes(output) + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def shape_message(array: np.ndarray) -> bytes:
    return b"".join(field(2, field(1, size)) for size in array.shape)


TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}


@pytest.fixture(scope="session")
def write_v2() -> Callable[..., None]:
    """Write a checkpoint of format V2 with one data file."""

    def write(prefix: Path, variables: Arrays) -> None:
        data, entries = bytearray(), [(b"", field(1, 1))]
        for name, array in sorted(variables.items()):
            raw = array.tobytes()
            entry = field(1, TYPES[str(array.dtype)]) + field(2, shape_message(array)) + field(4, len(data))
            entry += field(5, len(raw)) + varint(6 << 3 | 5) + struct.pack("<I", masked_crc32c(raw))
            entries.append((name.encode(), entry))
            data += raw
        prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries))
        prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)

    return write


@pytest.fixture(scope="session")
def write_v1() -> Callable[..., None]:
    """Write a checkpoint of format V1: one file."""

    def write(path: Path, variables: Arrays) -> None:
        meta, entries = b"", []
        for name, array in sorted(variables.items()):
            declared = field(1, name.encode()) + field(2, shape_message(array)) + field(3, TYPES[str(array.dtype)])
            meta += field(1, declared)
            if array.dtype.kind == "f":
                values = field(5 if array.dtype == np.float32 else 6, array.tobytes())
            else:
                number = {"int64": 10, "bool": 11}.get(str(array.dtype), 7)
                values = field(number, b"".join(varint(int(value)) for value in array.flat))
            tensor = field(1, TYPES[str(array.dtype)]) + field(2, shape_message(array)) + values
            saved = field(1, name.encode()) + field(2, b"") + field(3, tensor)
            entries.append((b"\0" + name.encode(), field(2, saved)))
        path.write_bytes(table([(b"", field(1, meta)), *entries]))

    return write
