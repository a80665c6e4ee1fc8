import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from crosspair.data.images import decode_image
from crosspair.encode import backends
from crosspair.encode import features as module
from crosspair.encode.backends import Agreement, Backend, TorchBackend, agreement_on
from crosspair.encode.features import cache_directory, image_features, kept_agreement
from crosspair.encode.model import DualEncoder
from crosspair.encode.openvino import OpenVINOBackend, openvino_precisions
from crosspair.errors import UserError
from tests.fixtures.models import create_tiny_model

pytestmark = pytest.mark.usefixtures("own_cache")
needs_openvino = pytest.mark.skipif(not openvino_precisions(), reason="OpenVINO is not installed")


@pytest.fixture
def model() -> DualEncoder:
    model = create_tiny_model()
    model.freeze_image_encoder()
    return model


@pytest.fixture
def split(toy_data):
    return toy_data.split("train")


def choose_backend(model, split, setting="auto", **options) -> Backend:
    return backends.choose_backend(model, setting, kept_agreement(model, split), **options)


def features_of(model, split, *, hflip=True, backend=None, batch=64) -> np.ndarray:
    backend = backend or TorchBackend(model, "32-true", nullcontext, batch)
    return image_features(model, split, backend, hflip=hflip, progress=False)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Sizes of the batches that go through an image encoder."""
    sizes: list[int] = []
    features = DualEncoder.image_features

    def counting(self, images):
        sizes.append(len(images))
        return features(self, images)

    monkeypatch.setattr(DualEncoder, "image_features", counting)
    return sizes


def test_they_are_the_encoders_of_each_picture_and_its_mirror_image(model, split):
    found = features_of(model, split)
    assert found.shape == (12, 2, 96)
    assert found.dtype == np.float32
    images = torch.stack([decode_image(split.image(row)) for row in range(12)])
    with torch.no_grad():
        for view, seen in enumerate([images, images.flip(-1)]):
            np.testing.assert_allclose(found[:, view], model.image_features(seen).numpy(), rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[:, 0], found[:, 1])
    assert features_of(model, split, hflip=False).shape == (12, 1, 96)


def test_they_are_kept_and_read_again(model, split, encoded):
    first = features_of(model, split)
    assert encoded == [12, 12]
    second = features_of(model, split)
    assert encoded == [12, 12]
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, second)
    assert [path.suffix for path in sorted(cache_directory().iterdir())] == [".lock", ".npy"]


@pytest.mark.parametrize("what", ["weights", "images", "size", "colours", "precision", "views", "name"])
def test_what_changes_them_makes_them_anew(model, split, encoded, toy_data, what):
    features_of(model, split)
    before, options = len(encoded), {}
    if what == "weights":
        with torch.no_grad():
            next(model.image_encoder.parameters())[0].add_(1e-3)
    elif what == "images":
        split = toy_data.split("val")
    elif what == "size":
        model.image_input.height = 40
    elif what == "colours":
        model.image_input.mean[0] += 0.01
    elif what == "precision":
        options = {"backend": TorchBackend(model, "bf16-mixed", nullcontext)}
    elif what == "views":
        options = {"hflip": False}
    else:  # weights alone don't tell an encoder: padding, activations and strides have none
        model.config.image.name = "test_resnet_of_another_kind"
    features_of(model, split, **options)
    assert len(encoded) > before


def test_autocast_is_entered_around_the_encoder(model, split):
    plain = features_of(model, split)
    rounding = TorchBackend(model, "bf16-mixed", lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    rough = features_of(model, split, backend=rounding)
    assert rough.dtype == np.float32
    assert 0 < np.abs(plain - rough).max() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize("cut", [0, -1, -5000])
def test_an_interrupted_run_goes_on_with_whole_batches(model, split, encoded, monkeypatch, cut):
    features = DualEncoder.image_features

    def interrupted(self, images):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        return features(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(DualEncoder, "image_features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            features_of(model, split, batch=4)
    (partial,) = cache_directory().glob("*.partial")
    if cut:
        partial.write_bytes(partial.read_bytes()[:cut])  # killed while writing
    encoded.clear()
    found = features_of(model, split, batch=4)
    assert encoded == [4] * {0: 2, -1: 4, -5000: 6}[cut]
    assert not list(cache_directory().glob("*.partial*"))
    (kept,) = cache_directory().glob("*.npy")
    expected = np.array(found)
    kept.unlink()
    np.testing.assert_array_equal(features_of(model, split, batch=4), expected)


@pytest.mark.parametrize("lines", [b"", b"{}", b'{"rows": 12, "group": 64, "row": [2, 96]}\n{"count": 9, "crc"'])
def test_a_partial_file_without_a_batch_is_begun_again(model, split, lines):
    expected = np.array(features_of(model, split))
    (kept,) = cache_directory().glob("*.npy")
    kept.rename(kept.with_suffix(".partial"))
    kept.with_suffix(".partial").write_bytes(b"\x93NUM")
    kept.with_suffix(".partial.jsonl").write_bytes(lines)
    np.testing.assert_array_equal(features_of(model, split), expected)


def test_a_file_that_was_cut_short_is_made_anew(model, split):
    expected = np.array(features_of(model, split))
    (kept,) = cache_directory().glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:-4000])
    np.testing.assert_array_equal(features_of(model, split), expected)


def test_runs_at_the_same_time_make_them_once(model, split, encoded, monkeypatch):
    encode, inside = module._append, threading.Event()

    def slow(*arguments):
        assert not inside.is_set()
        inside.set()
        time.sleep(0.1)
        encode(*arguments)

    monkeypatch.setattr(module, "_append", slow)
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

    monkeypatch.setattr(module, "_append", full)
    with pytest.raises(UserError, match="is full"):
        features_of(model, split)


def test_they_lie_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine" / "features"
    monkeypatch.delenv("CROSSPAIR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_directory() == tmp_path / "user" / "crosspair" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "crosspair" / "features"


@needs_openvino
def test_openvinos_are_near_pytorchs_and_kept_apart_from_them(model, split):
    exact = features_of(model, split)
    for precision, difference in (("f32", 1e-5), ("bf16", 3e-2)):
        found = features_of(model, split, backend=OpenVINOBackend(model, precision))
        assert found.shape == exact.shape
        assert 0 < np.abs(found - exact).max() <= difference * np.abs(exact).max()
    assert len(list(cache_directory().glob("*.npy"))) == 3


@needs_openvino
@pytest.mark.parametrize("hflip", [False, True])
def test_openvinos_in_two_parts_are_those_in_one(model, split, hflip, monkeypatch):
    whole = np.array(features_of(model, split, hflip=hflip, backend=OpenVINOBackend(model, "f32")))
    (file,) = cache_directory().glob("*.npy")
    for groups in (1, 2):
        file.unlink()
        backend = OpenVINOBackend(model, "f32")
        with monkeypatch.context() as patch:
            patch.setattr(module, "encode_in_groups", lambda *given, n=groups: interrupted_after(n, encode(*given)))
            with pytest.raises(KeyboardInterrupt):
                features_of(model, split, hflip=hflip, backend=backend)
        partial = file.with_suffix(".partial")
        rows = backend.group(2 if hflip else 1) * groups
        assert partial.stat().st_size == 128 + rows * whole[0].nbytes
        with partial.open("ab") as half:
            half.write(b"1234567")  # of a row that was under way
        np.testing.assert_array_equal(features_of(model, split, hflip=hflip, backend=backend), whole)


encode = module.encode_in_groups


def interrupted_after(number, groups):
    for done, group in enumerate(groups):
        if done == number:
            raise KeyboardInterrupt
        yield group


@needs_openvino
def test_auto_takes_the_fastest_that_is_exact_enough(model, split, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(backends, "LEAST_COSINE", 0.9)
    first = choose_backend(model, split, tell=told.append)
    assert first.name == f"openvino-{openvino_precisions()[0]}"
    assert told[0].startswith(f"encoding images by {first.name}: cosine 0.99")
    assert told[0].endswith("at least (12)")


@needs_openvino
def test_auto_goes_on_to_a_more_exact_way_and_says_so(model, split, monkeypatch):
    monkeypatch.setattr(backends, "backends_for", lambda *_: [Skewed(model, 0.3), Skewed(model, 0.0)])
    told: list[str] = []
    assert choose_backend(model, split, tell=told.append).name == "openvino-0.0"
    assert "not encoding images by openvino-0.3: cosine 0.9" in told[0]
    assert "trying a more exact way" in told[0]
    assert "encoding images by openvino-0.0: cosine 1.000000 on average, 1.000000 at least" in told[1]
    monkeypatch.setattr(module, "agreement_on", None)
    again: list[str] = []
    choose_backend(model, split, tell=again.append)  # measured once for an encoder
    assert again == told


@needs_openvino
def test_auto_is_pytorch_where_openvino_cannot_run_the_encoder(model, split, monkeypatch):
    def refuse(self):
        raise UserError("OpenVINO can't run the encoder")

    monkeypatch.setattr(OpenVINOBackend, "prepare", refuse)
    told: list[str] = []
    assert choose_backend(model, split, tell=told.append).name == "32-true"
    assert all("can't run the encoder" in line for line in told)
    with pytest.raises(UserError, match="can't run the encoder"):
        choose_backend(model, split, setting="openvino-f32")


def test_double_precision_is_pytorchs(model, split):
    assert choose_backend(model, split, precision="64-true").name == "64-true"
    assert choose_backend(model, split, setting="torch", precision="bf16-mixed").name == "bf16-mixed"
    with pytest.raises(UserError, match="not in double precision"):
        choose_backend(model, split, setting="openvino-f32", precision="64-true")


def test_without_openvino_auto_is_pytorch_and_its_name_an_error(model, split, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose_backend(model, split).name == "32-true"
    with pytest.raises(UserError, match=r"pip install 'crosspair\[openvino\]'"):
        choose_backend(model, split, setting="openvino-bf16")


class Skewed(TorchBackend):
    """PyTorch's features, turned away from where they should point."""

    def __init__(self, model: DualEncoder, noise: float) -> None:
        super().__init__(model, f"openvino-{noise}", nullcontext)
        self.noise = noise

    def image_features(self, images: torch.Tensor, views: int = 1) -> np.ndarray:
        features = super().image_features(images, views)
        random = np.random.default_rng(0).standard_normal(features.shape, np.float32)
        return features + self.noise * np.abs(features).mean() * random


def test_agreement_counts_the_mean_and_the_worst(model, split):
    backend = Skewed(model, 0.3)
    found = kept_agreement(model, split)(backend)
    images = torch.stack([model.image_input.resize(decode_image(split.image(row))) for row in range(12)])
    exact = TorchBackend(model).image_features(images)[:, 0]
    skewed = backend.image_features(images)[:, 0]
    cosines = (exact * skewed).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(skewed, axis=1)
    assert found == Agreement(pytest.approx(cosines.mean(), abs=1e-6), pytest.approx(cosines.min(), abs=1e-6), 12)
    assert found.least < found.mean < 0.999
    assert found == agreement_on(images, backend, model)
