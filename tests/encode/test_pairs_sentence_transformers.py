"""Ready-made pairs of `sentence-transformers` give the vectors that the library itself gives."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from crosspair.encode.model import DualEncoder
from crosspair.encode.storage import model_checksum
from crosspair.errors import UserError
from tests.fixtures.pairs import CAPTIONS, bert_tokenizer, photographs

library: Any = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
transformers: Any = pytest.importorskip("transformers")

from sentence_transformers.sentence_transformer.modules import (  # noqa: E402
    CLIPModel,
    Dense,
    Normalize,
    Pooling,
    Transformer,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, transformers_pair) -> Path:
    directory = tmp_path_factory.mktemp("pairs") / "clip"
    library.SentenceTransformer(modules=[CLIPModel(str(transformers_pair("clip")))], device="cpu").save_pretrained(
        str(directory)
    )
    return directory


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DistilBERT, its mean and a layer into CLIP's 24 dimensions, as of clip-ViT-B-32-multilingual-v1."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("pairs")
    tokenizer = bert_tokenizer(lower=False)
    sizes = {"n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 32, "max_position_embeddings": 32}
    model = transformers.DistilBertModel(transformers.DistilBertConfig(**sizes, vocab_size=len(tokenizer)))
    model.save_pretrained(directory / "transformer")
    tokenizer.save_pretrained(directory / "transformer")
    modules = [
        Transformer(str(directory / "transformer"), max_seq_length=12),
        Pooling(16, pooling_mode="mean"),
        Dense(16, 24, bias=False, activation_function=torch.nn.Identity()),
    ]
    library.SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(directory / "saved"))
    return directory / "saved"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda directory: Path(shutil.copytree(directory, tmp_path / directory.name))


def own_vectors(directory: Path, items: list[Any]) -> torch.Tensor:
    model = library.SentenceTransformer(str(directory), device="cpu")
    vectors: torch.Tensor = model.encode(items, normalize_embeddings=True, convert_to_tensor=True)
    return vectors


def test_clip_gives_its_own_librarys_vectors(clip):
    model = DualEncoder.from_pretrained(clip, device="cpu")
    assert (model.encode_image(photographs()) - own_vectors(clip, photographs())).abs().max() < 1e-5
    assert (model.encode_text(CAPTIONS) - own_vectors(clip, CAPTIONS)).abs().max() < 1e-5


def test_clip_sees_real_photographs_as_its_own_library_does(clip, flickr8k_photographs):
    seen = DualEncoder.from_pretrained(clip, device="cpu").encode_image(flickr8k_photographs)
    assert (seen - own_vectors(clip, [Image.open(path) for path in flickr8k_photographs])).abs().max() < 1e-4


def test_clip_in_the_layout_of_published_models_gives_the_same(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "old" / "0_CLIPModel", ignore=shutil.ignore_patterns("modules.json"))
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    old, new = (DualEncoder.from_pretrained(directory, device="cpu") for directory in (tmp_path / "old", clip))
    assert torch.equal(old.encode_text(CAPTIONS), new.encode_text(CAPTIONS))


def test_texts_of_another_model_that_shares_the_space_give_its_vectors(clip, multilingual):
    model = DualEncoder.from_pretrained(f"{clip}+{multilingual}", device="cpu")
    texts = own_vectors(multilingual, CAPTIONS)
    assert (model.encode_image(photographs()) - own_vectors(clip, photographs())).abs().max() < 1e-5
    assert (model.encode_text(CAPTIONS) - texts).abs().max() < 1e-5
    assert (texts @ texts.T).min() < 0.99
    assert len({model_checksum(str(clip)), model_checksum(f"{clip}+{multilingual}")}) == 2


def test_a_text_encoder_in_the_layout_of_published_models_gives_the_same(clip, multilingual, copied):
    directory = copied(multilingual)
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 6, "do_lower_case": true}')
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    captions = ["Two People on the beach, a red dog sleeps", "A DOG"]
    found = DualEncoder.from_pretrained(f"{clip}+{directory}", device="cpu").encode_text(captions)
    assert (found - own_vectors(directory, captions)).abs().max() < 1e-5
    assert (found - own_vectors(multilingual, captions)).abs().max() > 1e-2  # without lower case and the cut


class TestRefused:
    def refusal(self, name: str | Path) -> str:
        with pytest.raises(UserError) as caught:
            DualEncoder.from_pretrained(name, device="cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_text_encoder_alone(self, multilingual):
        assert "encodes texts alone; expected CLIP" in self.refusal(multilingual)

    def test_two_models_that_share_no_space(self, clip, multilingual, copied):
        directory = copied(multilingual)
        modules = json.loads((directory / "modules.json").read_text())
        (directory / "modules.json").write_text(json.dumps(modules[:2]))
        assert "pictures 24 and texts 16 dimensions; expected one space" in self.refusal(f"{clip}+{directory}")

    def test_two_models_of_which_one_is_another_librarys(self, clip, transformers_pair):
        assert "expected IMAGES+TEXTS, two models of" in self.refusal(f"{clip}+{transformers_pair('clip')}")

    @pytest.mark.parametrize("kind", ["os.system", "evil.Model", "sentence_transformers.Evil"])
    def test_a_module_that_is_not_known(self, clip, copied, kind):
        directory = copied(clip)
        modules = json.loads((directory / "modules.json").read_text())
        (directory / "modules.json").write_text(json.dumps([*modules, {"type": kind, "path": ""}]))
        assert kind.rpartition(".")[2] in self.refusal(directory)

    def test_a_module_outside_of_the_folder(self, clip, copied):
        directory = copied(clip)
        modules = json.loads((directory / "modules.json").read_text())
        (directory / "modules.json").write_text(json.dumps([{**modules[0], "path": "../elsewhere"}]))
        assert "expected modules of sentence_transformers in folders of the model" in self.refusal(directory)

    def test_an_activation_that_is_not_known(self, clip, multilingual, copied):
        directory = copied(multilingual)
        config = json.loads((directory / "2_Dense" / "config.json").read_text())
        (directory / "2_Dense" / "config.json").write_text(json.dumps({**config, "activation_function": "os.system"}))
        assert "configures no layer that is known here" in self.refusal(f"{clip}+{directory}")

    def test_pickled_weights_of_a_layer(self, clip, multilingual, copied):
        directory = copied(multilingual) / "2_Dense"
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
        assert "in pytorch_model.bin, a pickle" in self.refusal(f"{clip}+{directory.parent}")


def test_normalised_embeddings_are_the_same(clip, tmp_path, transformers_pair):
    modules = [CLIPModel(str(transformers_pair("clip"))), Normalize()]
    library.SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "normalised"))
    found = DualEncoder.from_pretrained(tmp_path / "normalised", device="cpu").encode_text(CAPTIONS)
    assert torch.equal(found, DualEncoder.from_pretrained(clip, device="cpu").encode_text(CAPTIONS))
