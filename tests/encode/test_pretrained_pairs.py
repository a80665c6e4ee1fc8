"""Encoders of every common kind, and pairs that were trained together: CLIP and SigLIP.

Tiny ones with random weights; what they give is compared with `transformers` itself.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from crosspair.data.tokens import pad
from crosspair.encode.model import DualEncoder, create_model
from crosspair.encode.pretrained import create_image_encoder
from crosspair.encode.pretrained_text import create_transformer
from crosspair.errors import UserError
from crosspair.models.config import TextEncoderConfig
from tests.fixtures.models import tiny_config

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "runs", "sleeps"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
T5 = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
SMALL = {"n_layers": 2, "n_heads": 2, "vocab_size": len(WORDS), "max_position_embeddings": 16}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
KINDS = {
    "bert": ("BertModel", "BertConfig", TEXT),
    "roberta": ("RobertaModel", "RobertaConfig", {**TEXT, "pad_token_id": 1}),
    "distilbert": ("DistilBertModel", "DistilBertConfig", {**SMALL, "dim": 16, "hidden_dim": 32}),
    "mpnet": ("MPNetModel", "MPNetConfig", {**TEXT, "pad_token_id": 1}),
    "modernbert": ("ModernBertModel", "ModernBertConfig", {**TEXT, **SPECIAL}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**T5, "pad_token_id": 0}),
    "clip": ("CLIPTextModel", "CLIPTextConfig", {**TEXT, **SPECIAL}),
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str, str, dict[str, Any]], Path]:
    """The directory of a random model of that class, with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    def save(model: str, config: str, settings: dict[str, Any]) -> Path:
        torch.manual_seed(0)
        getattr(transformers, model)(getattr(transformers, config)(**settings)).save_pretrained(tmp_path / "hub")
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        special = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
        tokenizer.save(str(tmp_path / "hub" / "tokenizer.json"))
        return tmp_path / "hub"

    return save


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_encoder_of_any_kind_embeds_captions_alone_as_in_a_batch_and_is_saved_whole(
    saved, tmp_path: Path, kind: str
):
    directory = saved(*KINDS[kind])
    text = TextEncoderConfig(str(directory), str(directory), "mean")
    model = create_model(replace(tiny_config(), text=text), []).eval()
    captions = ["a dog", "a cat sleeps a dog runs", ""]
    together = model.encode_text(captions)
    torch.testing.assert_close(model.encode_text(captions, batch_size=1), together, rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(DualEncoder.from_pretrained(tmp_path / "model").encode_text(captions), together)


def test_a_kind_that_pools_nothing_itself_says_so(saved):
    directory = saved(*KINDS["distilbert"])
    encoder, _ = create_transformer(TextEncoderConfig(str(directory), str(directory), "model"))
    with pytest.raises(UserError, match=r"set model\.text\.pooling to mean, cls or eos"):
        encoder(torch.tensor([[2, 4, 3]]), torch.tensor([3]))


def test_siglips_text_side_gives_the_embeddings_of_siglip(saved):
    directory = saved(
        "SiglipModel", "SiglipConfig", {"text_config": {**TEXT, "projection_size": 16}, "vision_config": VISION}
    )
    encoder, tokenizer = create_transformer(TextEncoderConfig(str(directory), str(directory), "model"))
    tokens, lengths = pad([tokenizer.encode("a dog"), tokenizer.encode("a cat sleeps a dog runs")])
    assert tokens.shape == (2, 16)
    expected = transformers.SiglipModel.from_pretrained(directory).eval().get_text_features(tokens)
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(encoder.eval()(tokens, lengths), expected, rtol=0, atol=2e-6)


def as_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image side of a CLIPModel under timm's names."""
    vision = {name.removeprefix("vision_model."): value for name, value in state.items()}
    position = vision["embeddings.position_embedding.weight"]
    found = {
        "cls_token": vision["embeddings.class_embedding"][None, None],
        "pos_embed": position[None],
        "patch_embed.proj.weight": vision["embeddings.patch_embedding.weight"],
        "head.weight": state["visual_projection.weight"],
        "head.bias": torch.zeros(len(state["visual_projection.weight"])),
    }
    renamed = {"norm_pre": "pre_layrnorm", "norm": "post_layernorm"}
    for block in range(2):
        theirs, ours = f"encoder.layers.{block}", f"blocks.{block}"
        names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        renamed |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in names.items()}
        renamed[f"{ours}.attn.proj"] = f"{theirs}.self_attn.out_proj"
        for leaf in ("weight", "bias"):
            parts = [vision[f"{theirs}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"{ours}.attn.qkv.{leaf}"] = torch.cat(parts)
    found |= {f"{a}.{leaf}": vision[f"{b}.{leaf}"] for a, b in renamed.items() for leaf in ("weight", "bias")}
    return found


TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}


def test_timms_clip_with_its_head_gives_the_embeddings_of_clip():
    torch.manual_seed(0)
    config = {"text_config": {**TEXT, **SPECIAL}, "vision_config": VISION, "projection_dim": 8}
    clip = transformers.CLIPModel(transformers.CLIPConfig(**config)).eval()
    assert clip.config.vision_config.hidden_act == "quick_gelu"
    vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=8, **TINY_VIT).eval()
    vit.load_state_dict(as_timm(clip.state_dict()))
    pixels = torch.randn(2, 3, 32, 32)
    expected = clip.get_image_features(pixels)
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(vit(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("vit_base_patch16_clip_quickgelu_224.openai", (384, 128), 512),
        ("vit_base_patch32_clip_quickgelu_224.openai", None, 512),
        ("vit_base_patch16_siglip_224.webli", None, 768),
    ],
)
def test_the_image_sides_of_the_recipes_end_in_the_joint_space(name, size, features):
    with torch.device("meta"):  # shapes alone
        encoder, expected = create_image_encoder(name, "none", size, keep_head=True)
    height, width = size or (224, 224)
    assert encoder.num_features == features
    assert (expected.height, expected.width) == (height, width)
    assert encoder.to("meta")(torch.zeros(1, 3, height, width, device="meta")).shape == (1, features)


def test_weights_of_another_picture_size_have_their_positions_resampled(tmp_path: Path):
    torch.manual_seed(0)
    square = timm.create_model("test_vit", num_classes=0)  # 160 x 160 pixels
    save_file(square.state_dict(), tmp_path / "w.safetensors")
    encoder, expected = create_image_encoder("test_vit", str(tmp_path / "w.safetensors"), (192, 64))
    assert (expected.height, expected.width) == (192, 64)
    assert encoder.eval()(torch.zeros(1, 3, 192, 64)).shape == (1, encoder.num_features)
    before, after = square.state_dict(), encoder.state_dict()
    assert before["pos_embed"].shape != after["pos_embed"].shape
    prefix = before["pos_embed"].shape[1] - 100
    torch.testing.assert_close(after["pos_embed"][:, :prefix], before["pos_embed"][:, :prefix])
    grid = before["pos_embed"][0, prefix:].reshape(10, 10, -1).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(grid, (12, 4), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(after["pos_embed"][0, prefix:], resized.permute(1, 2, 0).flatten(0, 1))
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != "pos_embed")
