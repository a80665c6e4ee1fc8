"""The snippets of docs/evaluation.md, run with stand-ins for the projects they export from."""

import re
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from crosspair.evaluation.embeddings import read_embeddings
from crosspair.registry import PROTOCOLS
from tests.fixtures.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Tower(torch.nn.Module):
    def encode_image(self, pixels):
        return torch.ones(len(pixels), 3)

    def encode_text(self, tokens):
        return torch.ones(len(tokens), 3)


class SentenceTransformer:
    def __init__(self, name):
        assert name

    def encode(self, items):
        assert all(isinstance(item, str | Image.Image) for item in items)
        return np.ones((len(items), 3), dtype=np.float32)


class Evaluator:
    def __init__(self, images, texts):
        pass

    def _compute_embedding(self, model):
        labels = torch.tensor([0, 1])
        return torch.ones(4, 3).half(), torch.ones(2, 3).half(), labels.repeat_interleave(2), labels


@pytest.fixture
def others(monkeypatch, tmp_path):
    """Modules with the functions that the snippets use; files are written to a temporary directory."""

    def stand_in(name, **contents):
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    def create(name, pretrained):
        return Tower(), None, lambda image: torch.ones(3, image.height, image.width)

    stand_in("open_clip", create_model_and_transforms=create, get_tokenizer=lambda name: lambda texts: texts)
    stand_in("sentence_transformers", SentenceTransformer=SentenceTransformer)
    stand_in("utils")
    stand_in("utils.metrics", Evaluator=Evaluator)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("place", "file"), [(1, "open_clip.npz"), (2, "sentence_transformers.npz"), (3, "irra.npz")])
def test_each_snippet_writes_a_file_that_can_be_read(others, memory_split, monkeypatch, place, file):
    import io

    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    split = memory_split([["one", "two"], ["three", "four"]], np.arange(2), [image.getvalue()] * 2)

    class Data:
        def split(self, name):
            return split

    monkeypatch.setattr("crosspair.data.dataset.open_data", lambda path: Data())
    names = {"test_img_loader": None, "test_txt_loader": None, "model": None}
    exec(SNIPPETS[0], names)
    exec(SNIPPETS[place], names)
    read = read_embeddings(others / file)
    assert read.images.shape == (2, 3)
    assert read.text_labels.tolist() == [0, 0, 1, 1]


def test_the_snippet_of_a_matrix_runs(others, capsys):
    exec(SNIPPETS[4], {})
    assert capsys.readouterr().out.count("4 images, 8 texts, similarity; ties against the model") == 2


def test_every_protocol_is_described():
    for name in PROTOCOLS.names():
        assert f"`{name}`" in PAGE
