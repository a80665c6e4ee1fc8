"""CRC-32C (Castagnoli), the checksum in TensorFlow's records and checkpoints, fast enough for gigabytes in numpy.

The checksum is linear over bits, so the lanes of a buffer are folded side by side, one byte of each a step, and then
joined in pairs: the left one is moved past as many zero bytes as the right one is long, and added.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78  # bits reversed
_LANE = 256  # bytes
_MASK_DELTA = 0xA282EAD8


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TensorFlow stores it: rotated and shifted, so that a file of checksums has another one."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C of `data`, 0..2**32 - 1."""
    if len(data) < _LANE:
        crc = 0xFFFFFFFF
        table = _byte_table().tolist()
        for byte in bytes(data):
            crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    # Zeros in front leave a checksum that starts at 0 alone; starting at all ones is the same as inverting 4 bytes.
    lanes = np.zeros((-(-len(data) // _LANE), _LANE), dtype=np.uint8)
    flat = lanes.reshape(-1)[lanes.size - len(data) :]
    flat[:] = np.frombuffer(data, dtype=np.uint8)
    flat[:4] ^= 0xFF
    return int(_join(_fold(lanes))) ^ 0xFFFFFFFF


def _fold(lanes: NDArray[np.uint8]) -> Words:
    """Checksum, from 0, of each row."""
    table = _byte_table()
    crcs = np.zeros(len(lanes), dtype=np.uint32)
    for column in np.ascontiguousarray(lanes.T):
        crcs = table[(crcs ^ column) & 0xFF] ^ crcs >> 8
    return crcs


def _join(crcs: Words) -> np.uint32:
    length = _LANE
    while len(crcs) > 1:
        if len(crcs) % 2:
            crcs = np.concatenate([np.zeros(1, dtype=np.uint32), crcs])
        crcs = _append_zeros(crcs[0::2], length) ^ crcs[1::2]
        length *= 2
    return np.uint32(crcs[0])


def _append_zeros(crcs: Words, length: int) -> Words:
    """Checksums after `length` further zero bytes; length is the lane's times a power of two."""
    tables = _zeros_tables(length)
    moved = np.zeros_like(crcs)
    for byte in range(4):
        moved ^= tables[byte][crcs >> 8 * byte & 0xFF]
    return moved


@lru_cache(maxsize=64)
def _zeros_tables(length: int) -> Words:
    """[4, 256]: what each value of each byte of a checksum becomes after `length` zero bytes."""
    values = np.arange(256, dtype=np.uint32)
    tables = np.stack([values << 8 * byte for byte in range(4)])
    if length == _LANE:
        table = _byte_table()
        for _ in range(_LANE):
            tables = table[tables & 0xFF] ^ tables >> 8
        return tables
    return _append_zeros(_append_zeros(tables, length // 2), length // 2)


@lru_cache(maxsize=1)
def _byte_table() -> Words:
    """[256]: what a byte becomes after eight steps of the shift register."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table
