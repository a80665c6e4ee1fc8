import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crosspair.data.readers.tfrecord import read_tfrecords
from crosspair.data.records import Record
from crosspair.errors import UserError
from tests.fixtures.original import sequence_example
from tests.fixtures.paths import TFRECORDS


def expected_records(name: str) -> list[dict[str, Any]]:
    return [record for shard in json.loads((TFRECORDS / f"{name}.json").read_text()).values() for record in shard]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TFRECORDS / "flickr", tmp_path / "flickr"))


@pytest.mark.parametrize(("name", "directory", "first_label"), [("flickr", "images/", 0), ("pedes", "imgs/", 1)])
def test_each_picture_comes_once_with_all_its_captions(name: str, directory: str, first_label: int) -> None:
    expected = expected_records(name)
    records = list(read_tfrecords(TFRECORDS / name))
    assert len(records) == len({record["filename"] for record in expected}) == 12
    for record in records:
        told = [other for other in expected if other["filename"] == directory + record.image_id]
        assert isinstance(record.image, bytes)
        assert hashlib.sha256(record.image).hexdigest() == told[0]["jpeg_sha256"]
        assert {(record.label + first_label, record.split)} == {(other["label"], other["split"]) for other in told}
        assert record.tokens is not None
        assert sorted(record.tokens) == sorted(tuple(other["caption"][1:-1]) for other in told)
        assert record.captions == tuple(" ".join(words) for words in record.tokens)


def test_pictures_come_by_split_and_label_and_the_order_does_not_depend_on_the_shuffled_records() -> None:
    records = list(read_tfrecords(TFRECORDS / "flickr"))
    assert [record.split for record in records] == ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    assert [record.label for record in records] == list(range(12))


@pytest.fixture
def coco(tmp_path: Path, write_tfrecords: Callable[..., None]) -> Path:
    """Shards by the flags of the original's script for COCO: 32 of train, and one of restval under the name val."""
    home = "/home/me/Dataset/COCO/image"
    entries = [
        *((f"train2014/COCO_train2014_{number:012d}.jpg", number, "train") for number in range(10)),
        *((f"val2014/COCO_val2014_{number:012d}.jpg", number, "restval") for number in range(10, 14)),
        *((f"val2014/COCO_val2014_{number:012d}.jpg", number, "test") for number in range(14, 17)),
    ]
    for kind, split, shards in (("train", "train", 32), ("val", "restval", 1), ("test", "test", 1)):
        records = [
            sequence_example(b"picture %d" % label, f"{home}/{name}", label, split, ["caption", str(caption)])
            for caption in range(5)
            for name, label, own in entries
            if own == split
        ]
        write_tfrecords(tmp_path / "coco", kind, records, shards)
    return tmp_path / "coco"


def test_cocos_shards_of_val_hold_karpathys_restval(coco: Path) -> None:
    records = list(read_tfrecords(coco))
    assert [record.split for record in records] == ["train"] * 10 + ["restval"] * 4 + ["test"] * 3
    assert [record.label for record in records] == list(range(17))
    assert records[0].image_id == "train2014/COCO_train2014_000000000000.jpg"
    assert records[-1].image_id == "val2014/COCO_val2014_000000000016.jpg"
    assert all(len(record.captions) == 5 for record in records)


def test_restval_is_added_to_train_on_demand(coco: Path) -> None:
    records = list(read_tfrecords(coco, merge_restval=True))
    assert [record.split for record in records] == ["train"] * 14 + ["test"] * 3


def test_a_record_of_another_split_than_its_shard_is_refused(coco: Path) -> None:
    (coco / "test-00000-of-00001").write_bytes((coco / "val-00000-of-00001").read_bytes())
    with pytest.raises(UserError, match=r"test-00000-of-00001: .*\(its split is 'restval', not test\)"):
        list(read_tfrecords(coco))


def test_the_number_of_captions_of_a_picture_is_free() -> None:
    captions = {record.image_id: len(record.captions) for record in read_tfrecords(TFRECORDS / "pedes")}
    assert captions["test_query/p3_s5.jpg"] == 1
    assert captions["test_query/p4_s6.jpg"] == 3


def test_records_are_what_other_readers_give() -> None:
    assert all(isinstance(record, Record) for record in read_tfrecords(TFRECORDS / "flickr"))


def test_a_changed_byte_names_shard_and_record(copy: Path) -> None:
    shard = copy / "val-00000-of-00001"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"val-00000-of-00001: the record at byte 0 is damaged .its checksum is wrong"):
        list(read_tfrecords(copy))


@pytest.mark.parametrize(("cut", "reason"), [(5, "runs past the end"), (32_695, "its length is not readable")])
def test_a_cut_shard_is_an_error(copy: Path, cut: int, reason: str) -> None:
    shard = copy / "test-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(UserError, match=reason):
        list(read_tfrecords(copy))


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / "train-00002-of-00004").unlink()
    with pytest.raises(UserError, match=r"1 of 4 train shards are missing in .*, first train-00002-of-00004"):
        list(read_tfrecords(copy))


def test_shards_of_two_runs_are_not_mixed(copy: Path) -> None:
    shutil.copy(copy / "val-00000-of-00001", copy / "val-00000-of-00002")
    with pytest.raises(UserError, match=r"holds val shards of \[1, 2\] in all"):
        list(read_tfrecords(copy))


def test_a_directory_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards in"):
        list(read_tfrecords(tmp_path))
    with pytest.raises(UserError, match="is not a directory"):
        list(read_tfrecords(tmp_path / "missing"))


def test_a_record_of_another_kind_says_what_it_lacks(copy: Path) -> None:
    from crosspair.formats.crc32c import masked_crc32c

    empty = b""
    length = len(empty).to_bytes(8, "little")
    frame = length + masked_crc32c(length).to_bytes(4, "little") + empty + masked_crc32c(empty).to_bytes(4, "little")
    (copy / "val-00000-of-00001").write_bytes(frame)
    with pytest.raises(UserError, match="it has no image/filename"):
        list(read_tfrecords(copy))
