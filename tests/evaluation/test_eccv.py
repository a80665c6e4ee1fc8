"""ECCV Caption against the package's own Metrics, on random embeddings with its real ids."""

import json
import warnings

import numpy as np
import pytest

from crosspair import UserError
from crosspair.evaluation import eccv
from crosspair.evaluation.eccv import data_directory
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import arrange, find_protocol
from crosspair.evaluation.results import read_result, write_result
from crosspair.evaluation.uncertainty import intervals_of

PROTOCOL = find_protocol("eccv-caption")


def of_coco(seed=0, **changes):
    """Random embeddings for all ids, pictures near their captions, both sides shuffled."""
    random = np.random.default_rng(seed)
    captions = np.load(data_directory() / "coco_test_ids.npy")
    own = json.loads((data_directory() / "original_caption_to_image.json").read_text())
    image_of_caption = np.array([own[str(caption)][0] for caption in captions[::5]])
    images = random.normal(size=(5000, 8)).astype(np.float32)
    texts = images.repeat(5, 0) + 0.4 * random.normal(size=(25_000, 8)).astype(np.float32)
    p, q = random.permutation(5000), random.permutation(25_000)
    given = {"image_ids": image_of_caption[p], "caption_ids": captions[q]} | changes
    labels = np.arange(5000)
    return Embeddings.checked(images[p], texts[q], labels[p], labels.repeat(5)[q], **given)


@pytest.fixture(scope="module")
def data():
    return of_coco()


@pytest.fixture(scope="module")
def found(data):
    return PROTOCOL.evaluate(data)


def best(queries, gallery, ids, folds, gallery_folds):
    """The ids of the first 50 items of every query, then of the first 10 of its own fold, as the package takes them."""
    found = []
    for start in range(0, len(queries), 500):
        scores = queries[start : start + 500] @ gallery.T
        of_fold = np.where(np.equal.outer(folds[start : start + 500], gallery_folds), scores, -np.inf)
        for row, row_of_fold in zip(scores, of_fold, strict=True):
            first, within = np.argpartition(-row, 50)[:50], np.argpartition(-row_of_fold, 10)[:10]
            found.append(ids[[*first[np.argsort(-row[first])], *within[np.argsort(-row[within])]]].tolist())
    return found


def test_all_numbers_are_those_of_the_package(data, found):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eccv_caption import Metrics
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (data.images, data.texts)]
    package = Metrics()
    fold_of_caption = {caption: place // 5000 for place, caption in enumerate(package.coco_ids.tolist())}
    folds = np.array([fold_of_caption[package.coco_gts["i2t"][image][0]] for image in data.image_ids.tolist()])
    caption_folds = np.array([fold_of_caption[caption] for caption in data.caption_ids.tolist()])
    captions = best(*unit, data.caption_ids, folds, caption_folds)
    image_of_caption = best(*unit[::-1], data.image_ids, caption_folds, folds)
    image_to_text = dict(zip(data.image_ids.tolist(), captions, strict=True))
    text_to_image = dict(zip(data.caption_ids.tolist(), image_of_caption, strict=True))
    wanted = ("coco_5k_recalls", "cxc_recalls", "eccv_map_at_r", "eccv_rprecision", "eccv_r1")
    theirs = package.compute_all_metrics(image_to_text, text_to_image, target_metrics=wanted)
    last = [{key: items[50:] for key, items in lists.items()} for lists in (image_to_text, text_to_image)]
    theirs |= package.compute_all_metrics(*last, target_metrics=("coco_1k_recalls",))
    for short, direction in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
        ours = getattr(found.result, direction)
        for theirs_name, name in (("map_at_r", "mAP@R"), ("rprecision", "R-Precision"), ("r1", "R@1")):
            assert ours.value(name) == pytest.approx(100 * theirs[f"eccv_{theirs_name}"][short], abs=1e-9)
            assert 1 < ours.value(name) < 99
        for theirs_name, name in (("coco_1k", "coco-1k-5fold"), ("coco_5k", "coco-5k"), ("cxc", "cxc")):
            for k in (1, 5, 10):
                value = getattr(found.beside[name], direction).recall(k)
                assert value == pytest.approx(100 * theirs[f"{theirs_name}_r{k}"][short], abs=1e-9)


def test_the_queries_are_those_with_lists_and_their_pictures_are_the_clusters(found):
    assert len(found.query_labels["image_to_text"]) == len(found.result.image_to_text.ranks.positives) == 1261
    assert len(found.query_labels["text_to_image"]) == len(found.result.text_to_image.ranks.positives) == 1332
    assert found.result.image_to_text.ranks.gallery_size == 25_000
    assert found.result.text_to_image.ranks.gallery_size == 5000
    assert found.query_labels["text_to_image"].max() < 5000


def test_cxc_is_a_protocol_of_its_own(data, found):
    """Its recalls are those beside eccv-caption, which are the package's."""
    own = find_protocol("cxc").evaluate(data)
    assert own.result.to_dict() == found.beside["cxc"].to_dict()
    assert set(own.beside) == {"coco-5k", "coco-1k-5fold"}
    assert len(own.query_labels["image_to_text"]) == 5000
    assert len(own.query_labels["text_to_image"]) == 24_972
    assert "protocol cxc" in own.to_table()


def test_two_listed_captions_are_in_no_gallery_and_are_never_found(found):
    assert (found.result.image_to_text.ranks.ranks == 25_001).sum() == 2


def test_it_is_printed_with_its_reference_and_stored(found, tmp_path):
    table = found.to_table()
    assert "protocol eccv-caption" in table
    assert "Chun et al., ECCV 2022" in table
    for name in ("mAP@R", "R-Precision", "coco-1k-5fold", "coco-5k", "cxc"):
        assert name in table
    write_result(tmp_path / "result.json", found, intervals_of(found), {})
    read = read_result(tmp_path / "result.json")
    assert read.evaluation.result.to_dict() == found.result.to_dict()
    assert set(read.facts["beside"]) == {"coco-1k-5fold", "coco-5k", "cxc"}


def test_equal_scores_count_against_the_model():
    judged = eccv.Judgements(np.arange(2), (np.array([0, 2]), np.array([1, -1])))
    scores = np.array([[0.5, 0.5, 0.9], [0.1, 0.3, 0.2]])
    ranks = eccv._ranks([(slice(0, 2), scores)], judged, gallery_size=3)
    assert ranks.ranks.tolist() == [1, 3, 1, 4]


def test_what_it_needs_is_named_where_it_is_missing(data, monkeypatch):
    with pytest.raises(UserError, match=r"protocol cxc needs COCO's ids"):
        find_protocol("cxc").evaluate(of_coco(caption_ids=None))
    for changes, sentence in (
        ({"caption_ids": None}, r"needs COCO's ids of pictures and captions \(image_ids, caption_ids\), found none"),
        ({"caption_ids": data.caption_ids + 10**7}, "needs the 25,000 captions of COCO's test split by their ids"),
        ({"image_ids": np.arange(5000)}, r"5,000 images of COCO's test split by their ids, \d,\d+ are missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            PROTOCOL.evaluate(of_coco(**changes))
    with pytest.raises(UserError, match="take coco-5k for that"):
        arrange(PROTOCOL, data)
    monkeypatch.setattr(eccv.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install eccv-caption"):
        PROTOCOL.evaluate(data)
