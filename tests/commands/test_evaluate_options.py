"""Every combination of evaluate's options works, or is refused in one sentence before anything is read or written."""

from itertools import product

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.commands import evaluate as command


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with two files of embeddings and of similarities, and a part of the first."""
    random = np.random.default_rng(0)
    rows = np.repeat(np.arange(12), 2)
    labels = {"image_labels": np.arange(12) // 2, "text_labels": rows // 2}
    for name, matrix in (("one", "matrix"), ("two", "other")):
        images = random.normal(size=(12, 4))
        texts = images[rows] + random.normal(size=(24, 4))
        np.savez(tmp_path / f"{name}.npz", image_embeddings=images, text_embeddings=texts, **labels)
        np.savez(tmp_path / f"{matrix}.npz", similarities=images @ texts.T, **labels)
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--embeddings", "one.npz", "--shard", "1/1", "--part", "part.npz"]) == 0
    return tmp_path


INPUTS = [
    ["--embeddings", "one.npz"],
    ["--embeddings", "one.npz", "two.npz"],
    ["--embeddings", "one.npz", "two.npz", "--ensemble"],
    ["--embeddings", "one.npz", "--shard", "1/1", "--part", "part.npz"],
    ["--embeddings", "one.npz", "--merge", "part.npz"],
    ["--similarities", "matrix.npz"],
    ["--similarities", "matrix.npz", "other.npz"],
]
OPTIONS = [
    ["--output", "out/result.json"],
    ["--queries", "out/queries.parquet"],
    ["--trec", "out/trec"],
    ["--csls"],
    ["--metric", "euclidean"],
    ["--direction", "text-to-image"],
    ["--distractors"],
    ["--metric-definition", "original"],
    ["--device", "cpu"],
]
PROTOCOLS = ["plain", "cuhk-pedes", "cub", "coco-1k-5fold", "eccv-caption"]


def combinations():
    """Each input with every pair of options, by every protocol."""
    pairs = [*OPTIONS, *([*one, *other] for place, one in enumerate(OPTIONS) for other in OPTIONS[:place])]
    return product(INPUTS, [[], *pairs], PROTOCOLS)


def test_whatever_is_refused_is_refused_before_anything_is_read(work, capsys, monkeypatch):
    """Refused later is only what depends on the data: other numbers of pictures, or parts counted otherwise."""
    read = []
    for name in ("read_embeddings", "read_similarities"):
        reading = getattr(command, name)
        monkeypatch.setattr(command, name, lambda path, reading=reading: read.append(path) or reading(path))
    of_the_data = (
        "needs the 5,000 pictures",
        "needs COCO's ids",
        "npz differs",
        "npz was counted with other",
        "their mean can't be found from similarities",
    )
    refused = worked = 0
    for given, options, protocol in combinations():
        read.clear()
        capsys.readouterr()
        line = ["evaluate", *given, *options, "--protocol", protocol]
        code = main(line)
        error = capsys.readouterr().err
        if code == 0:
            worked += 1
            for option, file in (("--output", "out/result.json"), ("--queries", "out/queries.parquet")):
                assert (work / file).is_file() == (option in options), line
        else:
            assert code == 2, line
            assert error.startswith("crosspair: "), line
            assert error.count("\n") == 1, line
            assert not (work / "out").exists(), line
            if any(words in error for words in of_the_data):
                continue
            refused += 1
            assert not read, (line, error)
        for file in (work / "out").glob("*"):
            file.unlink()
        if (work / "out").exists():
            (work / "out").rmdir()
    assert worked > 200
    assert refused > 200


@pytest.fixture
def refused(work, capsys, monkeypatch):
    """The one sentence of a command that must not read anything."""
    for name in ("read_embeddings", "read_similarities"):
        monkeypatch.setattr(command, name, lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr(command, "measure_ensemble", lambda *_, **__: pytest.fail("a model was read"))
    monkeypatch.setattr(command, "measure_model", lambda *_, **__: pytest.fail("a model was read"))

    def run(line):
        before = sorted(work.rglob("*"))
        capsys.readouterr()
        assert main(["evaluate", *line.split()]) == 2
        assert sorted(work.rglob("*")) == before
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "expected crosspair evaluate RUN --data DATA, crosspair evaluate --embeddings FILE or"),
        ("run", "expected crosspair evaluate RUN --data DATA"),
        ("--data data", "expected crosspair evaluate RUN --data DATA"),
        ("run --embeddings one.npz", "--embeddings takes the place of RUN, --data and --split; give one or the others"),
        ("--embeddings one.npz --split val", "--embeddings takes the place of RUN, --data and --split"),
        ("run --data data --shard 1/2 --part p.npz", "--shard and --merge are for --embeddings"),
        ("run run --data data", "run is given twice; name each input once"),
        ("run ./run --data data", "run is given twice; name each input once"),
        ("run --data data run", "run is given twice; name each input once"),
        (
            "run --data data --ensemble",
            "--ensemble takes the mean of several inputs, found one; give two or more of RUN",
        ),
        (
            "a b --data data --output x.json",
            "--output is for one result, found 2; give one of them, or all as one with",
        ),
        ("a b --data data --queries x.parquet", "--queries is for one result, found 2"),
        ("a b --data data --trec x", "--trec is for one result, found 2"),
        ("a b --data data --csls", "--csls is for one result, found 2"),
        (
            "run --data data --protocol eccv-caption --trec x",
            "eccv-caption judges by its own lists; evaluate it without",
        ),
        (
            "run --data data --protocol cxc --queries x.parquet",
            "evaluate it without --queries, or take coco-5k for that",
        ),
        ("run --data data --protocol cxc --distractors", "evaluate it without --distractors, or take coco-5k for that"),
        ("--embeddings one.npz --protocol eccv-caption --csls", "evaluate it without --csls"),
        ("--embeddings one.npz --protocol coco-1k-5fold --shard 1/2 --part p.npz", "has 5 folds, small ones; evaluate"),
        ("--embeddings one.npz --protocol nobody", "there is no protocol 'nobody'"),
        ("--embeddings one.npz --part p.npz", "--part is the file that --shard K/N counts into; give both or none"),
        (
            "--embeddings one.npz two.npz --merge part.npz",
            "--merge is for one file or directory of --embeddings, found 2",
        ),
        ("--embeddings one.npz --shard 1/2 --part p.npz --queries q.parquet", "--queries needs all scores, which no"),
        ("--embeddings one.npz --csls --metric euclidean", "--csls is made of cosines"),
        ("--similarities m.npz --csls", "--csls needs embeddings, and --similarities has none"),
        (
            "--similarities m.npz --metric cosine",
            "--similarities are compared as they are, the higher the better; leave",
        ),
        ("--similarities m.npz --device cpu", "--similarities are counted on the CPU; leave --device out"),
        ("--similarities m.npz --shard 1/2 --part p.npz", "evaluate --similarities as a whole"),
        ("--similarities m.npz --embeddings one.npz", "--embeddings and --similarities take each other's place"),
        (
            "--similarities m.npz --ensemble",
            "--ensemble takes the mean of several inputs, found one; give two or more of",
        ),
        ("run --similarities m.npz", "--similarities takes the place of RUN, --data and --split"),
        ("--embeddings one.npz --output .", ". is a directory; expected a file to write to, name another --output"),
        ("--embeddings one.npz --trec .", "--trec . is a directory; expected the beginning of the files' names"),
        ("--embeddings one.npz --output one.npz/x.json", "lies in"),
        (
            "--embeddings one.npz --queries one.npz",
            "--queries writes Parquet, found one.npz; expected a name that ends in",
        ),
        ("--embeddings one.npz --queries one.npz/q.parquet", "which is a file; name another --queries"),
        ("--embeddings one.npz --trec two.npz/x", "which is a file; name another --trec"),
        (
            "--embeddings one.npz --output one.npz",
            "--output would replace one.npz, which is read; name another --output",
        ),
        ("--embeddings one.npz --queries x.parquet --output x.parquet", "would both write x.parquet; name another"),
    ],
)
def test_what_can_not_be_done_is_said_at_once(refused, line, sentence):
    assert sentence in refused(line)


def test_a_folder_that_may_not_be_written_to_is_refused(refused, monkeypatch):
    from crosspair.commands import evaluate_options

    monkeypatch.setattr(evaluate_options.os, "access", lambda *_: False)
    assert "may not be written to; check its permissions" in refused("--embeddings one.npz --queries new/q.parquet")
