"""One bad caption costs the caption, not its picture: in every format, and the data say which and why."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value

from crosspair.data import prepare as preparing
from crosspair.data.dataset import inspect_data, open_data
from crosspair.data.layout import CaptionLeftOut, read_manifest
from crosspair.data.prepare import prepare, prepare_format
from crosspair.data.records import Record
from crosspair.data.streams.stream import open_stream
from crosspair.errors import UserError
from tests.fixtures.original import sequence_example

# Captions of two pictures: the second has none that can be used.
CAPTIONS = {"a": ["A dog.", "{}", "It's wet."], "b": ["..."]}


@pytest.fixture
def picture(encode: Callable[..., bytes]) -> bytes:
    return encode(np.full((8, 8, 3), 90, dtype=np.uint8))


@pytest.fixture
def images(tmp_path: Path, picture: bytes) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in CAPTIONS:
        (folder / f"{name}.jpg").write_bytes(picture)
    return folder


def karpathy(tmp_path: Path, picture: bytes) -> Path:
    rows = []
    for number, (name, captions) in enumerate(CAPTIONS.items()):
        sentences = [{"raw": text, "tokens": text.split(), "sentid": place} for place, text in enumerate(captions)]
        row = {"filename": f"{name}.jpg", "imgid": number, "split": "train", "sentences": sentences, "cocoid": 7}
        rows.append(row)
    (tmp_path / "dataset.json").write_text(json.dumps({"images": rows}))
    return tmp_path / "dataset.json"


def pedes(tmp_path: Path, picture: bytes) -> Path:
    rows = [
        {"file_path": f"{name}.jpg", "id": number, "split": "train", "captions": captions}
        for number, (name, captions) in enumerate(CAPTIONS.items(), start=1)
    ]
    (tmp_path / "reid_raw.json").write_text(json.dumps(rows))
    return tmp_path / "reid_raw.json"


def flowers(tmp_path: Path, picture: bytes) -> Path:
    texts = tmp_path / "texts" / "text_c10" / "class_00001"
    texts.mkdir(parents=True)
    for name, lines in (("train", "class_00001\n"), ("val", ""), ("test", "")):
        (tmp_path / "texts" / f"{name}classes.txt").write_text(lines)
    for name, captions in CAPTIONS.items():
        (texts / f"{name}.txt").write_text("\n".join(captions))
    return tmp_path / "texts"


def table(tmp_path: Path, picture: bytes) -> Path:
    rows = [f'{name}.jpg,"{caption}",train' for name, captions in CAPTIONS.items() for caption in captions]
    (tmp_path / "table.csv").write_text("\n".join(["image,caption,split", *rows]))
    return tmp_path / "table.csv"


def folder(tmp_path: Path, picture: bytes) -> None:
    for name, captions in CAPTIONS.items():
        (tmp_path / "images" / f"{name}.txt").write_text("\n".join(captions))


def huggingface(tmp_path: Path, picture: bytes) -> Path:
    features = Features({"image": Image(), "captions": List(Value("string")), "image_id": Value("string")})
    images = [{"bytes": picture, "path": None}] * 2
    columns = {"image": images, "captions": list(CAPTIONS.values()), "image_id": [f"{name}.jpg" for name in CAPTIONS]}
    Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def webdataset(tmp_path: Path, picture: bytes) -> Path:
    with tarfile.open(tmp_path / "train-0.tar", "w") as shard:
        for name, captions in CAPTIONS.items():
            for kind, content in (("jpg", picture), ("txt", "\n".join(captions).encode())):
                member = tarfile.TarInfo(f"{name}.{kind}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return tmp_path / "train-0.tar"


FORMATS = {
    "coco": karpathy,
    "cuhk-pedes": pedes,
    "flowers": flowers,
    "table": table,
    "folder": folder,
    "huggingface": huggingface,
    "webdataset": webdataset,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_caption_is_left_out_and_its_picture_stays(name: str, tmp_path: Path, images: Path, picture: bytes):
    annotations = FORMATS[name](tmp_path, picture)
    where = None if name in ("webdataset", "huggingface") else images
    shares = "1,0,0" if name in ("folder", "huggingface") else None
    options = {"processes": 1, "split_shares": shares}
    with pytest.raises(UserError, match=r"has no caption that can be used \(number 1 of 1 is empty: '\.\.\.'\)"):
        prepare_format(name, annotations, where, tmp_path / "stopped", **options)
    text = prepare_format(name, annotations, where, tmp_path / "DATA", on_error="skip", **options)
    split = open_data(tmp_path / "DATA").split("train")
    assert split.captions == [["A dog.", "It's wet."]]
    [image_id] = split.image_ids
    manifest = read_manifest(tmp_path / "DATA")
    assert manifest.captions_left_out == [CaptionLeftOut(image_id, "train", 2, "is empty: '{}'")]
    assert [one.reason for one in manifest.skipped] == [
        "has no caption that can be used (number 1 of 1 is empty: '...')"
    ]
    for described in (text, inspect_data(tmp_path / "DATA")):
        assert f"captions left out: 1\n  train: caption 2 of {image_id} is empty: '{{}}'" in described
    if name == "coco":
        assert split.tokens == [[["A", "dog."], ["It's", "wet."]]]
        assert split.caption_ids == [[0, 2]]


def test_a_record_of_the_original_without_words_is_left_out(
    tmp_path: Path, picture: bytes, write_tfrecords: Callable[..., None]
):
    records = [sequence_example(picture, "images/a.jpg", 0, "train", words) for words in (["a", "dog"], [])]
    write_tfrecords(tmp_path / "records", "train", records)
    text = prepare_format("tfrecord", tmp_path / "records", None, tmp_path / "DATA", processes=1)
    assert "captions left out: 1\n  train: caption 2 of a.jpg is empty: ''" in text
    assert open_data(tmp_path / "DATA").split("train").tokens == [[["a", "dog"]]]


def test_a_stream_reads_the_other_captions(tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))
    stream = open_stream(str(webdataset(tmp_path, picture)), on_error="skip", progress=False)
    assert stream.describe() | {"stream": ""} == {"stream": "", "images": 1, "skipped": 1, "captions_left_out": 1}
    assert stream.facts[0].captions_left_out == [f"caption 2 of a in {tmp_path}/train-0.tar is empty: '{{}}'"]
    assert stream.word_counts() == {"a": 1, "dog": 1, "it": 1, "'s": 1, "wet": 1}
    assert [sample.captions for _, sample in stream.read(0)] == [["A dog.", "It's wet."]]


def test_published_counts_include_what_was_left_out(
    tmp_path: Path, images: Path, picture: bytes, capsys: pytest.CaptureFixture[str]
):
    prepare_format("flowers", flowers(tmp_path, picture), images, tmp_path / "DATA", on_error="skip", processes=1)
    assert "all splits has 1 images (8,189 published), 3 captions (81,890 published)" in capsys.readouterr().err


def test_an_interrupted_run_lists_what_the_undisturbed_one_lists(
    tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preparing, "FIRST_CHECKPOINT_RECORDS", 2)
    records = [Record(str(number), picture, number, (f"dog {number}", "\ud800 x"), "train") for number in range(100)]

    def until(end: int):
        yield from records[:end]
        if end < len(records):
            raise UserError("the disk is away")

    options = {"source": {}, "processes": 1, "progress": False}
    prepare(until(100), tmp_path / "whole", **options)
    with pytest.raises(UserError, match="the disk is away"):
        prepare(until(80), tmp_path / "resumed", **options)
    assert prepare(until(100), tmp_path / "resumed", **options).taken_over > 0
    written = [(tmp_path / name / "crosspair.json").read_bytes() for name in ("whole", "resumed")]
    assert written[0] == written[1]
    left_out = read_manifest(tmp_path / "whole").captions_left_out
    assert left_out == [CaptionLeftOut(str(number), "train", 2, "is not Unicode: '\\ud800 x'") for number in range(100)]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": (("a",), ("b",))}, "2 tokens and 1 captions; expected as many of both"),
        ({"caption_ids": (1, 2)}, "2 caption_ids and 1 captions; expected as many of both"),
        ({"captions": (3,)}, "captions of x.jpg that are not strings"),
    ],
)
def test_a_record_of_a_plugin_whose_captions_do_not_fit_is_refused(tmp_path: Path, picture: bytes, changes, problem):
    record = Record(
        **{"image_id": "x.jpg", "image": picture, "label": 0, "captions": ("a",), "split": "train"} | changes
    )
    with pytest.raises(UserError, match=problem):
        prepare([record], tmp_path / "DATA", source={}, processes=1, progress=False)
    assert not list(tmp_path.iterdir())
