"""Ready-made pairs of `open_clip` give the vectors that the library itself gives, and run no code of a folder."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from crosspair.encode.model import DualEncoder
from crosspair.encode.storage import model_checksum
from crosspair.errors import UserError
from tests.fixtures.pairs import CAPTIONS, LONGEST, photographs, siglip_tokenizer, spread

open_clip: Any = pytest.importorskip("open_clip", reason="open_clip is not installed")

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
FILLED = {"context_length": LONGEST, "vocab_size": 17, "pool_type": "last", "no_causal_mask": True}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}
KINDS: dict[str, dict[str, Any]] = {
    "clip": {"model": {"vision_cfg": VISION, "text_cfg": TEXT}},
    "quickgelu": {"model": {"vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}},
    "siglip": {
        "model": {
            "vision_cfg": VISION,
            "text_cfg": {
                **TEXT,
                **FILLED,
                "hf_tokenizer_name": "someone/tokenizer",
                "tokenizer_kwargs": {"clean": "canonicalize"},
            },
            "custom_text": True,
            "init_logit_bias": -10,
        },
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    },
    "timm": {
        "model": {"vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True},
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "longest"},
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny pair of a kind as open_clip's local-dir has it; made once, to be read only."""
    made: dict[str, Path] = {}

    def save(kind: str) -> Path:
        if kind not in made:
            directory = tmp_path_factory.mktemp("pairs") / kind
            directory.mkdir()
            settings = {"model_cfg": {"embed_dim": 24, **KINDS[kind]["model"]}}
            settings["preprocess_cfg"] = KINDS[kind].get("preprocessing", {})
            (directory / "open_clip_config.json").write_text(json.dumps(settings))
            torch.manual_seed(0)
            model = spread(open_clip.create_model(f"local-dir:{directory}", load_weights=False, pretrained_text=False))
            if kind == "siglip":
                siglip_tokenizer().save_pretrained(directory)
            tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(tensors, directory / "open_clip_model.safetensors")
            made[kind] = directory
        return made[kind]

    return save


@pytest.fixture
def copied(saved, tmp_path) -> Callable[[str], Path]:
    """A pair's directory to change."""
    return lambda kind: Path(shutil.copytree(saved(kind), tmp_path / kind))


def own_vectors(
    name: str, *settings: str, images: list[Image.Image] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library's documentation has a user do."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, *settings)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(image) for image in images or photographs()]))
        texts = model.encode_text(tokenizer(CAPTIONS))
    return normalize(seen, dim=1), normalize(texts, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_gives_its_own_librarys_vectors(saved, kind):
    directory = saved(kind)
    images, texts = own_vectors(f"local-dir:{directory}")
    for name in (str(directory), f"open_clip:local-dir:{directory}"):
        model = DualEncoder.from_pretrained(name, device="cpu")
        assert (model.encode_image(photographs()) - images).abs().max() < 1e-5
        assert (model.encode_text(CAPTIONS) - texts).abs().max() < 1e-5
    assert (images @ images.T).min() < 0.95  # pictures that all look alike would show nothing
    assert (texts @ texts.T).min() < 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_sees_real_photographs_as_its_own_library_does(saved, flickr8k_photographs, kind):
    images, _ = own_vectors(f"local-dir:{saved(kind)}", images=[Image.open(path) for path in flickr8k_photographs])
    seen = DualEncoder.from_pretrained(saved(kind), device="cpu").encode_image(flickr8k_photographs)
    assert (seen - images).abs().max() < 1e-4


def test_an_architecture_of_the_librarys_list_takes_its_weights_from_the_hub(hub, saved, monkeypatch, tmp_path):
    directory = saved("clip")
    settings = json.loads((directory / "open_clip_config.json").read_text())
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ViT-tiny.json").write_text(json.dumps(settings["model_cfg"]))
    kept = list(open_clip.factory._MODEL_CONFIG_PATHS), dict(open_clip.factory._MODEL_CONFIGS)
    open_clip.add_model_config(tmp_path / "configs")
    try:
        tag = {"hf_hub": "someone/ViT-tiny/", "mean": (0.5,) * 3, "std": (0.4,) * 3, "interpolation": "bilinear"}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-tiny", {"laion": tag})
        (tmp_path / "files").mkdir()
        shutil.copy(directory / "open_clip_model.safetensors", tmp_path / "files")
        hub.models["someone/ViT-tiny"] = tmp_path / "files"
        images, texts = own_vectors("ViT-tiny", "laion")
        model = DualEncoder.from_pretrained("open_clip:ViT-tiny/laion", device="cpu")
        assert (model.encode_image(photographs()) - images).abs().max() < 1e-5
        assert (model.encode_text(CAPTIONS) - texts).abs().max() < 1e-5
        assert model.image_input.std == [0.4, 0.4, 0.4]
        assert model_checksum("open_clip:ViT-tiny/laion") != model_checksum(directory)
        hub.models["someone/folder"] = directory
        of_folder = DualEncoder.from_pretrained("open_clip:hf-hub:someone/folder", device="cpu")
        assert torch.equal(of_folder.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
        with pytest.raises(UserError, match=r"lists no weights ViT-tiny/laoin; near: open_clip:ViT-tiny/laion"):
            DualEncoder.from_pretrained("open_clip:ViT-tiny/laoin")
    finally:
        open_clip.factory._MODEL_CONFIG_PATHS[:] = kept[0]
        open_clip.factory._MODEL_CONFIGS.clear()
        open_clip.factory._MODEL_CONFIGS.update(kept[1])


@pytest.mark.parametrize("name", ["ViT-B-32/openai", "ViT-B-16/dfn2b", "ViT-L-14/metaclip_400m"])
def test_weights_that_were_trained_with_another_activation_are_refused_by_the_right_name(hub, name):
    architecture, tag = name.split("/")
    with pytest.raises(UserError, match="trained with QuickGELU") as caught:
        DualEncoder.from_pretrained(f"open_clip:{name}", device="cpu")
    assert str(caught.value).endswith(f"name open_clip:{architecture}-quickgelu/{tag}")
    assert open_clip.get_model_config(f"{architecture}-quickgelu")["quick_gelu"]
    assert hub.asked == []
    with pytest.raises(UserError, match="which has no such model"):  # it is asked for, and this hub is empty
        DualEncoder.from_pretrained(f"open_clip:{architecture}-quickgelu/{tag}", device="cpu")


class TestRefused:
    def refusal(self, name: str | Path) -> str:
        with pytest.raises(UserError) as caught:
            DualEncoder.from_pretrained(name, device="cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def change(self, directory: Path, side: str, **settings: Any) -> None:
        path = directory / "open_clip_config.json"
        found = json.loads(path.read_text())
        found["model_cfg"][side].update(settings)
        path.write_text(json.dumps(found))

    def test_what_a_configuration_says_of_code_is_left_out(self, copied, monkeypatch):
        directory = copied("siglip")
        expected = DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS)
        (directory / "evil.py").write_text("raise SystemExit('code of the folder was run')")
        settings = {"clean": "canonicalize", "trust_remote_code": True}
        self.change(directory, "text_cfg", tokenizer_kwargs=settings, evil=1)
        tokenizer = directory / "tokenizer_config.json"
        code = {"AutoTokenizer": ["evil.T", None]}
        tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "auto_map": code}))
        monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked whether to run code"))
        assert torch.equal(DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS), expected)

    def test_pickled_weights_with_a_conversion_that_works(self, copied):
        directory = copied("clip")
        expected = DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS)
        torch.save(load_file(directory / "open_clip_model.safetensors"), directory / "open_clip_pytorch_model.bin")
        (directory / "open_clip_model.safetensors").unlink()
        message = self.refusal(directory)
        assert "in open_clip_pytorch_model.bin, a pickle, which is never read here" in message
        advice = message.partition("if you trust them, ")[2].removesuffix(" writes it")
        subprocess.run([sys.executable, "-c", f"import safetensors.torch, torch; {advice}"], check=True)
        assert torch.equal(DualEncoder.from_pretrained(directory, device="cpu").encode_text(CAPTIONS), expected)

    def test_an_image_encoder_that_would_be_fetched(self, copied):
        directory = copied("timm")
        self.change(directory, "vision_cfg", timm_model_name="hf-hub:someone/encoder")
        assert "has the image encoder hf-hub:someone/encoder, which timm doesn't know" in self.refusal(directory)

    def test_a_text_encoder_that_would_be_fetched(self, copied):
        directory = copied("clip")
        self.change(directory, "text_cfg", hf_model_name="someone/encoder")
        assert "has a text encoder of transformers, which is not read here" in self.refusal(directory)

    def test_weights_of_another_shape(self, copied):
        directory = copied("clip")
        self.change(directory, "vision_cfg", width=96)
        assert "can't be used" in self.refusal(directory)

    def test_a_folder_without_a_configuration(self, tmp_path):
        assert "it has no open_clip_config.json" in self.refusal(f"open_clip:local-dir:{tmp_path}")


def test_loading_leaves_the_programs_logging_as_it_is(saved):
    import logging

    before = list(logging.getLogger().handlers), logging.root.manager.disable
    DualEncoder.from_pretrained(saved("clip"), device="cpu")
    assert (list(logging.getLogger().handlers), logging.root.manager.disable) == before
