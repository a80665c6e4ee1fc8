"""A frozen text encoder's features: made once, kept, and the same as encoding every caption in every step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosspair.encode import features as module
from crosspair.encode.features import cache_directory, caption_features
from crosspair.encode.model import DualEncoder, create_model
from crosspair.models.text import BiLSTMEncoder
from crosspair.training import trainer
from crosspair.training.loop import train

pytestmark = pytest.mark.usefixtures("own_cache")


def frozen(toy_recipe, **stage1):
    recipe = toy_recipe()
    return replace(
        recipe,
        stage1=replace(recipe.stage1, freeze_text_encoder=True, **stage1),
        stage2=replace(recipe.stage2, epochs=0),
    )


@pytest.fixture
def model(toy_recipe, toy_data) -> DualEncoder:
    torch.manual_seed(0)
    captions = [caption for row in toy_data.split("train").captions for caption in row]
    model = create_model(toy_recipe().model, captions)
    model.freeze_text_encoder()
    return model


def test_they_are_the_encoders_of_each_caption_in_order(model, toy_data):
    split = toy_data.split("train")
    found = caption_features(model, split, progress=False)
    captions = [caption for row in split.captions for caption in row]
    assert found.shape == (len(captions), model.text_encoder.num_features)
    assert found.dtype == np.float32
    for caption, row in zip(captions, found, strict=True):
        tokens = torch.tensor([model.tokenize(caption)])
        with torch.no_grad():
            alone = model.text_encoder(tokens, torch.tensor([tokens.shape[1]]))[0]
        np.testing.assert_allclose(row, alone.numpy(), rtol=1e-5, atol=1e-6)


def test_they_are_kept_until_the_weights_change(model, toy_data, monkeypatch):
    split = toy_data.split("train")
    first = np.array(caption_features(model, split, progress=False))
    with monkeypatch.context() as patched:
        patched.setattr(model.text_encoder, "forward", lambda *_: pytest.fail("it encodes again"))
        np.testing.assert_array_equal(caption_features(model, split, progress=False), first)
    with torch.no_grad():
        model.text_encoder.embedding.weight.mul_(2)
    assert not np.array_equal(caption_features(model, split, progress=False), first)


def test_what_was_interrupted_goes_on_where_it_stopped(model, toy_data, monkeypatch):
    split = toy_data.split("train")
    monkeypatch.setattr(module, "CAPTIONS", 5)
    encode, sizes = model.text_encoder.forward, []

    def interrupted(tokens, lengths):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(tokens))
        return encode(tokens, lengths)

    with monkeypatch.context() as patched:
        patched.setattr(model.text_encoder, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            caption_features(model, split, progress=False)
    counted = []
    with monkeypatch.context() as patched:
        patched.setattr(
            model.text_encoder, "forward", lambda *given: (counted.append(len(given[0])), encode(*given))[1]
        )
        resumed = np.array(caption_features(model, split, progress=False))
    assert sizes == [5, 5]
    assert counted == [5, 5, 4]
    [path] = cache_directory().glob("*.npy")
    path.unlink()
    np.testing.assert_array_equal(caption_features(model, split, progress=False), resumed)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many captions went through a text encoder in each call."""
    sizes: list[int] = []
    encode = BiLSTMEncoder.forward

    def counting(self, tokens, lengths):
        sizes.append(len(tokens))
        return encode(self, tokens, lengths)

    monkeypatch.setattr(BiLSTMEncoder, "forward", counting)
    return sizes


def kept() -> list[tuple[int, ...]]:
    """Shapes of the caption features on disk; those of images have a third dimension."""
    shapes = [np.load(path, mmap_mode="r").shape for path in cache_directory().glob("*.npy")]
    return [shape for shape in shapes if len(shape) == 2]


@pytest.mark.parametrize("mini_batch_size", [0, 4])
def test_a_run_learns_the_same_from_them(
    toy_recipe, toy_data, tmp_path, metrics, monkeypatch, encoded, mini_batch_size
):
    recipe = frozen(toy_recipe, batch_size=8, mini_batch_size=mini_batch_size)
    train(recipe, toy_data, tmp_path / "kept", progress=False)
    assert encoded == [24]  # val has the captions of train
    assert [count for count, _ in kept()] == [24]
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr(trainer, "_captions_stay", lambda *_: False)
    train(recipe, toy_data, tmp_path / "anew", progress=False)
    assert len(encoded) > 1 + 2 * 2  # in each epoch those of the steps and of the validation
    assert kept() == []
    with_them, anew = (metrics(tmp_path / run) for run in ("kept", "anew"))
    assert len(with_them) == len(anew)
    losses = [[row["loss"] for row in rows if row["kind"] == "train"] for rows in (with_them, anew)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_text_encoder_whose_features_depend_on_the_batch_has_none(toy_recipe, toy_data, tmp_path, encoded):
    recipe = frozen(toy_recipe)
    recipe.model.text.pool_padding = True
    train(recipe, toy_data, tmp_path / "run", progress=False)
    assert len(encoded) > 4
    assert kept() == []


def test_a_text_encoder_that_trains_has_none(toy_recipe, toy_data, tmp_path, encoded):
    train(toy_recipe(), toy_data, tmp_path / "run", progress=False)
    assert len(encoded) > 4
    assert kept() == []
