"""Fine-tuning a pair of pretrained encoders, tiny and random here: whole, frozen in part, and by adapters."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from crosspair.data.dataset import Data
from crosspair.encode.model import DualEncoder
from crosspair.training.interruption import Interrupted
from crosspair.training.layers import layers_from_top
from crosspair.training.loop import train
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_files import load_recipe
from crosspair.training.step import TrainingStep

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
WORDS = ["[PAD]", "[UNK]", "<start>", "<end>", "a", "square", "on", "black", "the", "colour", "red", "blue", "green"]
RECIPES = ["cuhk-pedes-clip-vit-b16", "flickr30k-clip-vit-b32"]
TEXT = "text_encoder.encoder."


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with 64 dimensions: its text side in text/, its image side (160 pixels wide) in image.safetensors."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    path = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    numbers = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {**sizes, **numbers, "vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_dim": 64}
    transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text)).save_pretrained(path / "text")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [("<start>", 2), ("<end>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=around)
    tokenizer.save(str(path / "text" / "tokenizer.json"))
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path / "image.safetensors")
    return path


@pytest.fixture
def tiny(pair: Path) -> Callable[..., Recipe]:
    """A built-in recipe with the tiny pair in place of CLIP, one epoch of three steps."""

    def create(name: str = RECIPES[0], *overrides: str) -> Recipe:
        image = ["--model.image.name=test_vit", f"--model.image.weights={pair / 'image.safetensors'}"]
        text = [f"--model.text.name={pair / 'text'}", f"--model.text.weights={pair / 'text'}"]
        size = ["--model.image.size=[64,32]", "--model.image.keep_head=false", "--model.projection.dim=64"]
        run = [
            "--stage2.epochs=1",
            "--stage2.batch_size=4",
            "--stage2.epoch_covers=images",
            "--stage2.warmup_steps=0",
        ]
        speed = ["--device=cpu", "--precision=32-true", "--workers=0", "--log_every=1", "--stage2.learning_rate=1e-2"]
        return load_recipe(name, [*image, *text, *size, *run, *speed, *overrides])

    return create


def changed(run: Path, pair: Path) -> set[str]:
    """Which parts of the saved model differ from what training started from: image, text."""
    after = load_file(run / "model" / "model.safetensors")
    before = {f"image_encoder.{name}": value for name, value in load_file(pair / "image.safetensors").items()}
    before |= {TEXT + name: value for name, value in load_file(pair / "text" / "model.safetensors").items()}
    assert set(after) == set(before)
    moved = {
        name for name, value in before.items() if value.shape == after[name].shape and (value != after[name]).any()
    }
    return {name.split("_")[0] for name in moved}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_a_pair_trains_both_sides(tiny, toy_data: Data, pair: Path, tmp_path: Path, name: str):
    train(tiny(name), toy_data, tmp_path / "run", progress=False)
    assert changed(tmp_path / "run", pair) == {"image", "text"}
    model = DualEncoder.from_pretrained(tmp_path / "run" / "model")
    assert (model.image_input.height, model.image_input.width) == (64, 32)
    assert model.encode_text(["the colour red"]).shape == (1, 64)


def test_a_frozen_text_encoder_stays_while_the_image_encoder_trains(tiny, toy_data: Data, pair: Path, tmp_path: Path):
    train(tiny(RECIPES[0], "--stage2.freeze_text_encoder=true"), toy_data, tmp_path / "run", progress=False)
    assert changed(tmp_path / "run", pair) == {"image"}


def test_only_the_upper_layers_train_where_a_stage_says_so(tiny, toy_data: Data, pair: Path, tmp_path: Path):
    train(tiny(RECIPES[1], "--stage2.image_layers=2"), toy_data, tmp_path / "run", progress=False)
    encoder = timm.create_model("test_vit", num_classes=0)
    above = layers_from_top(encoder)
    before = load_file(pair / "image.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    kept = before.keys() - {"pos_embed"}  # resampled for the size of the input
    moved = {name for name in kept if not torch.equal(after[f"image_encoder.{name}"], before[name])}
    assert moved == {name for name, value in encoder.named_parameters() if above[id(value)] < 2}


LORA = ["--lora.rank=2", "--lora.dropout=0.1", "--lora.encoders=both", "--stage2.image_learning_rate=1e-2"]
LORA += ["--stage2.text_learning_rate=1e-2"]


def test_adapters_train_alone_and_the_model_kept_is_plain(tiny, toy_data: Data, pair: Path, tmp_path: Path):
    best = train(tiny(RECIPES[0], *LORA), toy_data, tmp_path / "run", progress=False).best
    assert changed(tmp_path / "run", pair) == {"image", "text"}
    checkpoint = load_file(next((tmp_path / "run" / "checkpoints").glob("*")) / "model.safetensors")
    assert any(".lora_A." in name for name in checkpoint)
    base = load_file(pair / "text" / "model.safetensors")
    for name, value in checkpoint.items():
        if name.startswith(TEXT) and ".lora_" not in name:
            assert torch.equal(value, base[name.removeprefix(TEXT).replace(".base_layer", "")]), name
    model = DualEncoder.from_pretrained(tmp_path / "run" / "model")
    split = toy_data.split("val")
    captions = [caption for row in split.captions for caption in row]
    images = model.encode_image([split.image(row) for row in range(len(split))])
    found = (model.encode_text(captions) @ images.T).argmax(1)
    rows = torch.repeat_interleave(torch.arange(len(split)), torch.tensor([len(row) for row in split.captions]))
    assert 100 * (found == rows).double().mean().item() == pytest.approx(best["text_to_image"]["R@1"])


def test_a_run_with_adapters_is_resumed_to_the_bit(tiny, toy_data: Data, tmp_path: Path, metrics, monkeypatch):
    recipe = tiny(RECIPES[0], *LORA, "--stage2.layer_decay=0.8", "--stage2.epochs=2")
    train(recipe, toy_data, tmp_path / "whole", progress=False)
    step = TrainingStep.__call__
    taken: list[None] = []

    def stopping(self: TrainingStep, *arguments, **options):
        taken.append(None)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments, **options)

    monkeypatch.setattr(TrainingStep, "__call__", stopping)
    with pytest.raises(Interrupted):
        train(recipe, toy_data, tmp_path / "cut", progress=False)
    train(recipe, toy_data, tmp_path / "cut", resume=True, progress=False)
    for part in ("model/model.safetensors", "checkpoints/*6/model.safetensors"):
        first, second = (next((tmp_path / run).glob(part)).read_bytes() for run in ("whole", "cut"))
        assert first == second, part
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_the_card_names_what_a_model_started_from_its_scores_and_what_it_is_not_for(
    tiny, toy_data: Data, pair: Path, tmp_path: Path
):
    best = train(
        tiny(RECIPES[1], "--stage2.freeze_image_encoder=true"), toy_data, tmp_path / "run", progress=False
    ).best
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "test_vit" in card
    assert str(pair / "text") in card
    assert f"| {best['text_to_image']['R@1']:.1f} |" in card
    assert "protocol plain" in card
    assert len(card.split("## Responsible use\n\n")[1].strip().splitlines()) == 3
