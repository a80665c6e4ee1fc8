"""Encoders that a user brings: trained, saved with their plugin's name and checksum, read again when it is loaded."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crosspair.encode.model import DualEncoder, create_model
from crosspair.errors import UserError
from crosspair.registry import IMAGE_ENCODERS, TEXT_ENCODERS, load_plugin
from tests.fixtures.models import tiny_config
from tests.fixtures.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
CAPTIONS = ["a dog runs", "the red cat", "a dog sleeps"]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files of encoders, each at most 20 lines long."""
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("my_image_encoder", "my_timm_model", "my_text_encoder"):
        [code] = re.findall(rf"```python\n(# {name}\.py\n.*?)```", PAGE, flags=re.DOTALL)
        assert len([line for line in code.splitlines() if line.strip()]) <= 20
        (folder / f"{name}.py").write_text(code)
        load_plugin(str(folder / f"{name}.py"))
    return folder


def create(image: str = "two-convolutions", text: str = "bag", size: int = 32) -> DualEncoder:
    torch.manual_seed(0)
    config = tiny_config(image={"name": image, "size": [size, size]}, text={"name": text, "min_count": 1})
    return create_model(config, CAPTIONS)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("two-convolutions", "bag"),
        ("my_resnet", "bilstm"),
        ("test_resnet", "bag"),
        ("two-convolutions+my_resnet", "bilstm"),
    ],
)
def test_a_model_of_them_trains_and_reads_back_with_the_same_embeddings(plugins, tmp_path, image, text):
    model = create(image, text)
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    tokens, lengths = torch.tensor([[2, 3], [4, 0], [3, 2]]), torch.tensor([2, 1, 2])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.train()(tokens, lengths, images=images)
    (before[0] * before[1]).sum().backward()
    optimizer.step()
    assert not torch.equal(model(tokens, lengths, images=images)[0], before[0])
    model.save_pretrained(tmp_path / "model")
    again = DualEncoder.from_pretrained(tmp_path / "model")
    assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["plugins"]
    own = {"two-convolutions": "my_image_encoder", "my_resnet": "my_timm_model", "bag": "my_text_encoder"}
    used = {name: f"{file}.py" for name, file in own.items() if name in (*image.split("+"), text)}
    assert {name: plugin["name"] for name, plugin in saved.items()} == used
    assert all(len(plugin["checksum"]) == 64 for plugin in saved.values())


def test_they_are_encoded_by_openvino_too(plugins):
    pytest.importorskip("openvino")
    model = create().eval()
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    expected = model.encode_image(images), model.encode_text(CAPTIONS)
    model.use_backend("openvino")
    torch.testing.assert_close(model.encode_image(images), expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(CAPTIONS), expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "text", "file"),
    [
        ("two-convolutions", "bilstm", "my_image_encoder"),
        ("my_resnet", "bilstm", "my_timm_model"),
        ("test_resnet", "bag", "my_text_encoder"),
    ],
)
def test_a_model_whose_plugin_is_missing_says_so_in_one_sentence(plugins, tmp_path, image, text, file):
    create(image, text).save_pretrained(tmp_path / "model")
    read = "import sys, crosspair; print(crosspair.DualEncoder.from_pretrained(sys.argv[1]).encode_text(['a']).shape)"
    command = [sys.executable, "-c", read, str(tmp_path / "model")]
    run = {"capture_output": True, "text": True, "check": False}
    missing = subprocess.run(command, **run)
    assert f"of the plugin {file}.py, which is not loaded; name it with --plugin {file}.py" in missing.stderr
    changed = tmp_path / f"{file}.py"
    changed.write_text((plugins / f"{file}.py").read_text() + "\n# a comment\n")
    found = subprocess.run(command, env={**os.environ, "CROSSPAIR_PLUGINS": str(changed)}, **run)
    assert "[1, 8]" in found.stdout, found.stderr
    assert f"the plugin {file}.py has changed since" in found.stderr


def test_one_without_a_number_of_features_is_refused(monkeypatch):
    monkeypatch.setattr(IMAGE_ENCODERS, "_entries", dict(IMAGE_ENCODERS._entries))
    IMAGE_ENCODERS.register("no-number")(torch.nn.Identity)
    with pytest.raises(UserError, match="image encoder no-number has no num_features"):
        create("no-number", "bilstm")


def test_a_name_that_nobody_registered_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"unknown image encoder 'test_resne'; near: test_resnet.*slim_resnet_v1_152"):
        create("test_resne", "bilstm")
    assert {"bilstm", "transformers"} <= set(TEXT_ENCODERS.names())
    assert {"timm", "slim_mobilenet_v1", "slim_resnet_v1_152"} <= set(IMAGE_ENCODERS.names())
