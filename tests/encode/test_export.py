"""Encoders outside of PyTorch: the padded text encoder, OpenVINO as a backend, exports read by their description."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import crosspair.encode.export
from crosspair.cli import main
from crosspair.commands.export import export_command
from crosspair.data.images import load_image
from crosspair.data.tokens import pad
from crosspair.data.transforms import ImageInput
from crosspair.encode.backends import TorchBackend
from crosspair.encode.export import Sample, export_model
from crosspair.encode.model import DualEncoder
from crosspair.encode.openvino import OpenVINOBackend, convert_encoders, openvino_precisions
from crosspair.encode.towers import PaddedBiLSTM
from crosspair.errors import UserError
from crosspair.models.transformer_text import TransformerTextEncoder

needs_openvino = pytest.mark.skipif(not openvino_precisions(), reason="OpenVINO is not installed")
CAPTIONS = ["dog", "a red dog runs", "The cat's asleep: the blue cat sleeps", "", "a dog " * 45, "unheard of", "a"]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40 + 7 * row, 61, 3), dtype=np.uint8) for row in range(7)]


@pytest.fixture
def saved(tiny_model, tmp_path: Path) -> Path:
    tiny_model(text={"special_tokens": "start"}).save_pretrained(tmp_path / "model", card="# The card\n")
    return tmp_path / "model"


@pytest.fixture
def sample(images) -> Sample:
    return Sample(images, CAPTIONS, "7 pictures of noise")


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool_padding", [False, True])
def test_the_padded_text_encoder_gives_the_features_of_the_packed_one(tiny_model, pool_padding):
    encoder = tiny_model(text={"pool_padding": pool_padding}).text_encoder.eval()
    padded = PaddedBiLSTM(encoder).eval()
    for lengths in ([1], [5, 5], [1, 9, 4, 2], [3, 2]):
        tokens, counts = pad([torch.randint(1, 10, (length,)).tolist() for length in lengths])
        assert_near(padded(tokens, counts), encoder(tokens, counts))


@needs_openvino
class TestOpenVINO:
    def test_encodes_pictures_and_captions_as_pytorch_does(self, saved, images):
        expected = DualEncoder.from_pretrained(saved)
        model = DualEncoder.from_pretrained(saved, backend="openvino")
        for count in (7, 1):
            assert_near(model.encode_image(images[:count]), expected.encode_image(images[:count]))
            assert_near(model.encode_text(CAPTIONS[:count]), expected.encode_text(CAPTIONS[:count]))
        assert_near(model.encode_text(CAPTIONS * 20, batch_size=70), expected.encode_text(CAPTIONS * 20))
        assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 8)

    def test_padding_that_takes_part_in_the_maximum_does_so_in_every_caption_but_the_longest(self, tiny_model):
        model = tiny_model(text={"pool_padding": True}).eval()
        expected = model.encode_text(CAPTIONS * 9)
        model.use_backend("openvino")
        assert_near(model.encode_text(CAPTIONS * 9), expected)

    @pytest.mark.parametrize(
        ("kind", "pooling"), [("bert", "mean"), ("bert", "eos"), ("bert", "cls"), ("clip_text_model", "model")]
    )
    def test_transformers_are_converted_with_any_number_of_captions_and_tokens(self, tiny_model, kind, pooling):
        pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        clip = {"projection_dim": 16, "eos_token_id": 9} if kind == "clip_text_model" else {}
        architecture = {**sizes, **clip, "model_type": kind, "vocab_size": 10, "max_position_embeddings": 24}
        model = tiny_model()
        encoder = TransformerTextEncoder(architecture, pooling)
        whole = DualEncoder(model.config, model.vocabulary, text_encoder=encoder).eval()
        backend = OpenVINOBackend(None, "f32", graphs=convert_encoders(whole), threads=1)
        for lengths in ([1], [24, 3, 7], [2] * 40):
            tokens, counts = pad([[*torch.randint(1, 9, (length - 1,)).tolist(), 9] for length in lengths])
            with torch.no_grad():
                expected = F.normalize(whole.embed_tokens(tokens, counts), dim=1)
            assert_near(backend.encode_tokens(tokens, counts), expected)

    def test_an_export_needs_no_weights_and_says_so_to_who_asks_for_them(self, saved, sample, tmp_path):
        agreements = export_model(str(saved), "openvino", tmp_path / "out", sample)
        assert agreements["f32"]["captions"].least > 0.9999
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            *("image_encoder.xml", "image_encoder.bin", "text_encoder.xml", "text_encoder.bin"),
            *("config.json", "preprocessing.json", "vocabulary.txt", "README.md"),
        }
        assert (tmp_path / "out" / "README.md").read_text().startswith("# The card\n")
        model = DualEncoder.from_pretrained(tmp_path / "out", backend="openvino")
        expected = DualEncoder.from_pretrained(saved)
        assert_near(model.encode_image(sample.images), expected.encode_image(sample.images))
        assert_near(model.encode_text(CAPTIONS), expected.encode_text(CAPTIONS))
        with pytest.raises(UserError, match="is an export without PyTorch's weights; read it with backend='openvino'"):
            DualEncoder.from_pretrained(tmp_path / "out")
        (tmp_path / "out" / "text_encoder.xml").write_text("<net")
        with pytest.raises(UserError, match=r"can't read text_encoder of .*out .*; export the model again"):
            DualEncoder.from_pretrained(tmp_path / "out", backend="openvino")

    def test_what_is_too_far_from_pytorch_is_not_written_in_float32_and_not_used_in_bf16(
        self, saved, sample, tmp_path, monkeypatch
    ):
        monkeypatch.setitem(crosspair.encode.export.LEAST_COSINE, "bf16", 1.1)
        agreements = export_model(str(saved), "openvino", tmp_path / "out", sample)
        if "bf16" in agreements:
            with pytest.raises(UserError, match="was found too inexact in bf16 when it was exported; use f32"):
                DualEncoder.from_pretrained(tmp_path / "out", backend="openvino", precision="bf16")
        monkeypatch.setitem(crosspair.encode.export.LEAST_COSINE, "f32", 1.1)
        with pytest.raises(UserError, match=r"other embeddings of images than PyTorch: cosine .*; expected .* 1\.1"):
            export_model(str(saved), "openvino", tmp_path / "other", sample)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.slow
def test_onnx_and_its_description_are_enough_for_another_program(tiny_model, tmp_path, images, sample):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny_model(text={"special_tokens": "start", "max_words": 30}).eval()
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    export_model(str(tmp_path / "model"), "onnx", out, sample)
    description = json.loads((out / "preprocessing.json").read_text())
    assert description["checked"]["f32"]["images"]["least"] > 0.9999

    rules = description["text_encoder"]["tokenizer"]
    vocabulary = (out / rules["file"]).read_text().splitlines()
    first = rules["first_line_has_number"]

    def tokens(caption: str) -> list[int]:
        for old, new in rules["replace"].items():
            caption = caption.lower().replace(old, new)
        words = [*rules["before"], *re.findall(rules["words"], caption)[: rules["max_words"]], *rules["behind"]]
        known = [vocabulary.index(word) + first if word in vocabulary else rules["unknown_word"] for word in words]
        return known or rules["without_a_word"]

    text_encoder = onnxruntime.InferenceSession(out / "text_encoder.onnx")
    for captions in (CAPTIONS, ["a"]):
        rows = [tokens(caption) for caption in captions]
        table = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for row, numbers in enumerate(rows):
            table[row, : len(numbers)] = numbers
        inputs = {"tokens": table, "lengths": np.array([len(numbers) for numbers in rows])}
        assert_near(torch.from_numpy(text_encoder.run(None, inputs)[0]), model.encode_text(captions))

    image_encoder = onnxruntime.InferenceSession(out / "image_encoder.onnx")
    _, _, height, width = description["image_encoder"]["inputs"]["pixels"]["shape"]
    for some in (images, images[:1]):
        pixels = np.stack([ImageInput(height, width).resize(load_image(one)).numpy() for one in some])
        assert_near(torch.from_numpy(image_encoder.run(None, {"pixels": pixels})[0]), model.encode_image(some))
    read = DualEncoder.from_pretrained(out, backend="onnxruntime")
    assert_near(read.encode_image(images), model.encode_image(images))
    assert_near(read.encode_text(CAPTIONS), model.encode_text(CAPTIONS))


def test_onnx_runtime_encodes_a_model_of_pytorch_and_its_features(saved, images):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    expected = DualEncoder.from_pretrained(saved)
    model = DualEncoder.from_pretrained(saved, backend="onnxruntime")
    assert_near(model.encode_image(images), expected.encode_image(images))
    assert_near(model.encode_text(CAPTIONS), expected.encode_text(CAPTIONS))
    pixels = torch.stack([expected.image_input.resize(load_image(image)) for image in images])
    features = model.backend.image_features(pixels, 2)
    np.testing.assert_allclose(features, TorchBackend(expected).image_features(pixels, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_heads_and_lower_stages_encode_in_other_backends_as_in_pytorch(tiny_model, tmp_path, images, sample, backend):
    for module in ("openvino", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    model = tiny_model(image={"pooled_stages": 2}, projection={"heads": 2, "layers": 2, "hidden_dim": 16}).eval()
    model.save_pretrained(tmp_path / "model")
    image_embeddings, text_embeddings = model.encode_image(images), model.encode_text(CAPTIONS)
    read = DualEncoder.from_pretrained(tmp_path / "model")
    assert torch.equal(read.encode_image(images), image_embeddings)
    out = tmp_path / "out"
    export_model(str(tmp_path / "model"), backend, out, sample)
    checked = json.loads((out / "preprocessing.json").read_text())["checked"]["f32"]
    assert min(checked[side]["least"] for side in ("images", "captions")) > 0.9999
    if backend == "openvino":
        compiled = DualEncoder.from_pretrained(out, backend="openvino")
        assert_near(compiled.encode_image(images), image_embeddings)
        assert_near(compiled.encode_text(CAPTIONS), text_embeddings)


def test_the_hubs_format_is_the_model_itself_with_a_card(tiny_model, tmp_path, capsys):
    model = tiny_model().eval()
    model.save_pretrained(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), "--format", "huggingface", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert "f32 captions: cosine 1.000000" in capsys.readouterr().out
    assert "library_name: crosspair" in (tmp_path / "out" / "README.md").read_text()
    assert torch.equal(DualEncoder.from_pretrained(tmp_path / "out").encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    assert main(command) == 2
    assert "exists and is not empty; expected a new directory for the export" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "new"), "--check", str(tmp_path / "model")]) == 2
    assert "holds no picture to check the export on" in capsys.readouterr().err


def test_the_check_takes_readable_pictures_from_all_over_a_folder(tmp_path, saved, monkeypatch):
    for number in range(300):
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(tmp_path / f"{number:03}.png")
    for number in (0, 150):
        (tmp_path / f"{number:03}.png").write_bytes(b"no picture")
    samples: list[Sample] = []
    monkeypatch.setattr(
        "crosspair.commands.export.export_model", lambda *arguments, device: samples.append(arguments[-1]) or {}
    )
    export_command(str(saved), "huggingface", tmp_path / "out", tmp_path)
    colours = [load_image(image)[:2, 0, 0].tolist() for image in samples[0].images]
    numbers = sorted(red + 256 * green for red, green in colours)
    assert len(set(numbers)) == 64
    assert numbers[0] < 10
    assert numbers[-1] > 290
    assert max(np.diff(numbers)) < 12


def test_an_unknown_backend_or_precision_is_one_sentence(saved):
    with pytest.raises(
        UserError, match=r"there is no backend 'onnx'.*; expected one of onnxruntime, openvino, torch, or a plugin"
    ):
        DualEncoder.from_pretrained(saved, backend="onnx")
    with pytest.raises(UserError, match="backend openvino has no precision 'f16'; expected f32 or bf16"):
        DualEncoder.from_pretrained(saved, backend="openvino", precision="f16")  # type: ignore[arg-type]
