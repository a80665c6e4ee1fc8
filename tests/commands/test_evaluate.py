"""What `crosspair evaluate` does with embeddings of any size: directories, shards, their sum."""

import json

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.evaluation.results import read_result


@pytest.fixture
def directory(tmp_path):
    random = np.random.default_rng(0)
    images, rows = random.normal(size=(60, 8)).astype(np.float32), np.repeat(np.arange(60), 3)
    arrays = {
        "image_embeddings": images,
        "text_embeddings": images[rows] + random.normal(size=(180, 8)).astype(np.float32),
        "image_labels": np.arange(60) // 2,
        "text_labels": rows // 2,
        "text_images": rows,
    }
    path = tmp_path / "embeddings"
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    np.savez(tmp_path / "embeddings.npz", **arrays)
    return path


def evaluate(*arguments):
    return main(["evaluate", "--embeddings", *map(str, arguments)])


@pytest.fixture
def refused(capsys):
    def run(*arguments):
        assert evaluate(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("crosspair: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.mark.parametrize("protocol", ["plain", "cuhk-pedes", "cub"])
def test_a_directory_its_shards_and_a_file_give_the_same_result(directory, tmp_path, capsys, protocol):
    how = "--protocol", protocol
    assert evaluate(tmp_path / "embeddings.npz", *how, "--output", tmp_path / "file.json") == 0
    assert evaluate(directory, *how, "--output", tmp_path / "directory.json") == 0
    parts = [tmp_path / f"part-{number}.npz" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert evaluate(directory, *how, "--shard", f"{number}/3", "--part", part) == 0
    assert f"{parts[2]}: shard 3 of 3, complete" in capsys.readouterr().out
    assert evaluate(directory, *how, "--merge", *parts, "--output", tmp_path / "merged.json") == 0
    assert f"protocol {protocol}" in capsys.readouterr().out
    expected = read_result(tmp_path / "file.json")
    for name in ("directory", "merged"):
        found = read_result(tmp_path / f"{name}.json")
        assert found.evaluation.to_dict() == expected.evaluation.to_dict()
        assert found.facts["intervals"] == expected.facts["intervals"]


def test_the_original_precision_can_be_had_from_shards_too(directory, tmp_path, capsys):
    assert evaluate(directory, "--shard", "1/1", "--part", tmp_path / "part.npz") == 0
    assert evaluate(directory, "--merge", tmp_path / "part.npz", "--metric-definition", "original") == 0
    assert "mAP_original" in capsys.readouterr().out


def test_what_shards_can_not_do_is_one_sentence(directory, tmp_path, refused):
    part = tmp_path / "part.npz"
    assert "expected --part PART.npz" in refused(directory, "--shard", "1/2")
    assert "expected a number and how many" in refused(directory, "--shard", "0/2", "--part", part)
    assert "--trec needs all scores" in refused(directory, "--shard", "1/2", "--part", part, "--trec", tmp_path / "t")
    assert "is a directory; expected a file" in refused(directory, "--shard", "1/2", "--part", tmp_path)
    assert not part.exists()
    assert evaluate(directory, "--shard", "1/2", "--part", part) == 0
    assert "found the parts 1/2; expected each of 1/2 to 2/2 once" in refused(directory, "--merge", part)
    assert "nowhere: No such file" in refused(directory, "--merge", tmp_path / "nowhere")
    assert "counted with other embeddings or options (its protocol, labels); " in refused(
        directory, "--merge", part, "--protocol", "cub"
    )
    assert "counted with other embeddings or options (its metric); " in refused(
        directory, "--merge", part, "--metric", "euclidean"
    )
    assert "counted with other embeddings or options (its distractors); " in refused(
        directory, "--merge", part, "--distractors"
    )
    assert main(["evaluate", "run", "--data", "data", "--shard", "1/2"]) == 2


def test_a_directory_that_can_not_be_evaluated_is_one_sentence(directory, refused):
    (directory / "text_images.npy").unlink()
    labels = np.load(directory / "text_labels.npy")
    for array, sentence in (
        (labels[:-1], "text_labels have shape (179,); expected one label for each of the 180"),
        (labels + 0.5, "text_labels are float64; expected integers"),
        (labels.astype(object), "text_labels.npy holds Python objects; expected one array, as numpy.save writes it"),
        (np.where(labels == 29, 0, labels), "row 58 of image_embeddings with label 29 (and 1 more) matches no row"),
    ):
        np.save(directory / "text_labels.npy", array, allow_pickle=True)
        assert sentence in refused(directory)
    (directory / "text_labels.npy").write_bytes(b"text")
    assert "text_labels.npy" in refused(directory)
    (directory / "text_labels.npy").unlink()
    assert "has no text_labels, it has image_embeddings" in refused(directory)


def test_a_part_says_what_it_is_of(directory, tmp_path):
    part = tmp_path / "part.npz"
    assert evaluate(directory, "--shard", "1/2", "--part", part) == 0
    with np.load(part, allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
    assert header["shard"] == [1, 2]
    assert header["facts"]["protocol"] == "plain"
    assert header["done"] == header["blocks"]
