"""Exported rankings: read back by hand, and by the tools of the field, they give our numbers."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec

import numpy as np
import pytest

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, Protocol, arrange
from crosspair.evaluation.published import FixedSplit
from crosspair.evaluation.trec import _strictly_descending, write_trec

DIRECTIONS = ("image_to_text", "text_to_image")
EXTRA = Protocol("all", text_to_image=("mINP", "nDCG", "AP@5", "AP@50"))


def small(labels, texts_each=2, levels=None, seed=0):
    """Embeddings; `levels` rounds them to a few values, which brings ties and duplicates."""
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(labels)), texts_each)
    images = random.normal(size=(len(labels), 3))
    texts = images[rows] + random.normal(size=(len(rows), 3))
    if levels:
        images, texts = np.round(images * levels) / levels + 0.1, np.round(texts * levels) / levels + 0.1
    labels = np.asarray(labels)
    return Embeddings.checked(images.astype(np.float32), texts.astype(np.float32), labels, labels[rows], rows)


def read(prefix, direction):
    """Rankings and right items by query."""
    run, right = defaultdict(list), defaultdict(set)
    for line in prefix.with_name(f"{prefix.name}.{direction}.run").read_text().splitlines():
        query, _, item, place, score, _ = line.split()
        run[query].append((float(score), int(place), item))
    for line in prefix.with_name(f"{prefix.name}.{direction}.qrels").read_text().splitlines():
        query, _, item, _ = line.split()
        right[query].add(item)
    return dict(run), dict(right)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("levels", [None, 1])
def test_the_places_of_positives_are_ours(tmp_path, metric, levels):
    data = small(np.arange(30) // 2, levels=levels)
    found = EXTRA.evaluate(data, metric).result
    write_trec(tmp_path / "x", arrange(EXTRA, data), metric)
    for direction, names in zip(DIRECTIONS, (data.image_names, data.text_names), strict=True):
        run, right = read(tmp_path / "x", direction)
        ranks = getattr(found, direction).ranks
        assert list(run) == list(names)
        for row, query in enumerate(names):
            ordered = sorted(run[query], reverse=True)
            assert len(ordered) == ranks.gallery_size
            assert [place for _, place, _ in ordered] == list(range(1, len(ordered) + 1))
            assert len({np.float32(score) for score, _, _ in ordered}) == len(ordered)
            places = [place for _, place, item in ordered if item in right[query]]
            assert places == ranks.places[ranks.offsets[row] : ranks.offsets[row + 1]].tolist()


def test_a_ranking_is_cut_at_its_depth_with_the_negatives_of_a_tie_inside(tmp_path):
    data = Embeddings.checked(np.ones((6, 1)), np.ones((6, 1)), np.arange(6), np.arange(6))
    write_trec(tmp_path / "x", arrange(PLAIN, data), depth=5)
    run, right = read(tmp_path / "x", "text_to_image")
    assert len(run) == 6
    for query, items in run.items():
        assert len(items) == 5
        assert not {item for _, _, item in items} & right[query]


def test_each_fold_ranks_its_own_pictures_and_names_have_no_white_space(tmp_path):
    labels = np.arange(4)
    names = ("a b", "a%20b", "c", "d")
    data = Embeddings.checked(np.eye(4), np.eye(4), labels, labels, None, names, ("t 0", "t1", "t2", "t3"))
    folds = FixedSplit("two", "", "", num_images=4, captions=1, folds=2)
    write_trec(tmp_path / "folder" / "x", arrange(folds, data))
    run, right = read(tmp_path / "folder" / "x", "image_to_text")
    assert {query: {item for _, _, item in items} for query, items in run.items()} == {
        "a%20b": {"t%200", "t1"},
        "a%2520b": {"t%200", "t1"},
        "c": {"t2", "t3"},
        "d": {"t2", "t3"},
    }
    assert right["a%20b"] == {"t%200"}


def test_tied_scores_descend_by_single_bits_through_zero():
    tiny = np.float32(1e-45)
    scores = np.array([0.5, 0.5, 0.5, 0.0, 0.0, 0.0, -0.5, -0.5], dtype=np.float32)
    lowered = _strictly_descending(scores)
    assert (np.diff(lowered) < 0).all()
    np.testing.assert_allclose(lowered, scores, atol=2e-7)
    assert lowered[4] == -tiny
    untied = np.array([3.0, 1.0, -2.0], dtype=np.float32)
    np.testing.assert_array_equal(_strictly_descending(untied), untied)


def test_what_matches_nothing_is_ranked_but_asks_for_nothing(tmp_path):
    random = np.random.default_rng(0)
    data = Embeddings.checked(
        random.normal(size=(6, 3)), random.normal(size=(8, 3)), np.arange(6), np.array([0, 1, 2, 3, 7, 7, 3, 2])
    )
    write_trec(tmp_path / "x", arrange(PLAIN, data))
    for direction, queries, items in (("image_to_text", 4, 8), ("text_to_image", 6, 6)):
        run, right = read(tmp_path / "x", direction)
        assert len(run) == queries
        assert set(run) == set(right)
        assert {len(ranking) for ranking in run.values()} == {items}


def test_ir_measures_agrees(tmp_path):
    ir_measures = pytest.importorskip("ir_measures", reason="ir_measures (optional) is not installed")
    from ir_measures import AP, RR, P, Success, nDCG

    names = {Success @ 1: "R@1", Success @ 10: "R@10", P @ 5: "AP@5", P @ 50: "AP@50", AP: "mAP", nDCG: "nDCG"}
    for data in (small(np.arange(60) // 3), small(np.arange(80), 1, levels=1)):
        found = EXTRA.evaluate(data).result
        write_trec(tmp_path / "x", arrange(EXTRA, data))
        for direction in DIRECTIONS:
            qrels, run = (str(tmp_path / f"x.{direction}.{suffix}") for suffix in ("qrels", "run"))
            theirs = ir_measures.calc_aggregate(
                [*names, RR], list(ir_measures.read_trec_qrels(qrels)), list(ir_measures.read_trec_run(run))
            )
            ours = getattr(found, direction)
            for measure, name in names.items():
                assert theirs[measure] * 100 == pytest.approx(ours.value(name), abs=1e-6), name
            assert theirs[RR] == pytest.approx((1 / ours.ranks.first).mean())


RANX = """
import json, sys, ranx
names, *prefixes = map(json.loads, sys.argv[1:])
for prefix in prefixes:
    qrels = ranx.Qrels.from_file(prefix + ".qrels", kind="trec")
    run = ranx.Run.from_file(prefix + ".run", kind="trec")
    print(json.dumps({name: float(value) for name, value in ranx.evaluate(qrels, run, names).items()}))
"""


def test_ranx_agrees(tmp_path):
    if not find_spec("ranx"):
        pytest.skip("ranx (optional) is not installed")
    names = {"hit_rate@1": "R@1", "hit_rate@10": "R@10", "precision@5": "AP@5", "map": "mAP", "ndcg": "nDCG"}
    cases = []
    for case, data in enumerate((small(np.arange(60) // 3), small(np.arange(80), 1, levels=1))):
        found = EXTRA.evaluate(data).result
        write_trec(tmp_path / f"{case}", arrange(EXTRA, data))
        cases += [(tmp_path / f"{case}.{direction}", getattr(found, direction)) for direction in DIRECTIONS]
    # Compiling ranx's functions takes a minute, running them as plain Python a moment.
    done = subprocess.run(
        [sys.executable, "-c", RANX, json.dumps(list(names)), *(json.dumps(str(prefix)) for prefix, _ in cases)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for theirs, (_, ours) in zip(answers, cases, strict=True):
        for measure, name in names.items():
            assert theirs[measure] * 100 == pytest.approx(ours.value(name), abs=1e-6), name
