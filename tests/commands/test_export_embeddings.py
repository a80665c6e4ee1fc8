"""crosspair export --embeddings: a split's embeddings as files that this and other programs read."""

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.encode import embedding_files
from crosspair.encode.embedding_files import write_arrays
from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.errors import UserError
from crosspair.evaluation.embeddings import read_embeddings
from tests.fixtures.models import create_tiny_model


@pytest.fixture
def model(tmp_path) -> str:
    create_tiny_model().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def export(model, toy_directory, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["export", model, "--device", "cpu", *arguments])
        return code, *capsys.readouterr()

    return lambda *arguments: run("--embeddings", str(toy_directory), *arguments)


@pytest.mark.parametrize("name", ["val.npz", "val.mat", "val"])
def test_every_form_holds_the_models_embeddings(export, model, toy_data, tmp_path, name):
    code, out, _ = export("--split", "val", "--output", str(tmp_path / name))
    assert code == 0
    assert out == f"val: 12 pictures, 24 captions, 8 dimensions\nembeddings: {tmp_path / name}\n"
    seen = embed_split(DualEncoder.from_pretrained(model, device="cpu"), toy_data.split("val"))
    if name == "val.mat":
        scipy_io = pytest.importorskip("scipy.io")
        found = {key: value for key, value in scipy_io.loadmat(tmp_path / name).items() if not key.startswith("__")}
        assert (tmp_path / name).read_bytes().startswith(b"MATLAB 5.0 MAT-file")
        assert found["image_labels"].shape == (12, 1)
        assert found["image_embeddings"].dtype == np.float32
    else:
        read = read_embeddings(tmp_path / name)
        found = {
            **{"image_embeddings": read.images, "text_embeddings": read.texts, "text_images": read.text_images},
            **{"image_labels": read.image_labels, "text_labels": read.text_labels},
        }
    np.testing.assert_allclose(found["image_embeddings"], seen.images.numpy(), atol=1e-6)
    np.testing.assert_allclose(found["text_embeddings"], seen.texts.numpy(), atol=1e-6)
    assert found["image_labels"].ravel().tolist() == seen.image_labels.tolist()
    assert found["text_labels"].ravel().tolist() == seen.text_labels.tolist()
    rows = [row for row, captions in enumerate(toy_data.split("val").captions) for _ in captions]
    assert found["text_images"].ravel().tolist() == rows
    assert set(found) == {"image_embeddings", "text_embeddings", "image_labels", "text_labels", "text_images"}


def test_evaluate_reads_them(export, tmp_path, capsys):
    export("--split", "val", "--output", str(tmp_path / "val.npz"))
    assert main(["evaluate", "--embeddings", str(tmp_path / "val.npz")]) == 0
    assert "12 images, 24 texts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "val", "--output", "val.npy"], "val.npy can't hold several arrays"),
        (["--split", "vall", "--output", "val.npz"], "has no split 'vall'; it has train, val"),
        (
            ["--format", "onnx", "--output", "x"],
            "expected either --format (onnx, openvino, huggingface) or --embeddings",
        ),
        (["--split", "val", "--check", "x", "--output", "val.npz"], "--check goes with --format"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_writes_nothing(export, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, err = export(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_that_is_not_empty_is_refused_before_anything_is_encoded(export, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_, **__: pytest.fail("the model was read"))
    code, _, err = export("--split", "val", "--output", str(tmp_path / "there"))
    assert code == 2
    assert str(tmp_path / "there") in err


def test_a_matrix_too_large_for_matlab_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files, "LARGEST_IN_MATLAB", 100)
    with pytest.raises(
        UserError, match=r"image_embeddings takes 0.0 GB, and MATLAB 5 holds 2 GB a matrix; name an .npz"
    ):
        write_arrays(tmp_path / "x.mat", {"image_embeddings": np.zeros((26, 1), dtype=np.float32)})
    assert list(tmp_path.iterdir()) == []
