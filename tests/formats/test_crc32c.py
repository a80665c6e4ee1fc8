import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.formats.crc32c import crc32c, masked_crc32c


def bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_check_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@given(st.binary(max_size=64), st.integers(0, 3000))
def test_any_length_gives_what_the_shift_register_gives(pattern: bytes, length: int) -> None:
    data = (pattern or b"\0") * (length // max(1, len(pattern)) + 1)
    assert crc32c(data[:length]) == bit_by_bit(data[:length])


def test_the_stored_form_is_rotated_and_shifted() -> None:
    assert masked_crc32c(b"") == 0xA282EAD8
    crc = crc32c(b"foo")
    assert masked_crc32c(b"foo") == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32 != crc
