"""Published counts: a whole data set is no warning, one cut short says where."""

import pytest

from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.data.layout import SplitFacts
from crosspair.data.prepare import prepare_format
from crosspair.data.published import PUBLISHED, Counts, differences
from crosspair.data.readers import READERS


def facts(**splits: tuple[int, int, int]) -> dict[str, SplitFacts]:
    return {name: SplitFacts(*counts, bytes=0, checksum="") for name, counts in splits.items()}


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


def test_all_formats_with_counts_have_a_reader_and_consistent_sums():
    assert set(PUBLISHED) <= set(READERS)
    assert sum(counts.captions or 0 for counts in PUBLISHED["coco"].values()) == 616_767
    assert sum(counts.images or 0 for counts in PUBLISHED["cuhk-pedes"].values()) == 40_206
    assert PUBLISHED["cub"]["all splits"] == Counts(11_788, 117_880, 200)


def test_preparing_warns_on_stderr(karpathy, tmp_path, capsys):
    annotations, images = karpathy([("a.jpg", "train"), ("b.jpg", "restval"), ("c.jpg", "val"), ("d.jpg", "test")])
    prepare_format("coco", annotations, images, tmp_path / "data", workers=1, merge_restval=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crosspair: warning")]
    assert lines[0] == "crosspair: warning: train has 2 images (113,287 published), 4 captions (566,747 published)"
    assert len(lines) == 3


def test_restval_is_merged_from_the_command_line(karpathy, tmp_path):
    annotations, images = karpathy([("a.jpg", "train"), ("b.jpg", "restval"), ("c.jpg", "val")])
    arguments = ["prepare", "coco", "--annotations", str(annotations), "--images", str(images), "--workers", "1"]
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
            "flickr8k has no split restval; --merge-restval is for",
        ),
        (["coco", "--annotations", "x", "--caption-column", "a"], "coco has no columns to name"),
        (["cuhk-pedes"], "cuhk-pedes needs its annotations; name them with --annotations"),
    ],
)
def test_an_option_that_a_format_does_not_have_is_named(tmp_path, capsys, arguments, problem):
    assert main(["prepare", *arguments, "--images", str(tmp_path), "--output", str(tmp_path / "data")]) == 2
    assert f"crosspair: {problem}" in capsys.readouterr().err
