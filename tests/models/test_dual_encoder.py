from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from crosspair.data.images import read_image
from crosspair.data.tokens import pad
from crosspair.data.transforms import ImageInput
from crosspair.encode.reader import THREADS
from crosspair.errors import UserError


@pytest.fixture
def images() -> list[np.ndarray]:
    """Five pictures, uint8 [40, 50, 3]."""
    random = np.random.default_rng(0)
    return [np.full((40, 50, 3), random.integers(0, 256, 3), dtype=np.uint8) for _ in range(5)]


@pytest.fixture
def files(images, tmp_path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def batch_norms(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


class TestEncodeImage:
    def test_takes_paths_names_bytes_pil_arrays_and_tensors_alike(self, tiny_model, images, files):
        model = tiny_model().eval()
        expected = model.encode_image(images)
        assert torch.equal(model.encode_image(files), expected)
        assert torch.equal(model.encode_image([str(path) for path in files]), expected)
        assert torch.equal(model.encode_image([path.read_bytes() for path in files]), expected)
        assert torch.equal(model.encode_image([Image.fromarray(image) for image in images]), expected)
        assert torch.equal(model.encode_image([read_image(path) for path in files]), expected)
        assert torch.equal(model.encode_image(np.stack(images)), expected)

    def test_gives_float32_rows_of_unit_length_in_order(self, tiny_model, images):
        embeddings = tiny_model().encode_image(images, batch_size=2)
        assert embeddings.dtype == torch.float32
        assert embeddings.shape == (5, 8)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
        for row, image in zip(embeddings, images, strict=True):
            torch.testing.assert_close(tiny_model().encode_image([image])[0], row, atol=1e-5, rtol=1e-5)

    def test_reads_a_generator_batch_by_batch_a_few_images_ahead(self, tiny_model, images):
        model, batches, drawn = tiny_model(), [], []
        model.image_encoder.register_forward_hook(lambda _, inputs, __: batches.append((len(inputs[0]), len(drawn))))
        many = [*images, *images[::-1]] * 10

        def endless():
            for image in many:
                drawn.append(image)
                yield image

        embeddings = model.encode_image(endless(), batch_size=3)
        assert [size for size, _ in batches] == [3] * 33 + [1]
        for number, (_, seen) in enumerate(batches, start=1):
            assert min(3 * number, 100) <= seen <= 3 * number + 2 * THREADS + 1
        assert torch.equal(embeddings, model.encode_image(many, batch_size=3))

    def test_takes_a_mixture_of_kinds(self, tiny_model, images, files):
        model = tiny_model()
        mixed = [files[0], str(files[1]), files[2].read_bytes(), Image.fromarray(images[3]), images[4]]
        assert torch.equal(model.encode_image(iter(mixed)), model.encode_image(images))

    def test_names_a_picture_that_cannot_be_read(self, tiny_model, files):
        files[3].write_text("this is text")
        with pytest.raises(UserError, match=r"3\.png"):
            tiny_model().encode_image(files)

    def test_of_nothing_is_an_empty_matrix(self, tiny_model):
        assert tiny_model().encode_image([]).shape == (0, 8)

    def test_sees_what_the_settings_say(self, tiny_model, pooled, images):
        model = tiny_model()
        model.image_encoder = pooled().eval()
        model.image_input = ImageInput(32, 32, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
        seen = []
        model.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.image_projection = torch.nn.Linear(3, 8)
        model.encode_image(images[:1])
        expected = (images[0][0, 0] / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.5, 0.6])
        assert seen[0].shape == (1, 3, 32, 32)
        np.testing.assert_allclose(seen[0].mean(dim=(0, 2, 3)), expected, rtol=1e-5)


class TestEncodeText:
    def test_gives_float32_rows_of_unit_length_in_order(self, tiny_model):
        captions = ["a dog runs", "the cat", "a red dog sleeps", "something else"]
        embeddings = tiny_model().encode_text(captions, batch_size=3)
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
        for row, caption in zip(embeddings, captions, strict=True):
            torch.testing.assert_close(tiny_model().encode_text([caption])[0], row, atol=1e-6, rtol=1e-5)

    def test_of_nothing_is_an_empty_matrix(self, tiny_model):
        empty = tiny_model().encode_text([])
        assert empty.shape == (0, 8)
        assert empty.dtype == torch.float32

    def test_of_captions_without_known_words_is_still_an_embedding(self, tiny_model):
        unknown, empty, blank = tiny_model().encode_text(["zebra", "", "  ...  "])
        assert torch.equal(unknown, empty)
        assert torch.equal(empty, blank)

    def test_cuts_after_the_limit(self, tiny_model):
        model = tiny_model(text={"max_words": 2})
        long, short = model.encode_text(["a dog runs"]), model.encode_text(["a dog"])
        assert torch.equal(long, short)

    def test_puts_the_markers_of_the_settings_around(self, tiny_model):
        model = tiny_model(text={"special_tokens": "start"})
        with_special_tokens = model.vocabulary.encode("dog", special_tokens="start")
        assert model.tokenize("dog") == with_special_tokens
        assert len(with_special_tokens) == 2


@pytest.mark.parametrize("encode", ["encode_text", "encode_image"])
class TestBothWays:
    def test_one_name_instead_of_a_list_is_refused(self, tiny_model, encode):
        with pytest.raises(TypeError, match=r"expected a list of .*, found one str"):
            getattr(tiny_model(), encode)("a dog")

    def test_one_picture_instead_of_a_list_is_refused(self, tiny_model, encode):
        array = np.zeros((8, 8, 3), np.uint8)
        for image in (array, torch.from_numpy(array), Image.fromarray(array)):
            with pytest.raises(TypeError, match=r"expected a list of .*, found one (ndarray|Tensor|Image)"):
                getattr(tiny_model(), encode)(image)

    def test_a_batch_of_nothing_is_refused(self, tiny_model, encode):
        with pytest.raises(ValueError, match="batch_size is 0"):
            getattr(tiny_model(), encode)([], batch_size=0)

    def test_the_mode_is_restored_also_after_an_error(self, tiny_model, encode):
        model = tiny_model()
        model.freeze_image_encoder()
        for mode in (True, False):
            model.train(mode)
            getattr(model, encode)([])
            with pytest.raises((UserError, TypeError, AttributeError)):
                getattr(model, encode)([object()])
            assert model.training is mode
            assert model.text_projection.training is mode
            assert not model.image_encoder.training


def test_an_array_of_captions_is_a_list_of_them(tiny_model):
    model = tiny_model()
    assert torch.equal(model.encode_text(np.array(["a dog", "dog"])), model.encode_text(["a dog", "dog"]))


def test_what_is_no_caption_is_refused(tiny_model):
    with pytest.raises(TypeError, match="expected captions as str, found NoneType"):
        tiny_model().encode_text(["a dog", None])


def test_encoding_changes_no_statistics(tiny_model, images):
    model = tiny_model().train()
    before = batch_norms(model)
    model.encode_image(images)
    model.encode_text(["a dog"])
    assert same(before, batch_norms(model))


def test_embeddings_can_be_trained_on(tiny_model, images):
    model = tiny_model()
    for embeddings in (model.encode_text(["a dog", "a cat"]), model.encode_image(images)):
        head = torch.nn.Linear(8, 2)
        head(embeddings).sum().backward()
        assert head.weight.grad is not None


def test_features_stand_in_for_pictures(tiny_model):
    model = tiny_model().eval()
    tokens, lengths = pad([[2, 3], [4]])
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    direct = model(tokens, lengths, images=images)
    again = model(tokens, lengths, features=model.image_features(images))
    assert torch.equal(direct[0], again[0])
    assert torch.equal(direct[1], again[1])
    for wrong in ({}, {"images": images, "features": direct[0]}):
        with pytest.raises(ValueError, match="either pictures or their features"):
            model(tokens, lengths, **wrong)


def test_feature_dropout_acts_in_training_only(tiny_model):
    model = tiny_model(image={"feature_dropout": 0.5})
    seen = []
    model.image_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.train().embed_image_features(torch.ones(50, 96))
    model.eval().embed_image_features(torch.ones(50, 96))
    assert 0.4 < (seen[0] == 0).float().mean() < 0.6
    assert seen[1].eq(1).all()


class TestTheImageEncoder:
    """In training steps with its weights and statistics frozen, moved, or trained."""

    def steps(self, model) -> None:
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=0.1, weight_decay=0.1)
        torch.manual_seed(0)
        for _ in range(3):
            model.train()
            images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
            images, texts = model(*pad([[2, 3], [4], [5], [6]]), images=images)
            optimizer.zero_grad()
            (images * texts).sum().backward()
            optimizer.step()

    def test_stays_as_it_is_when_frozen(self, tiny_model):
        model = tiny_model()
        model.freeze_image_encoder()
        before = {name: value.clone() for name, value in model.image_encoder.state_dict().items()}
        outside = {name: value.clone() for name, value in model.image_projection.state_dict().items()}
        self.steps(model)
        assert same(before, model.image_encoder.state_dict())
        assert not any(module.training for module in model.image_encoder.modules())
        assert not same(outside, model.image_projection.state_dict())

    def test_moves_only_its_statistics_without_freeze_bn_stats(self, tiny_model):
        model = tiny_model()
        model.freeze_image_encoder(freeze_bn_stats=False)
        weights = {name: value.clone() for name, value in model.image_encoder.named_parameters()}
        statistics = batch_norms(model.image_encoder)
        self.steps(model)
        assert same(weights, dict(model.image_encoder.named_parameters()))
        after = batch_norms(model.image_encoder)
        assert all(not torch.equal(value, after[name]) for name, value in statistics.items())

    def test_trains_without_its_statistics_with_freeze_bn_stats(self, tiny_model):
        model = tiny_model()
        model.freeze_image_encoder()
        model.unfreeze_image_encoder(freeze_bn_stats=True)
        weights = {name: value.clone() for name, value in model.image_encoder.named_parameters()}
        statistics = batch_norms(model.image_encoder)
        self.steps(model)
        assert same(statistics, batch_norms(model.image_encoder))
        after = dict(model.image_encoder.named_parameters())
        assert sum(not torch.equal(value, after[name]) for name, value in weights.items()) > len(weights) / 2

    def test_trains_with_its_statistics_when_unfrozen(self, tiny_model):
        model = tiny_model()
        model.freeze_image_encoder()
        model.train()
        model.unfreeze_image_encoder()
        assert all(module.training for module in model.image_encoder.modules())
        statistics = batch_norms(model.image_encoder)
        self.steps(model)
        after = batch_norms(model.image_encoder)
        assert all(not torch.equal(value, after[name]) for name, value in statistics.items())

    def test_has_no_gradients_when_frozen(self, tiny_model):
        model = tiny_model()
        model.freeze_image_encoder()
        self.steps(model)
        assert all(value.grad is None for value in model.image_encoder.parameters())


def test_an_embedding_does_not_depend_on_its_batch(tiny_model):
    model = tiny_model().eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        together = model.embed_image_features(model.image_features(images))
        alone = model.embed_image_features(model.image_features(images[1:2]))
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("threads", "height", "width", "expected"),
    [(2, 224, 224, 4), (8, 300, 200, 16), (1, 900, 900, 1), (99, 32, 32, 64)],
)
def test_on_a_cpu_few_pictures_are_encoded_at_once(tiny_model, monkeypatch, threads, height, width, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = tiny_model()
    model.image_input.height, model.image_input.width = height, width
    assert model.images_at_once == expected
    model.backend = SimpleNamespace(images_at_once=64)
    assert model.images_at_once == 64


def test_without_a_batch_size_pictures_are_encoded_by_that_many(tiny_model, images, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("crosspair.models.dual_encoder.PIXELS_A_THREAD", 32 * 32)
    model, seen = tiny_model(), []
    model.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert torch.equal(model.encode_image(images), model.encode_image(images, batch_size=2))
    assert seen == [2, 2, 1] * 2
