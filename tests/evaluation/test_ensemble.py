"""Ensembles: ranked side by side as by the mean of the models' matrices of similarities."""

from dataclasses import replace

import numpy as np
import pytest

from crosspair import UserError
from crosspair.cli import main
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.ensemble import join_ensemble
from crosspair.evaluation.protocols import PLAIN, find_protocol
from crosspair.evaluation.published import FixedSplit

FOLDS = FixedSplit("two-fold", "", "", num_images=20, captions=3, folds=2)


def member(dimension, seed, *, scale=1.0, zeros=False, dtype=np.float32):
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(20), 3)
    images = random.normal(size=(20, dimension))
    texts = images[rows] + 2 * random.normal(size=(60, dimension))
    images *= scale * random.uniform(0.1, 10, (20, 1))
    texts *= scale * random.uniform(0.1, 10, (60, 1))
    if zeros:
        images[3], texts[10], texts[11] = 0, 0, 0
    labels = np.arange(20)
    return Embeddings.checked(images.astype(dtype), texts.astype(dtype), labels, labels[rows], rows)


def similarities(embeddings, metric):
    """The matrix [images, texts] of one model in float64."""
    images, texts = (side.astype(np.float64) for side in (embeddings.images, embeddings.texts))
    if metric == "euclidean":
        return -np.square(images[:, None] - texts[None]).sum(2) / 2
    unit = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300) for side in (images, texts)]
    return unit[0] @ unit[1].T


def first_ranks(scores, labels, gallery_labels):
    relevant = labels[:, None] == gallery_labels
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    return 1 + ((scores >= best) & ~relevant).sum(1)


MEMBERS = {
    "different sizes and lengths": [member(4, 0), member(7, 1, scale=100), member(2, 2, dtype=np.float64)],
    "rows of zeros": [member(4, 0, zeros=True), member(5, 1), member(3, 2)],
    "rows of zeros in all": [member(4, 0, zeros=True), member(5, 1, zeros=True)],
    "half precision": [member(4, 0, dtype=np.float16), member(5, 1, dtype=np.float16)],
}


@pytest.mark.parametrize("case", MEMBERS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_ranks_are_those_of_the_mean_matrix(case, metric):
    members = MEMBERS[case]
    joined = join_ensemble(members, [f"model {number}" for number in range(len(members))], metric)
    found = PLAIN.evaluate(joined, metric).result
    mean = np.mean([similarities(each, metric) for each in members], axis=0)
    np.testing.assert_array_equal(
        found.image_to_text.ranks.first, first_ranks(mean, joined.image_labels, joined.text_labels)
    )
    np.testing.assert_array_equal(
        found.text_to_image.ranks.first, first_ranks(mean.T, joined.text_labels, joined.image_labels)
    )
    np.testing.assert_allclose(similarities(joined, metric), mean, rtol=2e-6, atol=2e-7)
    assert found.to_dict() != PLAIN.evaluate(members[0], metric).result.to_dict()


@pytest.mark.parametrize("protocol", [FOLDS, find_protocol("flowers")], ids=lambda protocol: protocol.name)
def test_folds_and_label_means_are_those_of_each_model(protocol):
    members = MEMBERS["different sizes and lengths"]
    found = protocol.evaluate(join_ensemble(members, ["a", "b", "c"]))
    arranged = [protocol.evaluate(each) for each in members]
    if protocol is FOLDS:
        for number, fold in enumerate(found.folds):
            images, texts = slice(10 * number, 10 * number + 10), slice(30 * number, 30 * number + 30)
            mean = np.mean([similarities(each, "cosine")[images, texts] for each in members], axis=0)
            labels = members[0].image_labels[images], members[0].text_labels[texts]
            np.testing.assert_array_equal(fold.image_to_text.ranks.first, first_ranks(mean, *labels))
    else:
        mean = np.mean([similarities(each.averaged_texts(), "cosine") for each in members], axis=0)
        labels = members[0].image_labels, np.arange(20)
        np.testing.assert_array_equal(found.result.image_to_text.ranks.first, first_ranks(mean, *labels))
    assert all(found.to_dict() != each.to_dict() for each in arranged)


def test_a_part_keeps_the_labels_that_an_ensemble_was_given():
    joined = join_ensemble([member(4, 0), member(5, 1)], ["a", "b"])
    renumbered = replace(joined, image_labels=joined.image_labels + 100, text_labels=joined.text_labels + 100)
    part = renumbered.part(np.arange(5, 10), np.arange(15, 30))
    assert part.image_labels.tolist() == list(range(105, 110))
    assert part.text_labels.tolist() == np.arange(105, 110).repeat(3).tolist()
    np.testing.assert_array_equal(part.texts, joined.texts[15:30])


def test_other_pictures_or_labels_are_one_sentence():
    first = member(4, 0)
    labels = first.text_labels.copy()
    labels[[0, 3]] = labels[[3, 0]]
    other = Embeddings(first.images, first.texts, first.image_labels, labels)
    with pytest.raises(UserError, match=r"text_labels of b and a differ, first in row 0: 1 and 0; expected the same"):
        join_ensemble([first, other], ["a", "b"])
    short = first.part(np.arange(19), np.arange(57))
    with pytest.raises(UserError, match=r"b has 19 image_labels and a 20; expected the same images and texts in one"):
        join_ensemble([first, short], ["a", "b"])


def save(path, embeddings):
    labels = {"image_labels": embeddings.image_labels, "text_labels": embeddings.text_labels}
    np.savez(path, image_embeddings=embeddings.images, text_embeddings=embeddings.texts, **labels)
    return str(path)


def test_the_command_evaluates_files_one_by_one_or_as_one(tmp_path, capsys):
    members = MEMBERS["different sizes and lengths"]
    paths = [save(tmp_path / f"{number}.npz", each) for number, each in enumerate(members)]
    assert main(["evaluate", "--embeddings", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [PLAIN.evaluate(each).result for each in members]
    for path, line, value in zip(paths, lines[3:6], values, strict=True):
        numbers = [value.image_to_text.recall(k) for k in (1, 5, 10)] + [
            value.text_to_image.recall(k) for k in (1, 5, 10)
        ]
        assert line.split() == [path, *(f"{number:.1f}" for number in [*numbers, value.rsum])]
    rsums = [value.rsum for value in values]
    assert lines[6].startswith("mean ± sd")
    assert lines[6].endswith(f"{np.mean(rsums):.1f} ± {np.std(rsums, ddof=1):.1f}")
    assert lines[7].startswith("95 % of mean")
    assert lines[8].startswith("warning: the queries come from 20 pictures only")
    assert lines[9].startswith("protocol plain: every image and every text of the split")
    output = tmp_path / "result.json"
    assert main(["evaluate", "--embeddings", *paths, "--ensemble", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith(f"ensemble of {', '.join(paths)}: 20 pictures, 60 captions\n")
    from crosspair.evaluation.results import read_result

    read = read_result(output)
    assert read.evaluation.result.to_dict() == PLAIN.evaluate(join_ensemble(members, paths)).result.to_dict()
    assert read.facts["ensemble"] == 3
    assert read.facts["embeddings"] == " + ".join(paths)


def test_the_command_takes_the_mean_of_matrices(tmp_path, capsys):
    members = MEMBERS["different sizes and lengths"]
    paths = [str(tmp_path / f"{number}.npz") for number in range(len(members))]
    for path, each in zip(paths, members, strict=True):
        matrix = similarities(each, "cosine")
        np.savez(path, similarities=matrix, image_labels=each.image_labels, text_labels=each.text_labels)
    expected = PLAIN.evaluate(join_ensemble(members, paths)).result
    queries = tmp_path / "queries.parquet"
    assert main(["evaluate", "--similarities", *paths, "--queries", str(queries)]) == 0
    found = capsys.readouterr().out
    assert found.startswith(f"ensemble of {', '.join(paths)}: 20 pictures, 60 captions\n")
    assert f"rsum {expected.rsum:.1f}; 20 images, 60 texts, similarity" in found
    import pandas

    table = pandas.read_parquet(queries).query("direction == 'text_to_image'")
    mean = np.mean([similarities(each, "cosine") for each in members], axis=0)
    assert table["rank"].tolist() == expected.text_to_image.ranks.first.tolist()
    np.testing.assert_allclose(table.score, mean[table.item_row, table.query_row], atol=1e-6)
    labels = members[0].text_labels[::-1]
    np.savez(paths[1], similarities=mean, image_labels=members[0].image_labels, text_labels=labels)
    assert main(["evaluate", "--similarities", *paths]) == 2
    assert f"text_labels of {paths[1]} and {paths[0]} differ, first in row 0: 19 and 0" in capsys.readouterr().err


def test_files_of_other_pictures_are_refused_together(tmp_path, capsys):
    first = member(4, 0)
    paths = [save(tmp_path / "a.npz", first), save(tmp_path / "b.npz", first.part(np.arange(19), np.arange(57)))]
    for more in ([], ["--ensemble"]):
        assert main(["evaluate", "--embeddings", *paths, *more]) == 2
        assert "b.npz has 19 image_labels and" in capsys.readouterr().err
