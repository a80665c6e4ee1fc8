"""Results that are stored and read again, and those that can't be."""

import json

import numpy as np
import pytest

from crosspair import UserError
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, find_protocol
from crosspair.evaluation.published import FixedSplit
from crosspair.evaluation.results import labels_checksum, ranks_path, read_result, write_result
from crosspair.evaluation.uncertainty import intervals_of


def evaluated(protocol=PLAIN):
    random = np.random.default_rng(0)
    labels, rows = np.arange(30) // 3, np.repeat(np.arange(30), 2)
    images = random.normal(size=(30, 4))
    texts = images[rows] + random.normal(size=(60, 4))
    return protocol.evaluate(Embeddings.checked(images, texts, labels, labels[rows], rows))


@pytest.fixture
def stored(tmp_path):
    found = evaluated()
    path = tmp_path / "new" / "result.json"
    write_result(path, found, intervals_of(found), {"model": "runs/one", "split": "test"})
    return path


@pytest.mark.parametrize("name", ["plain", "icfg-pedes", "cub"])
def test_a_stored_result_has_the_values_of_every_query(tmp_path, name):
    found = evaluated(find_protocol(name))
    intervals = intervals_of(found)
    write_result(tmp_path / "result.json", found, intervals, {"model": "runs/one"})
    read = read_result(tmp_path / "result.json")
    assert read.evaluation.to_dict() == found.to_dict()
    assert read.evaluation.protocol == find_protocol(name)
    assert intervals_of(read.evaluation) == intervals
    assert read.facts["model"] == "runs/one"
    assert read.facts["intervals"]["image_to_text"] == intervals.to_dict()["image_to_text"]
    assert read.facts["text_to_image"] == found.to_dict()["text_to_image"]


def test_folds_are_pooled_and_stand_in_the_json(tmp_path):
    small = FixedSplit("plain", "", "", num_images=10, captions=1, folds=2)
    found = small.evaluate(Embeddings.checked(np.eye(10), np.eye(10), np.arange(10), np.arange(10)))
    write_result(tmp_path / "result.json", found, intervals_of(found), {})
    assert len(read_result(tmp_path / "result.json").facts["folds"]) == 2


@pytest.mark.parametrize(
    ("name", "beside"), [("a.json", "a.ranks.npz"), ("a", "a.ranks.npz"), ("v1.2", "v1.2.ranks.npz")]
)
def test_the_ranks_lie_beside_the_numbers(tmp_path, name, beside):
    assert ranks_path(tmp_path / name) == tmp_path / beside


def test_labels_count_by_what_matches_not_by_their_numbers():
    images, texts = np.array([0, 1, 2]), np.array([0, 0, 1, 2])
    same = labels_checksum(np.array([70, -1, 5]), np.array([70, 70, -1, 5]))
    assert labels_checksum(images, texts) == same
    assert labels_checksum(images, np.array([0, 1, 1, 2])) != same
    assert labels_checksum(np.array([0, 1, 2, 0]), np.array([0, 1, 2])) != same


def test_a_result_without_its_ranks_or_with_others_is_refused(stored):
    ranks = ranks_path(stored)
    whole = ranks.read_bytes()
    ranks.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"result\.ranks\.npz is not the one that result\.json was written with"):
        read_result(stored)
    ranks.unlink()
    with pytest.raises(UserError, match=r"has lost result\.ranks\.npz, the ranks beside it; copy both"):
        read_result(stored)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 3}, "has format 3, this crosspair reads formats up to 2"),
        ({"format": 1}, "has format 1, without what intervals need now; evaluate again"),
        ({"protocol": "unknown"}, "there is no protocol 'unknown'"),
        ({"ranks_checksum": "0" * 64}, "is not the one"),
        ({"ranks_checksum": None}, "field 'ranks_checksum' is null; expected a text"),
        ({"protocol": ["plain"]}, "field 'protocol' is a list; expected a text"),
        ({"format": -1}, "field 'format' is -1; expected a whole number of at least 0"),
        ({"format": None, "metric": ...}, "is no result of crosspair evaluate"),
    ],
)
def test_a_changed_result_is_refused(stored, change, sentence):
    facts = json.loads(stored.read_text())
    facts = {key: change.get(key, value) for key, value in facts.items() if change.get(key) is not ...}
    stored.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=sentence):
        read_result(stored)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}', "\x00", "[" * 100_000])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match="is no result of crosspair evaluate") as error:
        read_result(tmp_path / "other.json")
    assert "\n" not in str(error.value)
