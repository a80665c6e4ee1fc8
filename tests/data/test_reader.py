"""Readers: what they declare is what the command line gives them, published counts are compared, own ones are run."""

import json

import pytest

from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.data.layout import SplitFacts
from crosspair.data.prepare import prepare_format
from crosspair.data.reader import Counts, Reader
from crosspair.registry import READERS

KNOWN = ["flickr8k", "flickr30k", "coco", "cuhk-pedes", "icfg-pedes", "rstpreid", "cub", "flowers"]


def facts(**splits: tuple[int, int, int]) -> dict[str, SplitFacts]:
    return {name: SplitFacts(*counts, bytes=0, checksum="") for name, counts in splits.items()}


def differences(name: str, splits: dict[str, SplitFacts], **options: bool) -> list[str]:
    return Reader(name).differences(splits, options)


def test_a_whole_data_set_has_no_differences():
    whole = facts(train=(6000, 30_000, 6000), val=(1000, 5000, 1000), test=(1000, 5000, 1000))
    assert differences("flickr8k", whole) == []
    assert differences("table", whole) == []


def test_a_difference_says_what_is_there_and_what_should_be():
    whole = facts(train=(34_054, 68_126, 11_003), val=(3078, 6158, 1000), test=(3074, 6156, 1000))
    assert differences("cuhk-pedes", {**whole, **facts(val=(3077, 6156, 1000))}) == [
        "val has 3,077 images (3,078 published), 6,156 captions (6,158 published)"
    ]
    del whole["test"]
    assert differences("cuhk-pedes", whole) == [
        "test has 0 images (3,074 published), 0 captions (6,156 published), 0 labels (1,000 published)"
    ]


def test_a_split_that_nobody_published_is_a_difference():
    splits = facts(train=(34_674, 34_674, 3102), test=(19_848, 19_848, 1000), val=(5, 5, 5))
    assert differences("icfg-pedes", splits) == ["val is no published split of icfg-pedes"]


def test_restval_counts_as_train_when_merged():
    splits = facts(train=(113_287, 566_747, 113_287), val=(5000, 25_010, 5000), test=(5000, 25_010, 5000))
    assert differences("coco", splits, merge_restval=True) == []
    assert len(differences("coco", splits)) == 2


def test_where_splits_differ_between_papers_their_sum_counts():
    splits = facts(train=(5864, 58_640, 100), val=(2991, 29_910, 50), test=(2933, 29_330, 50))
    assert differences("cub", splits) == []
    splits["train"] = SplitFacts(5863, 58_630, 100, 0, "")
    assert differences("cub", splits) == [
        "all splits has 11,787 images (11,788 published), 117,870 captions (117,880 published)"
    ]


def test_the_known_data_sets_have_published_counts_with_consistent_sums():
    published = {name: getattr(READERS.get(name), "published", {}) for name in READERS.names()}
    assert {name for name, counts in published.items() if counts} == set(KNOWN)
    for counts in (published["coco"](), published["coco"](merge_restval=True)):
        assert sum(split.captions or 0 for split in counts.values()) == 616_767
    assert sum(split.images or 0 for split in published["cuhk-pedes"].values()) == 40_206
    assert published["cub"]["all splits"] == Counts(11_788, 117_880, 200)


def test_preparing_warns_on_stderr(karpathy, tmp_path, capsys):
    annotations, images = karpathy([("a.jpg", "train"), ("b.jpg", "restval"), ("c.jpg", "val"), ("d.jpg", "test")])
    prepare_format("coco", annotations, images, tmp_path / "data", processes=1, options={"merge_restval": True})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crosspair: warning")]
    assert lines[0] == "crosspair: warning: train has 2 images (113,287 published), 4 captions (566,747 published)"
    assert len(lines) == 3


def test_restval_is_merged_from_the_command_line(karpathy, tmp_path):
    annotations, images = karpathy([("a.jpg", "train"), ("b.jpg", "restval"), ("c.jpg", "val")])
    arguments = ["prepare", "coco", "--annotations", str(annotations), "--images", str(images), "--processes", "1"]
    assert main([*arguments, "--merge-restval", "--output", str(tmp_path / "data")]) == 0
    data = open_data(tmp_path / "data")
    assert data.split_names == ["train", "val"]
    assert data.split("train").image_ids == ["a.jpg", "b.jpg"]
    assert data.manifest.source["merge_restval"] is True


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["flickr8k", "--annotations", "x", "--merge-restval"],
            "flickr8k takes no --merge-restval; it has no options of its own",
        ),
        (
            ["coco", "--annotations", "x", "--caption-column", "a"],
            "coco takes no --caption-column; its own options are --merge-restval",
        ),
        (["table", "--annotations", "x", "--captoin-column=a"], "table takes no --captoin-column; its own options are"),
        (["table", "--annotations", "x", "--image-column"], "the format's options can't be read: argument"),
        (["tfrecord", "--annotations", "x"], "tfrecord has no images apart from its annotations; leave --images out"),
        (["folder", "--annotations", "x"], "folder has no annotations apart from its images; leave --annotations out"),
        (["cuhk-pedes"], "cuhk-pedes needs its annotations; name them with --annotations"),
    ],
)
def test_an_option_that_a_format_does_not_have_is_named(tmp_path, capsys, arguments, problem):
    assert main(["prepare", *arguments, "--images", str(tmp_path), "--output", str(tmp_path / "data")]) == 2
    assert f"crosspair: {problem}" in capsys.readouterr().err


PLUGIN = """
import json
from pathlib import Path

import crosspair


@crosspair.register_reader("mine")
def mine(annotations: Path, images: Path, *, language: str = "en", drop: int = 0):
    \"\"\"A JSON object: captions by language for each image's name.\"\"\"
    entries = json.loads(annotations.read_text())
    for number, (name, captions) in enumerate(entries.items()):
        yield crosspair.Record(name, images / name, number, tuple(captions[language][drop:]), "train")
"""


@pytest.fixture
def mine(tmp_path, encode, pixels, monkeypatch):
    """A format of one's own; a function that prepares it from the command line."""
    monkeypatch.setattr(READERS, "_entries", {**READERS._entries})  # what the plugin registers is gone afterwards
    (tmp_path / "my_format.py").write_text(PLUGIN)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(encode(pixels(20, 30)))
    captions = {"en": ["a dog", "it runs"], "de": ["ein Hund", "er rennt"]}
    (tmp_path / "captions.json").write_text(json.dumps({"a.jpg": captions, "b.jpg": captions}))
    places = ["--annotations", str(tmp_path / "captions.json"), "--images", str(tmp_path)]

    def prepare(*arguments: str) -> int:
        plugin = ["--plugin", str(tmp_path / "my_format.py")]
        return main(
            ["prepare", "mine", *plugin, *places, "--processes", "1", "--output", str(tmp_path / "data"), *arguments]
        )

    return prepare


def test_a_format_of_ones_own_is_prepared_with_its_options(mine, tmp_path):
    assert mine("--language", "de", "--drop", "1") == 0
    data = open_data(tmp_path / "data")
    assert data.split("train").captions == [["er rennt"], ["er rennt"]]
    assert data.manifest.source["language"] == "de"


def test_an_option_that_ones_own_format_does_not_take_is_a_sentence(mine, tmp_path, capsys):
    for arguments, problem in [
        (["--lang", "de"], "mine takes no --lang; its own options are --language, --drop"),
        (["--drop", "x"], "the format's options can't be read: argument --drop: invalid int value: 'x'"),
    ]:
        assert mine(*arguments) == 2
        assert f"crosspair: {problem}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{}", "the reader gave dict; expected a crosspair.Record for each image"),
        ('crosspair.Record("a", images / "a.jpg", 0, "a dog", "train")', "whose captions is str; expected tuple or"),
        ('crosspair.Record("a", "a.jpg", 0, ("a dog",), "train")', "whose image is str; expected Path or bytes"),
        ('crosspair.Record("a", images / "a.jpg", "x", ("a dog",), "train")', "whose label is str; expected int"),
    ],
)
def test_what_is_no_record_is_a_sentence(mine, tmp_path, capsys, given, problem):
    body = PLUGIN.replace(
        'crosspair.Record(name, images / name, number, tuple(captions[language][drop:]), "train")', given
    )
    (tmp_path / "my_format.py").write_text(body)
    assert mine() == 2
    assert problem in capsys.readouterr().err
