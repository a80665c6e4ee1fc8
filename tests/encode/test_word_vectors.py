"""A word embedding that starts from a file of vectors."""

import pytest
import torch

import crosspair
from crosspair.encode.model import DualEncoder, create_model
from crosspair.errors import UserError
from crosspair.training.loop import train
from crosspair.training.recipe import StageConfig
from tests.fixtures.models import tiny_config

VECTORS = "dog 1 2 3 4 5 6 7 8\nruns -1 -2 -3 -4 -5 -6 -7 -8\nzebra 0 0 0 0 0 0 0 0\n"


@pytest.fixture
def vectors(tmp_path) -> str:
    (tmp_path / "glove.txt").write_text(VECTORS)
    return str(tmp_path / "glove.txt")


def created(**text):
    told = []
    torch.manual_seed(0)
    return create_model(tiny_config(text={"min_count": 1, **text}), ["a dog runs"], told.append), told


def test_words_of_the_file_start_from_it_and_others_as_ever(vectors):
    (model, told), (plain, silent) = created(word_vectors=vectors), created()
    rows = {word: model.tokenize(word)[0] for word in ("a", "dog", "runs")}
    found = model.text_encoder.embedding.weight
    assert found[rows["dog"]].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found[rows["runs"]].tolist() == [-1, -2, -3, -4, -5, -6, -7, -8]
    for row in (0, 1, rows["a"]):  # padding, the unknown word, and a word that the file lacks
        assert torch.equal(found[row], plain.text_encoder.embedding.weight[row])
    assert found.requires_grad
    assert told == [f"word vectors: 2 of 3 words (66.7 %) are in {vectors}"]
    assert silent == []


def test_a_file_of_another_size_or_without_these_words_is_refused(vectors):
    with pytest.raises(UserError, match="has vectors of 8 numbers, and the word embedding has 7"):
        created(word_vectors=vectors, word_dim=7)
    config = tiny_config(text={"min_count": 1, "word_vectors": vectors})
    with pytest.raises(UserError, match="has none of the 2 words"):
        create_model(config, ["ein Hund"])


def test_an_encoder_with_words_of_its_own_refuses_them(vectors):
    config = tiny_config(text={"name": "user/bert", "weights": "none", "word_vectors": vectors})
    with pytest.raises(UserError, match=r"has an embedding of its own; set model.text.word_vectors to null"):
        create_model(config, [])


@pytest.mark.usefixtures("own_cache")
def test_a_run_needs_the_file_at_its_start_alone(tmp_path, toy_data, toy_recipe):
    path = tmp_path / "glove.txt"
    path.write_text("red 1 2 3 4 5 6 7 8\n")
    recipe = toy_recipe(stage2=StageConfig())
    recipe.model.text.word_vectors = str(path)

    def stop(progress, seen):
        raise RuntimeError("stop")

    recipe.checkpoint_minutes = 0.0
    train(recipe, toy_data, tmp_path / "whole", progress=False)
    with pytest.raises(RuntimeError, match="stop"):
        train(recipe, toy_data, tmp_path / "run", progress=False, callbacks=[crosspair.Callback(on_checkpoint=stop)])
    path.unlink()
    train(recipe, toy_data, tmp_path / "run", resume=True, progress=False)
    whole, resumed = (DualEncoder.from_pretrained(tmp_path / name / "model") for name in ("whole", "run"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert resumed.config.text.word_vectors is None
