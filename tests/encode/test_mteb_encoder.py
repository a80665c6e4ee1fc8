"""mteb evaluates a model of ours, offline, on tiny tasks made here; its numbers are those of `evaluate_retrieval`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as Pillow

import crosspair
from crosspair.encode.mteb_encoder import MTEBEncoder
from tests.fixtures.galleries import COLOURS, save_image

mteb: Any = pytest.importorskip("mteb", reason="mteb is not installed")

from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import EncoderProtocol  # noqa: E402

IMAGES = 12


def task(category: str, queries: Dataset, corpus: Dataset, relevant: dict[str, dict[str, int]]) -> Any:
    """A retrieval task that has its data already."""

    class Tiny(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Tiny{category.upper()}Retrieval",
            description="A task of a test.",
            dataset={"path": "none/none", "revision": "1"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

    made = Tiny()
    split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
    made.dataset = {"default": {"test": split}}
    made.data_loaded = True
    return made


def scores(model: MTEBEncoder, *given: Any) -> dict[str, float]:
    result = mteb.evaluate(model, task(*given), cache=None, show_progress_bar=False)
    [found] = result.task_results[0].scores["test"]
    return found


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [save_image(tmp_path / f"{number}.png", number) for number in range(IMAGES)]


@pytest.fixture
def pairs(images: list[Path]) -> tuple[Dataset, Dataset, list[str], list[int]]:
    """Images, two captions of each, the captions' texts and the images they belong to."""
    of_image = [row for row in range(IMAGES) for _ in range(2)]
    texts = [f"a {COLOURS[number % 8]} {COLOURS[number % 7]} square" for number in range(len(of_image))]
    photographs = Dataset.from_dict({"id": [f"i{row}" for row in range(IMAGES)], "image": [str(p) for p in images]})
    captions = Dataset.from_dict({"id": [f"c{number}" for number in range(len(texts))], "text": texts})
    return photographs.cast_column("image", Image()), captions, texts, of_image


def test_the_numbers_are_those_of_evaluate_retrieval(model_dir, images, pairs):
    photographs, captions, texts, of_image = pairs
    model = crosspair.mteb_model(model_dir, device="cpu")
    to_image = {f"c{number}": {f"i{row}": 1} for number, row in enumerate(of_image)}
    to_text = {f"i{row}": {f"c{row * 2}": 1, f"c{row * 2 + 1}": 1} for row in range(IMAGES)}
    found = {
        "text_to_image": scores(model, "t2i", captions, photographs, to_image),
        "image_to_text": scores(model, "i2t", photographs, captions, to_text),
    }
    own = crosspair.DualEncoder.from_pretrained(model_dir, device="cpu")
    embeddings = own.encode_image(images), own.encode_text(texts)
    expected = crosspair.evaluate_retrieval(*embeddings, range(IMAGES), of_image).to_dict()
    for direction, metrics in found.items():
        ours = expected[direction]
        for k in (1, 5, 10):
            assert 100 * metrics[f"hit_rate_at_{k}"] == pytest.approx(ours[f"R@{k}"], abs=1e-2)
        assert 100 * metrics["map_at_1000"] == pytest.approx(ours["mAP"], abs=1e-2)
    assert 0 < expected["text_to_image"]["R@5"] < 100  # a task that all or none are found in would show nothing


def test_an_item_with_an_image_and_a_text_is_the_sum_of_both(model_dir, images, pairs):
    photographs, _, texts, _ = pairs
    queries = photographs.add_column("text", texts[:IMAGES])
    model = crosspair.mteb_model(model_dir, device="cpu")
    relevant = {f"i{row}": {f"i{(row + 1) % IMAGES}": 1} for row in range(IMAGES)}
    found = scores(model, "it2i", queries, photographs, relevant)
    own = crosspair.DualEncoder.from_pretrained(model_dir, device="cpu")
    seen = own.encode_image(images)
    after = [(row + 1) % IMAGES for row in range(IMAGES)]
    queries_seen = seen + own.encode_text(texts[:IMAGES])
    expected = crosspair.evaluate_retrieval(queries_seen, seen, after, range(IMAGES)).to_dict()["image_to_text"]
    assert 100 * found["hit_rate_at_5"] == pytest.approx(expected["R@5"], abs=1e-2)
    assert 100 * found["map_at_1000"] == pytest.approx(expected["mAP"], abs=1e-2)


def test_it_is_what_mteb_takes_for_an_encoder(model_dir):
    model = crosspair.mteb_model(model_dir, device="cpu")
    assert isinstance(model, EncoderProtocol)
    first, second = torch.randn(3, 8), torch.randn(3, 8).numpy()
    similarity = model.similarity(first, second)
    assert similarity.shape == (3, 3)
    assert torch.allclose(model.similarity_pairwise(first, second), similarity.diagonal(), atol=1e-6)
    assert similarity.abs().max() <= 1 + 1e-6


def test_results_of_a_model_trained_again_are_not_taken_from_the_cache(tmp_path, model_dir, tiny_model, pairs):
    photographs, captions, _, of_image = pairs
    relevant = {f"c{number}": {f"i{row}": 1} for number, row in enumerate(of_image)}
    cache = mteb.ResultCache(cache_path=tmp_path / "cache")
    other = tiny_model()
    with torch.no_grad():
        other.text_projection.requires_grad_(False)
        for value in other.text_projection.parameters():
            value.neg_()
    other.save_pretrained(tmp_path / "runs" / "first" / "model")
    models = [
        crosspair.mteb_model(model_dir, name="mine/run", device="cpu"),
        crosspair.mteb_model(tmp_path / "runs" / "first" / "model", name="mine/run", device="cpu"),
    ]
    found = []
    for model in models:
        tiny = task("t2i", captions, photographs, relevant)
        result = mteb.evaluate(model, tiny, cache=cache, show_progress_bar=False)
        found.append(result.task_results[0].scores["test"][0]["map_at_1000"])
    assert found[0] != found[1]
    assert len(list((tmp_path / "cache").rglob("TinyT2IRetrieval.json"))) == 2


def test_a_model_has_the_name_of_its_run(tmp_path, tiny_model):
    tiny_model().save_pretrained(tmp_path / "runs" / "first" / "model")
    model = crosspair.mteb_model(tmp_path / "runs" / "first" / "model", device="cpu")
    assert model.mteb_model_meta.name == "crosspair/first"
    assert crosspair.mteb_model(tmp_path / "runs" / "first" / "model", name="me/best").mteb_model_meta.name == "me/best"


def test_a_task_without_texts_and_images_is_refused(model_dir):
    model = crosspair.mteb_model(model_dir, device="cpu")
    with pytest.raises(crosspair.UserError, match="found a task of audio; expected one of texts and images"):
        model.encode([{"audio": [Pillow.new("RGB", (2, 2))]}], show_progress_bar=False)
