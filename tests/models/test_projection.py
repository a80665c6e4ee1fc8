import pytest
import timm
import torch

from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.models.config import ProjectionConfig
from crosspair.models.projection import Projection, add_adapters, create_projection, merged_state


def test_training_normalises_each_dimension_over_the_batch():
    torch.manual_seed(0)
    net = Projection(6, 3, eps=1e-3).double()
    features = torch.randn(20, 6).double()
    linear = features @ net.linear.weight.T
    expected = (linear - linear.mean(0)) / (linear.var(0, unbiased=False) + 1e-3).sqrt()
    torch.testing.assert_close(net(features), expected, rtol=1e-12, atol=1e-12)


def test_evaluation_uses_the_running_statistics():
    torch.manual_seed(0)
    net = Projection(6, 3, momentum=0.25).double()
    features = torch.randn(20, 6).double()
    linear = features @ net.linear.weight.T
    net(features)
    torch.testing.assert_close(net.norm.running_mean, 0.25 * linear.mean(0))
    torch.testing.assert_close(net.norm.running_var, 0.75 + 0.25 * linear.var(0))
    net.eval()
    expected = (linear - net.norm.running_mean) / (net.norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(net(features), expected)


def test_embeddings_stay_float32_under_bf16_autocast():
    torch.manual_seed(0)
    net = Projection(6, 3)
    features = torch.randn(20, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.linear(features, net.linear.weight).dtype == torch.bfloat16
        embeddings = net(features)
        assert net(features.bfloat16()).dtype == torch.float32
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, net(features))


def test_there_is_no_bias_beside_the_offset():
    names = {name for name, _ in Projection(6, 3).named_parameters()}
    assert names == {"linear.weight", "norm.weight", "norm.bias"}


@pytest.mark.parametrize(
    ("initializer", "inputs", "deviation", "largest"),
    [  # of a normal distribution cut at two deviations 0.8796 of the deviation is left
        ("xavier", 1024, (2 / 1536) ** 0.5, (6 / 1536) ** 0.5),
        ("slim_mobilenet_v1", 1024, 0.8796 * 0.09, 0.18),
        ("slim_resnet_v1", 2048, 0.8796 * (2.6 / 2048) ** 0.5, 2 * (2.6 / 2048) ** 0.5),
        ("slim_resnet_v1", 1024, 0.8796 * (2.6 / 1024) ** 0.5, 2 * (2.6 / 1024) ** 0.5),
    ],
)
def test_the_start_has_the_spread_of_the_initializer(initializer, inputs, deviation, largest):
    torch.manual_seed(0)
    projection = create_projection(inputs, ProjectionConfig(initializer=initializer), "image")
    weight = projection.linear.weight
    assert weight.std().item() == pytest.approx(deviation, rel=0.01)
    assert 0.99 * largest < weight.abs().max().item() <= largest + 1e-6


def test_the_cosine_of_heads_is_the_mean_of_their_cosines():
    torch.manual_seed(0)
    projection = create_projection(6, ProjectionConfig(dim=12, layers=2, heads=3, hidden_dim=5), "image").eval()
    features = torch.randn(7, 6)
    embeddings = projection(features)
    assert embeddings.shape == (7, 12)
    cosines = torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(embeddings).T
    alone = [torch.nn.functional.normalize(head(features)) for head in projection.heads]
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(cosines, torch.stack([each @ each.T for each in alone]).mean(0))


@pytest.mark.parametrize("settings", [{"dim": 10, "heads": 3}, {"dim": 6, "heads": 0}, {"layers": 0, "heads": 2}])
def test_heads_that_cannot_be_are_refused(settings):
    with pytest.raises(UserError, match="expected at least 1 head, a multiple of heads as dim"):
        create_projection(6, ProjectionConfig(**settings), "image")


pytest.importorskip("peft")


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=32).eval()


def randomise(module: torch.nn.Module) -> None:
    """Adapters that add something, as after training."""
    for name, value in module.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(value, std=0.1)


def test_a_new_adapter_changes_nothing(vit):
    pixels = torch.randn(2, 3, 32, 32)
    before = vit(pixels)
    add_adapters(vit, "image", rank=2, alpha=4)
    assert torch.equal(vit(pixels), before)


def test_the_merged_weights_are_those_of_a_plain_model_with_the_same_outputs(vit):
    pixels = torch.randn(2, 3, 32, 32)
    plain = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    before = vit(pixels)
    add_adapters(vit, "image", rank=2, alpha=4, layers="all-linear")
    randomise(vit)
    held = {name: value.clone() for name, value in vit.state_dict().items()}
    plain.load_state_dict(merged_state(vit))
    torch.testing.assert_close(plain(pixels), vit(pixels), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(pixels), before, atol=1e-2)
    assert all(torch.equal(value, held[name]) for name, value in vit.state_dict().items())


def test_alpha_over_rank_scales_what_an_adapter_adds(vit):
    add_adapters(vit, "image", rank=2, alpha=6)
    randomise(vit)
    layer = vit.blocks[0].attn.qkv
    expected = layer.base_layer.weight + 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged_state(vit)["blocks.0.attn.qkv.weight"], expected)


@pytest.mark.parametrize(("layers", "found"), [("attention", {"qkv", "proj"}), ("all-linear", {"fc1", "fc2"})])
def test_layers_are_chosen_by_their_place(vit, layers, found):
    add_adapters(vit, "image", rank=2, alpha=4, layers=layers)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in vit.state_dict() if ".lora_" in name}
    assert found <= adapted
    assert ("fc1" in adapted) == (layers == "all-linear")


def test_an_encoder_without_such_layers_is_refused():
    encoder = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(UserError, match=r"the image encoder has no attention layers for adapters; .*lora\.encoders"):
        add_adapters(encoder, "image", rank=2, alpha=4)


class TestInADualEncoder:
    @pytest.fixture
    def model(self, tiny_model) -> DualEncoder:
        model: DualEncoder = tiny_model(image={"name": "test_vit"})
        add_adapters(model.image_encoder, "image", rank=2, alpha=4)
        return model

    def test_only_adapters_train_of_an_encoder_that_trains(self, model):
        model.freeze_image_encoder()
        assert not any(value.requires_grad for value in model.image_encoder.parameters())
        model.unfreeze_image_encoder()
        trained = {name for name, value in model.image_encoder.named_parameters() if value.requires_grad}
        assert trained
        assert all(".lora_" in name for name in trained)
        assert model.image_projection.linear.weight.requires_grad

    def test_a_saved_model_is_plain_and_embeds_alike(self, model, tmp_path):
        randomise(model)
        model.save_pretrained(tmp_path / "model")
        loaded = DualEncoder.from_pretrained(tmp_path / "model")
        assert not [name for name in loaded.state_dict() if "lora" in name or "base_layer" in name]
        images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
        torch.testing.assert_close(loaded.encode_image(images), model.encode_image(images), rtol=0, atol=1e-5)
        assert [name for name in model.state_dict() if ".lora_" in name]
