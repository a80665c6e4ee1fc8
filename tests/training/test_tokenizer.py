"""What a run's words are: the tokenizer's, the original's, or those that came with the annotations."""

from dataclasses import replace

import pytest
import torch

from crosspair.data.dataset import Data, open_data
from crosspair.data.prepare import prepare
from crosspair.data.records import Record
from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.errors import UserError
from crosspair.training.loop import train


def with_words(data: Data, path, tokens: bool) -> Data:
    """The toy's images with captions of which the annotation splits `t-shirt` in a way of its own."""
    records = []
    for name in data.split_names:
        split = data.split(name)
        for row, captions in enumerate(split.captions):
            colour = captions[0].split()[1]
            words = (("a", colour, "t_shirt"),) if tokens else None
            records.append(
                Record(f"{name} {row}", split.image(row), row, (f"A {colour} T-shirt.",), name, tokens=words)
            )
    prepare(records, path, source={}, size=0, processes=1, progress=False)
    return open_data(path)


@pytest.fixture
def go(toy_recipe, toy_data, tmp_path):
    def start(tokenizer: str, *, tokens: bool = True) -> tuple[DualEncoder, Data]:
        data = with_words(toy_data, tmp_path / "data", tokens)
        recipe = toy_recipe()
        stage = replace(recipe.stage1, freeze_text_encoder=True, epochs=1)
        recipe = replace(recipe, stage1=stage, stage2=replace(recipe.stage2, epochs=1))
        recipe.model.text.tokenizer = tokenizer
        run = tmp_path / "run"
        return DualEncoder.from_pretrained(train(recipe, data, run, progress=False).model_path), data

    return start


@pytest.mark.parametrize(("tokenizer", "word"), [("words", "shirt"), ("original", "tshirt"), ("stored", "t_shirt")])
def test_the_vocabulary_and_the_model_have_the_words_of_the_tokenizer(go, tokenizer, word):
    model, data = go(tokenizer)
    assert word in model.vocabulary.words
    assert len({"shirt", "tshirt", "t_shirt"} & set(model.vocabulary.words)) == 1
    assert model.config.text.tokenizer == tokenizer
    read = data.split("val").texts(tokenizer)[0][0]
    assert 1 not in model.tokenize(read)  # no unknown word
    split = embed_split(model, data.split("val"))
    torch.testing.assert_close(split.texts[:1], model.encode_text([read]))


def test_stored_words_that_are_not_there_are_a_sentence(go):
    with pytest.raises(UserError, match=r"model.text.tokenizer is stored, and .*data has no column tokens; set it to"):
        go("stored", tokens=False)


def test_new_sentences_are_split_into_words_where_words_were_stored(go):
    model, _ = go("stored")
    assert model.tokenize("A red, t-shirt") == model.tokenize(["a", "red", "t", "shirt"])
