"""The snippets of docs/evaluation.md, run with stand-ins for the projects they export from."""

import re
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from crosspair.evaluation.embeddings import Embeddings, read_embeddings
from crosspair.evaluation.protocols import PLAIN, arrange
from crosspair.evaluation.query_table import query_table, write_queries
from crosspair.registry import PROTOCOLS
from tests.fixtures.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def snippet(words):
    """The one snippet that has these words in it."""
    (found,) = (text for text in SNIPPETS if words in text)
    return found


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

    stand_in("utils")
    stand_in("utils.metrics", Evaluator=Evaluator)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_snippet_of_irra_writes_a_file_that_can_be_read(others, memory_split, monkeypatch):
    import io

    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    split = memory_split([["one", "two"], ["three", "four"]], np.arange(2), [image.getvalue()] * 2)

    class Data:
        def split(self, name):
            return split

    monkeypatch.setattr("crosspair.data.dataset.open_data", lambda path: Data())
    names = {"test_img_loader": None, "test_txt_loader": None, "model": None}
    exec(snippet('split = crosspair.open_data("flickr30k")'), names)
    exec(snippet('np.savez("irra.npz"'), names)
    read = read_embeddings(others / "irra.npz")
    assert read.images.shape == (2, 3)
    assert read.text_labels.tolist() == [0, 0, 1, 1]


def test_the_snippet_of_a_matrix_runs(others, capsys):
    exec(snippet('np.savez("matrix.npz"'), {})
    assert capsys.readouterr().out.count("4 images, 8 texts, similarity; ties against the model") == 2


def test_every_protocol_is_described():
    for name in PROTOCOLS.names():
        assert f"`{name}`" in PAGE


def test_the_snippet_on_queries_prints_recall_by_the_words_of_a_caption(others, capsys):
    embeddings = Embeddings.checked(np.eye(4), np.eye(4)[[0, 1, 2, 2]], np.arange(4), np.arange(4))
    captions = ["one two", "one " * 9, "two " * 9, "three " * 9]
    found = PLAIN.evaluate(embeddings)
    write_queries(others / "queries.parquet", query_table(found, arrange(PLAIN, embeddings), captions))
    exec(snippet("queries.parquet").replace("<= 10", "<= 1"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("]") == ["(0, 8", "     100.000000"]
    assert lines[2].split("]") == ["(8, 12", "     66.666667"]
