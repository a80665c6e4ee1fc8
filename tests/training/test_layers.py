"""Layers counted from an encoder's top: which of them train, and at which rate."""

import pytest
import timm
import torch

from crosspair.encode.pretrained import create_image_encoder
from crosspair.errors import UserError
from crosspair.models.projection import add_adapters
from crosspair.models.slim.mobilenet import slim_mobilenet_v1
from crosspair.models.transformer_text import TransformerTextEncoder
from crosspair.training.layers import freeze_below, layers_from_top
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe import OptimizerConfig, Recipe, StageConfig
from tests.fixtures.models import create_tiny_model

BERT = {
    **{"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"intermediate_size": 16, "max_position_embeddings": 12},
}
CLIP = {**BERT, "model_type": "clip_text_model", "projection_dim": 8}
T5 = {"model_type": "t5", "vocab_size": 9, "d_model": 8, "hidden_size": 8, "d_kv": 4, "d_ff": 16, "num_layers": 3}


def by_name(encoder: torch.nn.Module) -> dict[str, int]:
    found = layers_from_top(encoder)
    return {name: found[id(value)] for name, value in encoder.named_parameters()}


def test_a_vits_last_block_is_the_top_and_its_patches_are_the_bottom():
    above = by_name(timm.create_model("test_vit", num_classes=0, img_size=32))
    blocks = 1 + max(int(name.split(".")[1]) for name in above if name.startswith("blocks."))
    assert above["norm.weight"] == 0
    assert [above[f"blocks.{block}.attn.qkv.weight"] for block in range(blocks)] == list(reversed(range(blocks)))
    assert above["pos_embed"] == above["patch_embed.proj.weight"] == blocks


@pytest.mark.parametrize(
    ("architecture", "pooling", "bottom", "block", "top"),
    [
        (BERT, "mean", "embeddings.word_embeddings", "encoder.layer.{}.attention.self.query", None),
        (CLIP, "model", "embeddings.token_embedding", "layers.{}.self_attn.q_proj", "text_projection"),
        (T5, "mean", "shared", "block.{}.layer.0.SelfAttention.q", "final_layer_norm"),
    ],
)
def test_a_transformers_embeddings_are_below_its_first_block(architecture, pooling, bottom, block, top):
    pytest.importorskip("transformers")
    above = by_name(TransformerTextEncoder(architecture, pooling))

    def of(part: str) -> set[int]:
        return {layers for name, layers in above.items() if f".{part}.weight" in name}

    assert of(bottom) == {3}
    assert [of(block.format(number)) for number in range(3)] == [{2}, {1}, {0}]
    assert top is None or of(top) == {0}


def test_adapters_lie_where_their_layers_do():
    pytest.importorskip("peft")
    encoder = timm.create_model("test_vit", num_classes=0, img_size=32)
    before = by_name(encoder)
    add_adapters(encoder, "image", rank=2, alpha=4)
    for name, layers in by_name(encoder).items():
        if ".lora_" in name:
            assert layers == before[f"{name.split('.lora_')[0]}.weight"]


def test_joined_encoders_each_have_a_top_of_their_own():
    joined, _ = create_image_encoder("test_vit+test_resnet", "none", (32, 32))
    found = layers_from_top(joined)
    assert set(found) == {id(value) for value in joined.parameters()}
    for encoder in joined.encoders:
        assert {id(value): found[id(value)] for value in encoder.parameters()} == layers_from_top(encoder)


def test_layers_below_the_upper_ones_keep_their_weights_and_cost_no_gradient():
    joined, _ = create_image_encoder("test_vit+test_resnet", "none", (32, 32))
    above = layers_from_top(joined)
    assert max(above.values()) > 2
    freeze_below(joined, 2)
    joined(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for value in joined.parameters():
        assert (value.grad is not None) == (above[id(value)] < 2)


def test_an_encoder_whose_layers_are_unknown_is_refused():
    with pytest.raises(UserError, match="set layer_decay to 1"):
        layers_from_top(slim_mobilenet_v1())


def test_a_rate_is_multiplied_once_for_every_layer_above():
    model = create_tiny_model(image={"name": "test_vit"})
    stage = StageConfig(learning_rate=0.01, image_learning_rate=0.001, layer_decay=0.5)
    optimizer = StageOptimizer(model, MatchingLosses(Recipe().loss, 5, 8), OptimizerConfig(), stage, 1)
    optimizer.prepare(0)
    rates = {id(value): group["lr"] for group in optimizer.inner.param_groups for value in group["params"]}
    above = layers_from_top(model.image_encoder)
    assert len(set(above.values())) > 2
    for value in model.image_encoder.parameters():
        assert rates[id(value)] == pytest.approx(0.001 * 0.5 ** above[id(value)])
    outside = [*model.text_encoder.parameters(), *model.image_projection.parameters()]
    assert {rates[id(value)] for value in outside if value.requires_grad} == {0.01}
