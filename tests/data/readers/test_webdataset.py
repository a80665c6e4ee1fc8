"""Tar shards: files of one key are one picture's, in the order of the shards, whatever else lies between."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.data.readers import webdataset
from crosspair.data.readers.webdataset import expand_braces, read_webdataset
from crosspair.errors import UserError


def shard(path: Path, files: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path: Path):
    return list(read_webdataset(path))


def test_files_of_one_key_are_one_record(tmp_path):
    files = {"a.jpg": b"1", "a.txt": "A dog.\nEin Hund.\n", "x/b.c.json": "{}", "x/b.png": b"2", "x/b.json": "{}"}
    first, second = read(shard(tmp_path / "shard.tar", files))
    assert (first.image_id, first.image, first.captions) == ("shard/a", b"1", ("A dog.", "Ein Hund."))
    assert (first.label, first.split) == (0, "")
    assert (second.image_id, second.image, second.captions, second.label) == ("shard/x/b", b"2", (), 1)


@pytest.mark.parametrize(
    "fields", [{"caption": "A dog"}, {"captions": ["A dog"]}, {"text": "A dog", "url": "x"}, {"caption": ["A dog"]}]
)
def test_captions_and_labels_come_from_json(tmp_path, fields):
    (record,) = read(shard(tmp_path / "s.tar", {"a.jpg": b"1", "a.json": json.dumps({**fields, "label": 7})}))
    assert (record.captions, record.label) == (("A dog",), 7)


def test_a_caption_that_comes_as_text_and_in_json_counts_once(tmp_path):
    files = {"a.jpg": b"1", "a.txt": "A dog", "a.json": '{"caption": "A dog"}'}
    for order in (["a.jpg", "a.txt", "a.json"], ["a.jpg", "a.json", "a.txt"]):  # webdataset sorts by name
        (record,) = read(shard(tmp_path / "s.tar", {name: files[name] for name in order}))
        assert record.captions == ("A dog",)


def test_the_captions_words_come_from_json(tmp_path):
    files = {"a.jpg": b"1", "a.json": '{"tokens": [["a", "dog"], ["it", "\'s", "wet"]]}', "a.txt": "A dog\nIt's wet"}
    (record,) = read(shard(tmp_path / "s.tar", files))
    assert record.tokens == (("a", "dog"), ("it", "'s", "wet"))


def test_a_class_file_is_the_label(tmp_path):
    (record,) = read(shard(tmp_path / "s.tar", {"a.jpg": b"1", "a.txt": "x", "a.cls": "12\n"}))
    assert record.label == 12


def test_a_pattern_a_folder_and_a_compressed_shard_are_read_in_order(tmp_path):
    for number in range(11):
        shard(tmp_path / f"train-{number:02d}.tar", {"a.jpg": b"1", "a.txt": "x"}, "w:gz" if number == 3 else "w")
    expected = [f"train-{number:02d}/a" for number in range(11)]
    assert [record.image_id for record in read(tmp_path)] == expected
    assert [record.image_id for record in read(tmp_path / "train-{00..10}.tar")] == expected
    assert [record.label for record in read(tmp_path)] == list(range(11))


def test_the_name_of_a_shard_gives_the_split(tmp_path):
    for name in ("train-0", "validation_1", "test2", "shard-3"):
        shard(tmp_path / f"{name}.tar", {"a.jpg": b"1"})
    assert {record.image_id[:-2]: record.split for record in read(tmp_path)} == {
        "train-0": "train",
        "validation_1": "val",
        "test2": "test",
        "shard-3": "",
    }


def test_braces_expand_as_in_a_shell():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}-{0..1}") == ["x-0", "x-1", "y-0", "y-1"]
    assert expand_braces("a.tar") == ["a.tar"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a.jpg": b"1", "a.png": b"2"}, "'a.png' is the sample's second picture"),
        ({"a.txt": b"\xff"}, "'a.txt' is not UTF-8"),
        ({"a.json": "["}, "'a.json' is not JSON"),
        ({"a.json": "[]"}, "'a.json' is not an object"),
        ({"a.json": '{"caption": 3}'}, "'a.json' has a whole number as 'caption'"),
        ({"a.json": '{"label": null}'}, "has the label 'None', not a whole number"),
        ({"a.cls": "1", "b.txt": "x"}, r"only some samples have a label \('b' differs\)"),
        ({"a.json": '{"caption": "x", "tokens": ["x"]}'}, "'a.json' has a string in 'tokens', not a list of words"),
        ({"a.json": '{"caption": "x", "tokens": [[1]]}'}, "'a.json' has words in 'tokens' that are not strings"),
        ({"a.json": '{"caption": "x", "tokens": []}'}, "'a.json' has 1 captions, but 'tokens' of 0"),
        (
            {"a.json": '{"caption": "x", "tokens": [["x"]]}', "b.txt": "x"},
            r"only some samples have tokens \('b' differs",
        ),
        ({"a.cls": "dog"}, "has the label 'dog', not a whole number"),
    ],
)
def test_what_is_wrong_in_a_shard_is_named(tmp_path, files, problem):
    with pytest.raises(UserError, match=problem):
        read(shard(tmp_path / "s.tar", files))


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"'a\.jpg' has 101 bytes; at most 100 are read"):
        read(shard(tmp_path / "s.tar", {"a.jpg": bytes(101)}))


def test_missing_and_damaged_shards_are_named(tmp_path):
    with pytest.raises(UserError, match="names no shards"):
        read(tmp_path)
    whole = shard(tmp_path / "s-0.tar", {"a.jpg": bytes(100_000)}).read_bytes()
    with pytest.raises(UserError, match=r"s-1\.tar does not exist \(1 of 2 shards are missing\)"):
        read(tmp_path / "s-{0..1}.tar")
    (tmp_path / "s-0.tar").write_bytes(whole[:50_000])
    with pytest.raises(UserError, match=r"s-0\.tar is damaged or no tar shard"):
        read(tmp_path / "s-0.tar")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60), st.integers(0, 10_000), st.booleans())
def test_a_mutated_shard_is_a_sentence_or_records(tmp_path, noise, place, compressed):
    path = shard(tmp_path / "s.tar", {"a.jpg": b"1", "a.txt": "dog", "b.json": "{}"}, "w:gz" if compressed else "w")
    data = path.read_bytes()
    place %= len(data)
    path.write_bytes(data[:place] + noise + data[place + len(noise) :])
    try:
        read(path)
    except UserError as error:
        sentence = str(error)
        assert sentence.startswith(str(path))


def test_shards_become_a_data_directory(tmp_path, encode, pixels):
    files = {}
    for number in range(20):
        files |= {f"{number:03d}.png": encode(pixels(20 + number, 30), "PNG"), f"{number:03d}.txt": f"number {number}"}
    shard(tmp_path / "s.tar", files)
    arguments = ["prepare", "webdataset", "--annotations", str(tmp_path / "s.tar"), "--processes", "1"]
    assert main([*arguments, "--split-shares", "0.8,0.1,0.1", "--output", str(tmp_path / "data")]) == 0
    data = open_data(tmp_path / "data")
    assert sum(len(data.split(name)) for name in data.split_names) == 20


@pytest.mark.parametrize("place", [1536, 1536 + 200])
def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, place):
    path = shard(tmp_path / "shard.tar", {f"{number}.jpg": b"1" for number in range(5)})
    content = bytearray(path.read_bytes())
    content[1024 + place % 512] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard\.tar is damaged or no tar shard \(.* at byte 1,024\)"):
        read(path)


def test_a_shard_without_its_end_is_an_error(tmp_path):
    path = shard(tmp_path / "shard.tar", {f"{number}.jpg": b"1" for number in range(5)})
    path.write_bytes(path.read_bytes()[:3072])
    with pytest.raises(UserError, match="damaged or no tar shard"):
        read(path)


def test_a_link_in_a_shard_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"'a\.jpg' is a link or a device"):
        read(tmp_path / "shard.tar")
