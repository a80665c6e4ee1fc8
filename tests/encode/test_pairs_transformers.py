"""Ready-made pairs of `transformers` give the vectors that the library itself gives, and run no code of a folder."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from crosspair.encode.model import DualEncoder
from crosspair.encode.pairs_transformers import plain_cut
from crosspair.encode.storage import model_checksum
from crosspair.errors import UserError
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import index_images
from crosspair.gallery.query import search
from tests.fixtures.pairs import CAPTIONS, LONGEST, TRANSFORMERS, photographs

transformers = pytest.importorskip("transformers")


def own_vectors(kind: str, directory: Path, images: list[Image.Image], captions: list[str]) -> tuple[Tensor, Tensor]:
    """What the library's documentation has a user do."""
    model = transformers.AutoModel.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    padding = "max_length" if kind == "siglip" else True
    tokens = tokenizer(captions, padding=padding, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.no_grad():
        seen = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        read = model.get_text_features(**tokens).pooler_output
    return normalize(seen, dim=1), normalize(read, dim=1)


@pytest.fixture
def copied(transformers_pair, tmp_path) -> Callable[[str], Path]:
    """A pair's directory to change."""
    return lambda kind: Path(shutil.copytree(transformers_pair(kind), tmp_path / kind))


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_pair_gives_its_own_librarys_vectors(transformers_pair, kind):
    directory = transformers_pair(kind)
    images, texts = own_vectors(kind, directory, photographs(), CAPTIONS)
    model = DualEncoder.from_pretrained(directory, device="cpu")
    assert (model.encode_image(photographs()) - images).abs().max() < 1e-5
    assert (model.encode_text(CAPTIONS) - texts).abs().max() < 1e-5
    torch.testing.assert_close(model.encode_text(CAPTIONS, batch_size=1), texts, rtol=0, atol=1e-5)
    assert (images @ images.T).min() < 0.9  # pictures that all look alike would show nothing
    assert (texts @ texts.T).min() < 0.9


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_pair_sees_real_photographs_as_its_own_library_does(transformers_pair, flickr8k_photographs, kind):
    directory = transformers_pair(kind)
    images, _ = own_vectors(kind, directory, [Image.open(path) for path in flickr8k_photographs], CAPTIONS)
    seen = DualEncoder.from_pretrained(directory, device="cpu").encode_image(flickr8k_photographs)
    assert (seen - images).abs().max() < 1e-4


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_picture_of_any_size_is_cut_to_the_bytes_of_its_own_library(transformers_pair, kind):
    processor = transformers.AutoImageProcessor.from_pretrained(transformers_pair(kind))
    given = {"return_tensors": "pt", "input_data_format": "channels_first"}
    cut = plain_cut(processor)
    assert cut is not None
    torch.manual_seed(0)
    for height, width in torch.randint(4, 150, (60, 2)).tolist():
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        own = processor(images=image, do_rescale=False, do_normalize=False, **given)["pixel_values"][0]
        assert torch.equal(cut(image), own), (height, width)


def test_siglip_without_filled_texts_would_give_other_vectors(transformers_pair):
    model = DualEncoder.from_pretrained(transformers_pair("siglip"), device="cpu")
    assert [len(model.tokenize(caption)) for caption in CAPTIONS] == [LONGEST] * len(CAPTIONS)
    filled = model.encode_text(["a dog"])
    short = torch.tensor([[number for number in model.tokenize("a dog") if number != model.vocabulary.filler]])
    with torch.no_grad():
        unfilled = normalize(model.text_encoder(short, torch.tensor([short.shape[1]])), dim=1)
    assert (filled * unfilled).sum() < 0.9


def test_an_early_model_of_clip_finds_the_end_of_a_text_as_its_own_library_does(copied):
    directory = copied("clip")
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2  # of models that were published before it was right
    config["text_config_dict"] = dict(config["text_config"])
    change(directory / "config.json", **config)
    _, texts = own_vectors("clip", directory, photographs(), CAPTIONS)
    assert (DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS) - texts).abs().max() < 1e-5


def test_sharded_weights_are_read(transformers_pair, copied):
    directory = copied("clip")
    whole = transformers.AutoModel.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    whole.save_pretrained(directory, max_shard_size="60KB")
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 1
    expected = DualEncoder.from_pretrained(transformers_pair("clip"), device="cpu").encode_text(CAPTIONS)
    assert torch.equal(DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS), expected)


def test_a_very_long_picture_takes_little_memory_and_one_that_is_not_gives_its_own_vector(transformers_pair):
    model = DualEncoder.from_pretrained(transformers_pair("clip"), device="cpu")
    long = torch.randint(0, 256, (3, 4, 120_000), dtype=torch.uint8)
    seen = model.image_input.resize(long)
    assert seen.shape == (3, 32, 32)
    middle = long[:, :, 60_000 - 64 : 60_000 + 64]
    assert torch.equal(seen, model.image_input.resize(middle))
    assert model.image_input.resize(long.mT).shape == (3, 32, 32)


def test_other_backends_give_the_same_vectors_or_say_that_they_can_not(transformers_pair):
    pytest.importorskip("openvino")
    for kind in ("clip", "siglip"):
        expected = DualEncoder.from_pretrained(transformers_pair(kind), device="cpu")
        model = DualEncoder.from_pretrained(transformers_pair(kind), backend="openvino")
        assert (model.encode_image(photographs()) - expected.encode_image(photographs())).abs().max() < 1e-4
        assert (model.encode_text(CAPTIONS) - expected.encode_text(CAPTIONS)).abs().max() < 1e-4
        assert (model.encode_text(CAPTIONS[:1]) - expected.encode_text(CAPTIONS[:1])).abs().max() < 1e-4
    with pytest.raises(UserError, match=r"OpenVINO can't run the encoder .*align .*; use PyTorch"):
        DualEncoder.from_pretrained(transformers_pair("align"), backend="openvino")


def test_weights_in_half_precision_are_computed_with_in_full(copied):
    directory = copied("clip")
    transformers.AutoModel.from_pretrained(directory).half().save_pretrained(directory)
    _, texts = own_vectors("clip", directory, photographs(), CAPTIONS)
    model = DualEncoder.from_pretrained(directory, device="cpu")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert (model.encode_text(CAPTIONS) - texts).abs().max() < 2e-2


def test_the_settings_of_an_early_image_processor_and_those_of_a_whole_processor_are_read(copied):
    expected, early = copied("clip"), copied("siglip")
    directory = Path(shutil.copytree(expected, early.parent / "early"))
    found = json.loads((directory / "preprocessor_config.json").read_text())
    kept = {
        key: found[key]
        for key in ("do_center_crop", "do_normalize", "do_resize", "image_mean", "image_std", "resample")
    }
    settings = {**kept, "crop_size": 32, "size": 32, "feature_extractor_type": "CLIPFeatureExtractor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    whole = Path(shutil.copytree(expected, early.parent / "whole"))
    processor = transformers.CLIPProcessor(
        transformers.AutoImageProcessor.from_pretrained(whole), transformers.AutoTokenizer.from_pretrained(whole)
    )
    (whole / "preprocessor_config.json").unlink()
    processor.save_pretrained(whole)
    assert not (whole / "preprocessor_config.json").exists()
    images = DualEncoder.from_pretrained(expected, device="cpu").encode_image(photographs())
    for each in (directory, whole):
        assert torch.equal(DualEncoder.from_pretrained(each, device="cpu").encode_image(photographs()), images)


class TestNoCodeOfAFolderIsRun:
    def test_what_a_configuration_says_of_code_and_kernels_is_left_out(self, copied, monkeypatch):
        directory = copied("clip")
        expected = DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS)
        (directory / "evil.py").write_text("raise SystemExit('code of the folder was run')")
        code = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}
        settings = {
            "attn_implementation": "someone/kernels",
            "_attn_implementation": "someone/kernels",
            "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "auto_map": code,
        }
        config = json.loads((directory / "config.json").read_text())
        parts = {name: {**config[name], **settings} for name in ("text_config", "vision_config")}
        change(directory / "config.json", **settings, **parts)
        change(directory / "tokenizer_config.json", auto_map=code)
        change(directory / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"})
        monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked whether to run code"))
        model = DualEncoder.from_pretrained(directory, device="cpu")
        assert torch.equal(model.encode_text(CAPTIONS), expected)
        config = model.text_encoder.model.config
        assert config._attn_implementation == config.text_config._attn_implementation == "sdpa"
        assert not hasattr(config, "quantization_config")

    def test_pickled_weights_are_refused_with_a_conversion_that_works(self, copied):
        directory = copied("clip")
        expected = DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS)
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
        with pytest.raises(
            UserError, match=r"weights in pytorch_model\.bin, a pickle, .*; expected model\.saf"
        ) as caught:
            DualEncoder.from_pretrained(directory, device="cpu")
        advice = str(caught.value).partition("if you trust them, ")[2].removesuffix(" writes it beside them")
        subprocess.run([sys.executable, "-c", f"import transformers; {advice}"], check=True, capture_output=True)
        assert torch.equal(DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS), expected)

    def test_adapters_are_refused(self, copied):
        directory = copied("clip")
        (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
        with pytest.raises(UserError, match=r"holds adapters .*; expected whole weights, merge"):
            DualEncoder.from_pretrained(directory, device="cpu")


class TestRefused:
    def refusal(self, directory: Path) -> str:
        with pytest.raises(UserError) as caught:
            DualEncoder.from_pretrained(directory, device="cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_naflex_model_of_siglip_2_by_name(self, copied):
        directory = copied("siglip")
        change(directory / "config.json", model_type="siglip2")
        assert "is a NaFlex model of SigLIP 2" in self.refusal(directory)

    def test_a_model_that_is_no_pair(self, copied):
        directory = copied("clip")
        change(directory / "config.json", model_type="bert")
        assert "is a bert of transformers; expected a pair of images and texts: align, " in self.refusal(directory)

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
    def test_a_folder_that_lacks_a_file(self, copied, name):
        directory = copied("clip")
        (directory / name).unlink()
        assert "copy the model again" in self.refusal(directory)

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
    def test_a_file_that_is_cut_off(self, copied, name):
        directory = copied("siglip")
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data[: len(data) // 2])
        assert "copy the model again" in self.refusal(directory)

    def test_weights_of_another_shape_or_that_are_missing(self, copied):
        from safetensors.torch import save_file

        directory = copied("clip")
        state = load_file(directory / "model.safetensors")
        change(directory / "config.json", projection_dim=23)
        assert "can't be used" in self.refusal(directory)
        change(directory / "config.json", projection_dim=24)
        del state["visual_projection.weight"]
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        assert "lacks 1 weights (visual_projection.weight)" in self.refusal(directory)

    def test_a_tokenizer_with_more_tokens_than_the_text_encoder_knows(self, copied):
        directory = copied("clip")
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        tokenizer.add_tokens(["mine"])
        tokenizer.save_pretrained(directory)
        assert "has 79 tokens, but its text encoder knows 78" in self.refusal(directory)

    def test_a_tokenizer_that_needs_a_package(self, copied, monkeypatch):
        directory = copied("siglip")
        change(directory / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
        if importlib.util.find_spec("sentencepiece"):
            pytest.skip("sentencepiece is installed here")
        assert self.refusal(directory).endswith("sentencepiece most likely; run: pip install sentencepiece")

    def test_a_file_of_weights(self, copied):
        assert "is a file; expected a model's directory" in self.refusal(copied("clip") / "model.safetensors")

    def test_steps_of_preprocessing_that_are_not_known(self, copied):
        directory = copied("clip")
        change(directory / "preprocessor_config.json", do_resize=False, do_center_crop=False)
        assert "prepares pictures by steps that crosspair doesn't know" in self.refusal(directory)


def test_the_checksum_is_of_what_decides_the_vectors(copied):
    directory = copied("clip")
    before = model_checksum(directory)
    (directory / "README.md").write_text("# A card")
    (directory / "pytorch_model.bin").write_bytes(b"never read")
    assert model_checksum(directory) == before
    for name in ("preprocessor_config.json", "config.json"):
        kept = (directory / name).read_text()
        change(directory / name, changed=1)
        assert model_checksum(directory) != before
        (directory / name).write_text(kept)
    model = transformers.AutoModel.from_pretrained(directory)
    with torch.no_grad():
        model.text_projection.weight.add_(1)
    model.save_pretrained(directory)
    assert model_checksum(directory) != before


class TestOfTheHub:
    def test_a_pair_is_fetched_with_the_weights_that_are_read_and_no_others(self, hub, copied):
        directory = copied("clip")
        for name in ("pytorch_model.bin", "open_clip_model.safetensors", "model.fp16.safetensors", "evil.py"):
            (directory / name).write_bytes(b"not to be fetched")
        hub.models["someone/clip"] = directory
        model = DualEncoder.from_pretrained("someone/clip", device="cpu")
        assert torch.equal(
            model.encode_text(CAPTIONS), DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS)
        )
        fetched = {path.rpartition("/")[2] for path in hub.asked if path.startswith("GET") and "/resolve/" in path}
        assert fetched == {path.name for path in directory.iterdir() if path.suffix == ".json"} | {"model.safetensors"}
        assert model_checksum("someone/clip") == model_checksum("someone/clip")

    def test_a_pair_with_pickled_weights_alone_is_refused_and_the_advice_leads_on(self, hub, copied, tmp_path):
        directory = copied("clip")
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
        hub.models["someone/clip"] = directory
        with pytest.raises(UserError, match=r"no model\.safetensors on the hub, and pickled weights are not") as caught:
            DualEncoder.from_pretrained("someone/clip", device="cpu")
        assert not any(path.endswith("pytorch_model.bin") for path in hub.asked)
        [command] = re.findall("`(.*?)`", str(caught.value))
        here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        arguments = command.replace("DIR", str(tmp_path / "all")).split()
        subprocess.run(arguments, check=True, capture_output=True, env=here)
        with pytest.raises(UserError, match=r"in pytorch_model\.bin, a pickle"):
            DualEncoder.from_pretrained(tmp_path / "all", device="cpu")

    def test_without_the_hub_what_is_in_the_cache_is_used(self, hub, transformers_pair, monkeypatch):
        from huggingface_hub import constants

        hub.models["someone/clip"] = transformers_pair("clip")
        expected = DualEncoder.from_pretrained("someone/clip", device="cpu").encode_text(CAPTIONS)
        hub.asked.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert torch.equal(DualEncoder.from_pretrained("someone/clip", device="cpu").encode_text(CAPTIONS), expected)
        with pytest.raises(UserError, match=r"no directory someone/else here, and HF_HUB_OFFLINE forbids .*; unset it"):
            DualEncoder.from_pretrained("someone/else")
        assert hub.asked == []

    def test_a_name_that_it_has_not_or_guards_is_said_to_have_been_asked_for(self, hub, transformers_pair):
        hub.models["someone/guarded"] = transformers_pair("clip")
        hub.gated.add("someone/guarded")
        with pytest.raises(UserError, match=rf"so the hub {hub.address} was asked for it, which has no such model"):
            DualEncoder.from_pretrained("someone/else")
        with pytest.raises(UserError, match=r"was asked for it, which gives it only to those who accepted its terms"):
            DualEncoder.from_pretrained("someone/guarded")

    def test_a_path_is_never_sent_to_it(self, hub, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        for name in ("./someone/clip", "/someone/clip", "runs/private name/model", "secret", "runs/secret"):
            with pytest.raises(UserError, match=f"there is no directory {name}"):
                DualEncoder.from_pretrained(name)
        assert hub.asked == []


def test_a_gallery_of_a_pair_is_searched_and_refuses_the_pair_with_other_weights(copied, images, tmp_path):
    directory = copied("clip")
    index_images(directory, images, tmp_path / "gallery", progress=False, threads=2, device="cpu")
    gallery = Gallery.open(tmp_path / "gallery")
    hit = search(gallery, str(images / "red.png"), 1)[0]
    assert hit.item.path == "red.png"
    assert hit.score == pytest.approx(1, abs=1e-4)
    assert len(search(gallery, "a red card", 8)) == 8
    model = transformers.AutoModel.from_pretrained(directory)
    with torch.no_grad():
        model.text_projection.weight.add_(1)
    model.save_pretrained(directory)
    with pytest.raises(UserError, match=r"is not the one .*gallery was made with"):
        search(Gallery.open(tmp_path / "gallery"), "a red card", 1)
    with pytest.raises(UserError, match="was made with another model"):
        index_images(directory, images, tmp_path / "gallery", progress=False, threads=2, device="cpu")


def test_an_export_and_a_save_of_a_pair_are_refused_in_a_true_sentence(transformers_pair, tmp_path):
    from crosspair.commands.export import export_command

    directory = transformers_pair("clip")
    for kind in ("onnx", "openvino", "huggingface"):
        with pytest.raises(UserError, match=r"is a ready-made pair of transformers"):
            export_command(str(directory), kind, tmp_path / "export", None, "cpu")
    with pytest.raises(UserError, match=r"is a ready-made pair, which crosspair reads but doesn't write"):
        DualEncoder.from_pretrained(directory, device="cpu").save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
