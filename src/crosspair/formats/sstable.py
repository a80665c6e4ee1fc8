"""The sorted string table (LevelDB's file format) in which TensorFlow keeps a checkpoint's index."""

from collections.abc import Iterator

from crosspair.formats.crc32c import masked_crc32c
from crosspair.formats.protobuf import read_varint

MAGIC = 0xDB4775248B80FB57
_FOOTER = 48  # bytes: two handles of up to 20 bytes each, then the magic number
_TRAILER = 5  # bytes behind each block: compression, checksum


def is_table(data: memoryview) -> bool:
    """Whether the bytes end as a table does."""
    return len(data) >= _FOOTER and int.from_bytes(data[-8:], "little") == MAGIC


def read_table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Keys, sorted, and values of a table; values are views of `data`. ValueError for damage and for compression."""
    if not is_table(data):
        raise ValueError("the end is not that of a table")
    footer = data[-_FOOTER:-8]
    _, position = _read_handle(footer, 0)  # of the meta index, which holds nothing here
    index, _ = _read_handle(footer, position)
    for _, handle in _read_block(data, *index):
        yield from _read_block(data, *_read_handle(handle, 0)[0])


def _read_handle(data: memoryview, position: int) -> tuple[tuple[int, int], int]:
    """(offset, size) of a block, and the position behind the handle."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _read_block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Entries of one block: each key shares a prefix with the one before it."""
    checked, stored = data[offset : offset + size + 1], data[offset + size + 1 : offset + size + _TRAILER]
    if len(stored) < 4 or size < 4:
        raise ValueError("a block runs past the end")
    if masked_crc32c(checked) != int.from_bytes(stored, "little"):
        raise ValueError(f"the checksum of the block at byte {offset} is wrong")
    if checked[size]:
        raise ValueError("its blocks are compressed")
    block = checked[:size]
    restarts = int.from_bytes(block[-4:], "little")
    end, position, key = size - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if position + unshared + length > end:
            raise ValueError("an entry runs past its block")
        key = key[:shared] + bytes(block[position : position + unshared])
        position += unshared
        yield key, block[position : position + length]
        position += length
