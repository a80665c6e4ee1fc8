"""Each protocol against its definition written out, its choice from DATA, and what doesn't fit it."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from crosspair import UserError, evaluate_retrieval
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, Protocol, choose_protocol, find_protocol, plugin_facts
from crosspair.evaluation.published import FixedSplit
from crosspair.evaluation.uncertainty import intervals_of
from crosspair.registry import PROTOCOLS, load_plugin
from tests.fixtures.plugins import page_plugin

FOLDS = FixedSplit("small-5fold", "", "", num_images=40, captions=3, folds=5)  # coco-1k-5fold in small


def correlated(labels, texts_each, dimension=8, noise=1.5, seed=0):
    """Embeddings around one centre a label; a picture's texts stand together, with the picture they belong to."""
    random = np.random.default_rng(seed)
    labels = np.asarray(labels)
    centres = random.normal(size=(labels.max() + 1, dimension))
    num_images = np.repeat(np.arange(len(labels)), texts_each)
    images = centres[labels] + noise * random.normal(size=(len(labels), dimension))
    texts = centres[labels[num_images]] + noise * random.normal(size=(len(num_images), dimension))
    return Embeddings.checked(images, texts, labels, labels[num_images], num_images)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("source", "split", "num_images", "name"),
    [
        ("flickr30k", "test", 1000, "flickr30k-1k"),
        ("flickr30k", "val", 1014, "plain"),
        ("flickr30k", "test", 999, "plain"),
        ("coco", "test", 5000, "coco-5k"),
        ("coco", "val", 5000, "plain"),
        ("cuhk-pedes", "test", 3074, "cuhk-pedes"),
        ("cuhk-pedes", "val", 3078, "cuhk-pedes"),
        ("icfg-pedes", "test", 19848, "icfg-pedes"),
        ("rstpreid", "test", 1000, "rstpreid"),
        ("cub", "test", 2933, "cub"),
        ("flowers", "test", 1155, "flowers"),
        ("flickr8k", "test", 1000, "plain"),
        ("table", "test", 5000, "plain"),
        ("", "test", 1, "plain"),
    ],
)
def test_the_protocol_is_chosen_from_the_source_and_the_split(source, split, num_images, name):
    assert choose_protocol(source, split, num_images).name == name


def test_every_protocol_is_found_by_its_name_and_has_a_reference_and_metrics_there_are():
    small = correlated(np.arange(6) // 2, 2)
    for name in PROTOCOLS.names():
        protocol = find_protocol(name)
        assert protocol.name == name
        assert protocol.reference
        assert protocol.summary
        result = evaluate_retrieval(small.images, small.texts, small.image_labels, small.text_labels, (1, 5, 10))
        for direction, metric in protocol.main:
            assert 0 <= getattr(result, direction).value(metric) <= 100


def test_plain_is_evaluate_retrieval():
    data = correlated(np.arange(30), 2)
    found = PLAIN.evaluate(data)
    expected = evaluate_retrieval(data.images, data.texts, data.image_labels, data.text_labels)
    assert found.to_dict() == {"protocol": "plain", **expected.to_dict()}
    assert found.query_labels["image_to_text"].tolist() == list(range(30))
    assert found.query_labels["text_to_image"].tolist() == data.text_images.tolist()


def test_the_five_folds_are_consecutive_blocks_and_are_averaged():
    data = correlated(np.random.default_rng(1).permutation(40), 3)
    found = FOLDS.evaluate(data)
    assert len(found.folds) == 5
    for number, fold in enumerate(found.folds):
        images, texts = slice(8 * number, 8 * number + 8), slice(24 * number, 24 * number + 24)
        arrays = data.images[images], data.texts[texts], data.image_labels[images], data.text_labels[texts]
        assert fold.to_dict() == evaluate_retrieval(*arrays).to_dict()
    for direction in ("image_to_text", "text_to_image"):
        for metric in ("R@1", "R@5", "R@10", "mAP", "mean_rank"):
            mean = np.mean([getattr(fold, direction).value(metric) for fold in found.folds])
            assert getattr(found.result, direction).value(metric) == pytest.approx(mean)
    assert found.result.rsum == pytest.approx(np.mean([fold.rsum for fold in found.folds]))
    written = json.loads(json.dumps(found.to_dict()))
    assert [fold["rsum"] for fold in written["folds"]] == [fold.rsum for fold in found.folds]
    assert found.query_labels["text_to_image"].tolist() == data.text_labels.tolist()


def test_coco_has_five_folds_of_a_thousand_pictures():
    protocol = find_protocol("coco-1k-5fold")
    data = correlated(np.arange(5000), 5, dimension=2)
    found = protocol.evaluate(data)
    assert [fold.text_to_image.ranks.gallery_size for fold in found.folds] == [1000] * 5
    assert [fold.image_to_text.ranks.gallery_size for fold in found.folds] == [5000] * 5
    assert "coco-1k-5fold" in found.to_table()
    assert len(found.to_table().splitlines()) == 4 + 1 + 1 + 5


def test_only_the_first_captions_of_a_picture_count():
    """The sixth caption of COCO's few pictures with more is left out, wherever it stands in the file."""
    protocol = FixedSplit("first-two", "", "", num_images=3, captions=2)
    images, labels = np.eye(3), np.arange(3)
    texts, text_labels = np.eye(3)[[0, 1, 2, 0, 1, 2, 1]], np.array([0, 1, 2, 0, 1, 2, 0])
    found = protocol.evaluate(Embeddings.checked(images, texts, labels, text_labels)).result
    assert found.image_to_text.ranks.gallery_size == 6
    assert found.text_to_image.value("R@1") == 100


@pytest.mark.parametrize("name", ["cuhk-pedes", "icfg-pedes", "rstpreid"])
def test_every_picture_of_a_person_is_right(name):
    data = correlated([0, 0, 0, 1, 1, 2, 2, 2, 2, 3], 2)
    found = find_protocol(name).evaluate(data)
    scores = unit(data.texts) @ unit(data.images).T
    matches = np.array([data.image_labels[np.argsort(-row)] for row in scores]) == data.text_labels[:, None]
    last = [np.flatnonzero(row)[-1] + 1 for row in matches]
    values = found.to_dict()["text_to_image"]
    assert values["R@1"] == pytest.approx(matches[:, 0].mean() * 100)
    assert values["mINP"] == pytest.approx(np.mean(matches.sum(1) / last) * 100)
    assert [metric for _, metric in found.protocol.main] == ["R@1", "R@5", "R@10", "mAP", "mINP"]
    assert found.query_labels["text_to_image"].tolist() == data.text_labels.tolist()


@pytest.mark.parametrize("name", ["cub", "flowers"])
def test_a_class_is_the_mean_of_its_sentences(name):
    labels = np.repeat([3, 0, 7], [80, 60, 70])
    data = correlated(labels, 2, noise=3)
    found = find_protocol(name).evaluate(data)
    means = np.array([data.texts[data.text_labels == label].mean(0) for label in (0, 3, 7)])
    scores = unit(data.images) @ unit(means).T
    accuracy = (np.array([0, 3, 7])[scores.argmax(1)] == labels).mean() * 100
    among = [(labels[np.argsort(-scores[:, c])[:50]] == label).mean() for c, label in enumerate((0, 3, 7))]
    assert found.result.image_to_text.value("R@1") == pytest.approx(accuracy)
    assert found.to_dict()["text_to_image"]["AP@50"] == pytest.approx(np.mean(among) * 100)
    assert 50 < found.result.text_to_image.value("AP@50") < 100
    assert "AP@50" not in found.to_dict()["image_to_text"]
    assert ("image_to_text", "AP@50") not in intervals_of(found).bounds
    header, image_to_text, text_to_image = found.to_table().splitlines()[:3]
    assert header.endswith("AP@50")
    assert text_to_image.endswith(f"{np.mean(among) * 100:.1f}")
    assert len(image_to_text) < len(text_to_image) - len("  ")
    assert found.query_labels["text_to_image"].tolist() == [3, 0, 7]
    assert found.query_labels["image_to_text"].tolist() == labels.tolist()


def test_cocos_test_split_shows_the_mean_of_the_1k_folds_beside():
    data = correlated(np.arange(5000), 6, dimension=4)
    found = find_protocol("coco-5k").evaluate(data)
    folds = find_protocol("coco-1k-5fold").evaluate(data)
    assert found.to_dict()["beside"] == {"coco-1k-5fold": folds.result.to_dict()}
    assert found.result.text_to_image.recall(1) < folds.result.text_to_image.recall(1)
    line = next(line for line in found.to_table().splitlines() if line.startswith("coco-1k-5fold"))
    assert line.endswith(f"(image to text, text to image), rsum {folds.result.rsum:.1f}")
    one = find_protocol("coco-5k").evaluate(data, directions=("text_to_image",))
    assert one.to_table().splitlines()[-1].endswith("(text to image)")


@pytest.mark.parametrize(
    ("labels", "texts_each", "sentence"),
    [
        (np.arange(39), 3, "protocol small-5fold needs the 40 pictures of its test split, found 39"),
        (np.arange(40) // 2, 3, "needs a label of its own for each picture"),
        (np.arange(40), 2, "needs 3 captions of every picture, found 2 of the one with label 0"),
    ],
)
def test_what_does_not_fit_a_protocol_is_one_sentence(labels, texts_each, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        FOLDS.evaluate(correlated(labels, texts_each))
    assert "--protocol plain" in str(error.value)


def test_an_unknown_protocol_brings_those_there_are():
    with pytest.raises(UserError, match=r"no protocol 'coco' .*; expected one of coco-1k-5fold, coco-5k, cub"):
        find_protocol("coco")


OWN = '''

from crosspair.evaluation.protocols import Protocol


@crosspair.register_protocol("halves")
class Halves(Protocol):
    """Two halves, each ranked by itself."""

    def arrange(self, task):
        rows = np.arange(len(task.embeddings.images))
        labels = task.embeddings.text_labels
        return [task.part(half, np.flatnonzero(np.isin(labels, half))) for half in np.array_split(rows, 2)]
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Protocols registered by a file of the user's, in this process until the test ends."""
    monkeypatch.setattr(PROTOCOLS, "_entries", dict(PROTOCOLS._entries))
    plugin = tmp_path / "my_protocol.py"
    plugin.write_text(page_plugin("my_protocol.py") + OWN)
    (tmp_path / "my_metrics.py").write_text(page_plugin("my_metrics.py"))
    load_plugin(str(tmp_path / "my_metrics.py"))
    return load_plugin(str(plugin))


def test_a_users_function_says_what_is_ranked(own):
    data = correlated(np.arange(6), 3)
    found = find_protocol("first-caption").evaluate(data)
    expected = evaluate_retrieval(data.images, data.texts[::3], data.image_labels, data.text_labels[::3])
    assert found.result.to_dict() == expected.to_dict()
    assert found.query_labels["text_to_image"].tolist() == list(range(6))
    assert "protocol first-caption: All images, and the first caption of each label alone.\n" in found.to_table() + "\n"
    assert plugin_facts(found.protocol) == {"protocol_plugin": {"name": own.name, "checksum": own.checksum}}
    assert plugin_facts(PLAIN) == {}


def test_a_users_protocol_reports_other_metrics_or_is_a_class(own):
    data = correlated(np.arange(40), 2)
    values = find_protocol("gain").evaluate(data).to_dict()
    assert {"R@20", "nDCG"} <= values["image_to_text"].keys() & values["text_to_image"].keys()
    halves = find_protocol("halves").evaluate(data)
    assert halves.to_dict()["protocol"] == "halves"
    assert [fold.text_to_image.ranks.gallery_size for fold in halves.folds] == [20, 20]


def test_the_report_names_a_users_protocol_and_ranks_all_for_its_charts(own, tmp_path):
    from crosspair.report.page import write_report

    data = correlated(np.arange(6), 2)
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    found = find_protocol("first-caption").evaluate(data)
    options = {"captions": ["words"] * 12, "thumbnail": lambda row: image.getvalue(), "history": []}
    write_report(tmp_path / "report.html", title="x", facts={}, embeddings=data, evaluation=found, **options)
    page = (tmp_path / "report.html").read_text()
    assert "first-caption: All images, and the first caption of each label alone." in page
    assert "of the first relevant item among 6 texts and 6 pictures" in page


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        (lambda task: task.embeddings, "the protocol mine returns Embeddings; expected a Task or a list of them"),
        (lambda task: [], "the protocol mine returns list; expected a Task"),
        (7, "the protocol 'mine' is registered as int; expected a function, or a Protocol"),
    ],
)
def test_what_is_no_protocol_is_one_sentence(monkeypatch, thing, sentence):
    monkeypatch.setattr(PROTOCOLS, "_entries", dict(PROTOCOLS._entries))
    PROTOCOLS.register("mine")(thing)
    with pytest.raises(UserError, match=sentence):
        find_protocol("mine").evaluate(correlated(np.arange(3), 1))


def test_a_metric_that_there_is_not_is_said_at_once():
    with pytest.raises(UserError, match="there is no metric 'R@0'"):
        Protocol("mine", image_to_text=("R@0",))


def test_a_built_in_name_is_taken(monkeypatch):
    monkeypatch.setattr(PROTOCOLS, "_entries", {})
    with pytest.raises(UserError, match="'coco-5k' is a built-in protocol; give your own another name"):
        PROTOCOLS.register("coco-5k")(Protocol("coco-5k"))


def test_the_command_evaluates_and_compares_by_a_users_protocol(tmp_path):
    """From outside: processes that know of the protocol by its plugin alone."""
    plugin = tmp_path / "my_protocol.py"
    plugin.write_text(page_plugin("my_protocol.py"))
    files = []
    for seed in (0, 1):
        data = correlated(np.arange(30), 3, noise=1 + seed)
        arrays = {"image_labels": data.image_labels, "text_labels": data.text_labels, "text_images": data.text_images}
        file = tmp_path / f"embeddings{seed}.npz"
        np.savez(file, image_embeddings=data.images, text_embeddings=data.texts, **arrays)
        files.append(file)

    def crosspair(*arguments):
        command = [sys.executable, "-m", "crosspair", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    unknown = crosspair("evaluate", "--embeddings", files[0], "--protocol", "first-caption")
    assert unknown.returncode == 2
    assert "there is no protocol 'first-caption'" in unknown.stderr
    own = ("--protocol", "first-caption", "--plugin", plugin)
    results = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, result in zip(files, results, strict=True):
        done = crosspair("evaluate", "--embeddings", file, *own, "--output", result)
        assert done.returncode == 0, done.stderr
    assert "protocol first-caption: All images, and the first caption of each label alone." in done.stdout
    assert json.loads(results[0].read_text())["protocol_plugin"]["name"] == "my_protocol.py"
    compared = crosspair("compare", *results, "--plugin", plugin)
    assert "protocol first-caption" in compared.stdout, compared.stderr
    plugin.write_text(plugin.read_text() + "# changed\n")
    crosspair("evaluate", "--embeddings", files[1], *own, "--output", results[1])
    refused = crosspair("compare", *results, "--plugin", plugin)
    assert refused.returncode == 2
    assert "different versions of the protocol first-caption" in refused.stderr
