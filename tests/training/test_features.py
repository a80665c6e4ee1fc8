import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cmpl.data.pictures import decode_picture
from cmpl.data.text import Vocabulary
from cmpl.errors import UserError
from cmpl.models.config import ImageEncoderConfig, ModelConfig
from cmpl.models.dual_encoder import DualEncoder
from cmpl.training import features as module
from cmpl.training.features import cache_directory, picture_features


@pytest.fixture
def model() -> DualEncoder:
    torch.manual_seed(0)
    model = DualEncoder(ModelConfig(ImageEncoderConfig("test_resnet", "none", [32, 32])), Vocabulary(["a"]))
    model.freeze_image_encoder()
    return model


@pytest.fixture
def split(toy_data):
    return toy_data.split("train")


def features_of(model, split, **options) -> np.ndarray:
    return picture_features(model, split, **{"mirror": True, "progress": False, **options})


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Sizes of the batches that go through an image encoder."""
    sizes: list[int] = []
    features = DualEncoder.image_features

    def counting(self, pictures):
        sizes.append(len(pictures))
        return features(self, pictures)

    monkeypatch.setattr(DualEncoder, "image_features", counting)
    return sizes


def test_they_are_the_encoders_of_each_picture_and_its_mirror_image(model, split):
    found = features_of(model, split)
    assert found.shape == (12, 2, 96)
    assert found.dtype == np.float32
    pictures = torch.stack([decode_picture(split.picture(row)) for row in range(12)])
    with torch.no_grad():
        for view, seen in enumerate([pictures, pictures.flip(-1)]):
            np.testing.assert_allclose(found[:, view], model.image_features(seen).numpy(), rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[:, 0], found[:, 1])
    assert features_of(model, split, mirror=False).shape == (12, 1, 96)


def test_they_are_kept_and_read_again(model, split, encoded):
    first = features_of(model, split)
    assert encoded == [12, 12]
    second = features_of(model, split)
    assert encoded == [12, 12]
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, second)
    assert [path.suffix for path in sorted(cache_directory().iterdir())] == [".lock", ".npy"]


@pytest.mark.parametrize("what", ["weights", "pictures", "size", "colours", "precision", "views", "name"])
def test_what_changes_them_makes_them_anew(model, split, encoded, toy_data, what):
    features_of(model, split)
    before, options = len(encoded), {}
    if what == "weights":
        with torch.no_grad():
            next(model.image_encoder.parameters())[0].add_(1e-3)
    elif what == "pictures":
        split = toy_data.split("val")
    elif what == "size":
        model.picture_input.height = 40
    elif what == "colours":
        model.picture_input.mean[0] += 0.01
    elif what == "precision":
        options = {"precision": "bf16-mixed"}
    elif what == "views":
        options = {"mirror": False}
    else:  # weights alone don't tell an encoder: padding, activations and strides have none
        model.config.image.name = "test_resnet_of_another_kind"
    features_of(model, split, **options)
    assert len(encoded) > before


def test_autocast_is_entered_around_the_encoder(model, split):
    plain = features_of(model, split)
    rough = features_of(
        model, split, precision="bf16-mixed", autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(plain - rough).max() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize("cut", [0, -1, -5000])
def test_an_interrupted_run_goes_on_with_whole_batches(model, split, encoded, monkeypatch, cut):
    monkeypatch.setattr(module, "BATCH", 4)
    features = DualEncoder.image_features

    def interrupted(self, pictures):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        return features(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(DualEncoder, "image_features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            features_of(model, split)
    (partial,) = cache_directory().glob("*.partial")
    if cut:
        partial.write_bytes(partial.read_bytes()[:cut])  # killed while writing
    encoded.clear()
    found = features_of(model, split)
    assert encoded == [4] * {0: 2, -1: 4, -5000: 6}[cut]
    assert not list(cache_directory().glob("*.partial"))
    (kept,) = cache_directory().glob("*.npy")
    expected = np.array(found)
    kept.unlink()
    np.testing.assert_array_equal(features_of(model, split), expected)


def test_a_partial_file_without_a_batch_is_begun_again(model, split):
    expected = np.array(features_of(model, split))
    (kept,) = cache_directory().glob("*.npy")
    kept.rename(kept.with_suffix(".partial"))
    kept.with_suffix(".partial").write_bytes(b"\x93NUM")
    np.testing.assert_array_equal(features_of(model, split), expected)


def test_runs_at_the_same_time_make_them_once(model, split, encoded, monkeypatch):
    encode, inside = module._encode, threading.Event()

    def slow(*arguments):
        assert not inside.is_set()
        inside.set()
        time.sleep(0.1)
        encode(*arguments)

    monkeypatch.setattr(module, "_encode", slow)
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(features_of, model, split) for _ in range(2))
    np.testing.assert_array_equal(first.result(), second.result())
    assert encoded == [12, 12]


def test_a_broken_picture_is_named(model, memory_split):
    with pytest.raises(UserError, match="picture 0"):
        features_of(model, memory_split([["a"]], np.array([1]), [b"this is text"]))


def test_a_full_disk_is_one_sentence(model, split, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_encode", full)
    with pytest.raises(UserError, match="is full"):
        features_of(model, split)


def test_they_lie_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CMPL_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine" / "features"
    monkeypatch.delenv("CMPL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_directory() == tmp_path / "user" / "cmpl" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "cmpl" / "features"
