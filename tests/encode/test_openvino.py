"""The OpenVINO backend of image encoders against PyTorch. Skipped where OpenVINO is not installed."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from crosspair.data.transforms import ImageInput
from crosspair.encode.backends import cosines
from crosspair.encode.openvino import (
    REQUEST,
    CompiledImageEncoder,
    convert_image_encoder,
    import_openvino,
    openvino_precisions,
)
from crosspair.encode.pretrained import create_image_encoder
from crosspair.errors import UserError

pytestmark = pytest.mark.skipif(not openvino_precisions(), reason="OpenVINO is not installed")
SIZE = (33, 47)  # odd, so that a swap of height and width or another padding would show

SIGNALS_AFTER_ENCODERS = """
import os, signal, threading
import torch
from crosspair.data.transforms import ImageInput
from crosspair.encode.openvino import CompiledImageEncoder, convert_image_encoder

graph = convert_image_encoder(torch.nn.Flatten(), ImageInput(2, 2))
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
encoders = [CompiledImageEncoder(graph, "f32", threads=1) for _ in range(2)]
while encoders:
    del encoders[0]
os.kill(os.getpid(), signal.SIGTERM)
encoders = [CompiledImageEncoder(graph, "f32", threads=1)]
thread = threading.Thread(target=encoders.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def encoder_and_input() -> tuple[nn.Module, ImageInput]:
    torch.manual_seed(0)
    encoder, image_input = create_image_encoder("slim_mobilenet_v1_025", "none", SIZE)
    for name, value in encoder.named_buffers():  # statistics that matter
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if name.endswith("var") else value.uniform_(-0.5, 0.5)
    return encoder.eval().requires_grad_(False), image_input


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3 * REQUEST + 1, 3, *SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(encoder_and_input, images) -> np.ndarray:
    encoder, image_input = encoder_and_input
    return encoder(image_input.normalize(torch.from_numpy(images))).numpy()


@pytest.fixture(scope="module")
def compiled(encoder_and_input) -> CompiledImageEncoder:
    return CompiledImageEncoder(convert_image_encoder(*encoder_and_input), "f32", threads=2)


def test_f32_gives_pytorchs_features(compiled, images, expected):
    found = compiled(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_bf16_is_near_them_and_another_arithmetic(encoder_and_input, images, expected):
    if openvino_precisions() != ["bf16", "f32"]:
        pytest.skip("this processor has no instructions for bf16")
    found = CompiledImageEncoder(convert_image_encoder(*encoder_and_input), "bf16", threads=1)(images)
    assert 0.999 < cosines(found, expected).mean() < 0.9999999


def test_a_pictures_features_do_not_depend_on_its_neighbours(compiled, images):
    together = compiled(images)
    for row in (0, 1, REQUEST, len(images) - 1):
        np.testing.assert_array_equal(compiled(images[row : row + 1])[0], together[row])
    np.testing.assert_array_equal(compiled(images[::-1]), together[::-1])
    assert compiled(images[:0]).shape == (0, together.shape[1])


def test_many_threads_may_call_it(compiled, images):
    with ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(lambda row: compiled(images[row % 13 : row % 13 + 1])[0], range(52)))
    np.testing.assert_array_equal(np.stack(rows), np.tile(compiled(images), (4, 1)))


def test_pictures_resized_to_floats_keep_their_fractions(encoder_and_input, images):
    encoder, image_input = encoder_and_input
    image_input = ImageInput(*SIZE, image_input.mean, image_input.std, resample="tensorflow1")
    fractions = images.astype(np.float32) * np.float32(0.997)
    found = CompiledImageEncoder(convert_image_encoder(encoder, image_input), "f32", threads=1)(fractions)
    expected = encoder(image_input.normalize(torch.from_numpy(fractions))).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_converting_reads_the_running_statistics_and_leaves_the_encoder_free(encoder_and_input, images):
    original, image_input = encoder_and_input
    expected = original(image_input.normalize(torch.from_numpy(images))).numpy()
    encoder = copy.deepcopy(original).train()
    encoder.layers["conv2d_0"].eval()
    modes = [module.training for module in encoder.modules()]
    statistics = [value.clone() for value in encoder.buffers()]
    compiled = CompiledImageEncoder(convert_image_encoder(encoder, image_input), "f32")
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(encoder.buffers(), statistics, strict=True))
    for value in encoder.state_dict().values():
        value.zero_()  # it goes on training; what is compiled stays
    np.testing.assert_allclose(compiled(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_an_encoder_for_torch_compile_is_converted_as_it_is(encoder_and_input, images, expected):
    encoder, image_input = encoder_and_input
    compiled = copy.deepcopy(encoder)
    compiled.compile()
    found = CompiledImageEncoder(convert_image_encoder(compiled, image_input), "f32")(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_an_operation_that_openvino_lacks_is_one_sentence():
    class Odd(nn.Module):
        def forward(self, pixels):
            return torch.special.bessel_j0(pixels).mean(dim=(2, 3))

    with pytest.raises(UserError, match=r"can't run the encoder Odd \(No conversion rule.*bessel_j0\); use PyTorch"):
        convert_image_encoder(Odd(), ImageInput(8, 8))


def test_nothing_is_reported_over_the_network():
    import_openvino()
    assert sys.modules["openvino_telemetry"] is None  # what would do it


def test_signals_are_handled_after_encoders_were_freed_in_the_order_they_were_made_or_by_another_thread():
    # In a process of its own, as the failure is a crash.
    done = subprocess.run([sys.executable, "-c", SIGNALS_AFTER_ENCODERS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n" * 2), done.stderr


def test_cosines_are_those_of_the_rows():
    found = cosines(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [-1.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_allclose(found, [1.0, 0.0, 0.0], atol=1e-12)
