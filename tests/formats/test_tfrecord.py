"""TFRecord framing: records come back whole, and no damaged byte is read as one."""

from pathlib import Path

import pytest

from crosspair.formats.crc32c import masked_crc32c
from crosspair.formats.tfrecord import SequenceExample, read_record

RECORDS = [b"first", b"", b"third record"]


def frame(record: bytes) -> bytes:
    length = len(record).to_bytes(8, "little")
    return b"".join(part for data in (length, record) for part in (data, masked_crc32c(data).to_bytes(4, "little")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "records").write_bytes(b"".join(map(frame, RECORDS)))
    return tmp_path / "records"


def read(path: Path) -> list[bytes]:
    found, end = [], path.stat().st_size
    with path.open("rb") as file:
        while (position := file.tell()) < end:
            found.append(bytes(read_record(file, position)))
    return found


def test_records_come_back_in_their_order(path: Path) -> None:
    assert read(path) == RECORDS


def test_every_changed_byte_is_found(path: Path) -> None:
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"its length is not readable|its checksum is wrong"):
            read(path)


def test_a_record_that_is_cut_off_is_found(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="it runs past the end of the file"):
        read(path)


def test_a_feature_that_is_missing_is_named() -> None:
    example = SequenceExample.parse(memoryview(b""))
    with pytest.raises(ValueError, match="it has no image/data"):
        example.data("image/data")
    with pytest.raises(ValueError, match="it has no image/caption"):
        example.texts("image/caption")
