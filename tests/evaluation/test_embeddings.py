"""Embedding files of other projects: what is read, and one sentence for every file that can't be."""

import io
import zipfile

import numpy as np
import pytest

from crosspair import UserError
from crosspair.evaluation.embeddings import Embeddings, read_embeddings


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.fixture
def save(tmp_path):
    """Write an .npz of three pictures with two texts each; arguments replace arrays, None leaves one out."""

    def write(**changes):
        arrays = {
            "image_embeddings": np.eye(3, dtype=np.float32),
            "text_embeddings": np.eye(3, dtype=np.float32).repeat(2, 0),
            "image_labels": np.arange(3),
            "text_labels": np.arange(3).repeat(2),
        } | changes
        path = tmp_path / "embeddings.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return write


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_any_float_type_are_read(save, dtype):
    read = read_embeddings(save(image_embeddings=np.eye(3, dtype=dtype), more=np.zeros(3)))
    np.testing.assert_array_equal(read.images, np.eye(3))
    assert read.text_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert read.text_images is None
    assert read.image_names == ("image-0", "image-1", "image-2")


def test_a_compressed_file_and_the_pictures_of_texts_are_read(save, tmp_path):
    with np.load(save(image_labels=np.array([5, 5, 7]), text_labels=np.array([5, 5, 5, 5, 7, 7]))) as file:
        np.savez_compressed(tmp_path / "small.npz", text_images=np.arange(3).repeat(2), **file)
    read = read_embeddings(tmp_path / "small.npz")
    assert read.text_images.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text_labels": None}, "has no text_labels, it has image_embeddings, text_embeddings, image_labels"),
        ({"image_embeddings": np.full((3, 3), np.nan)}, "row 0 of image_embeddings holds NaN"),
        ({"text_embeddings": np.full((6, 3), np.inf)}, "row 0 of text_embeddings holds NaN or infinity"),
        ({"image_embeddings": np.eye(3, dtype=int)}, "image_embeddings are int64"),
        ({"image_labels": np.arange(4)}, "one label for each of the 3"),
        ({"image_labels": np.arange(3.0)}, "image_labels are float64"),
        ({"text_labels": np.full(6, 2**64 - 1, dtype=np.uint64)}, "number them anew"),
        ({"text_labels": np.array(list("aabbcc"))}, "expected integers"),
        ({"text_images": np.arange(6)}, "text_images hold 3 for text 3; expected the row of a picture, 0 to 2"),
        ({"text_images": np.zeros(6, dtype=int)}, "text 2 has label 1, its picture in text_images 0"),
        ({"text_images": np.zeros(5, dtype=int)}, "text_images have shape"),
    ],
)
def test_arrays_that_can_not_be_evaluated_are_named_with_their_file(save, changes, sentence):
    path = save(**changes)
    with pytest.raises(UserError) as error:
        read_embeddings(path)
    assert str(error.value).startswith(str(path))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_unpickled(save, capsys):
    objects = np.array([Trap()] * 3, dtype=object)
    path = save(image_labels=objects)
    with pytest.raises(UserError, match=r"holds Python objects; expected an .npz file with image_embeddings"):
        read_embeddings(path)
    assert capsys.readouterr().out == ""


def broken(kind: str) -> bytes:
    whole = io.BytesIO()
    np.savez(whole, image_embeddings=np.eye(200))
    array = io.BytesIO()
    np.save(array, np.eye(3))
    text_in_zip = io.BytesIO()
    with zipfile.ZipFile(text_in_zip, "w") as archive:
        archive.writestr("image_embeddings", "text")
    return {
        "empty": b"",
        "text": b"1,2,3\n",
        "pickle": b"\x80\x04N.",
        "cut short": whole.getvalue()[:1000],
        "damaged": whole.getvalue().replace(b"\0\0\xf0?", b"\0\0\xf1?", 1),
        "a single array": array.getvalue(),
        "a zip of text": text_in_zip.getvalue(),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "cut short", "damaged", "a single array", "a zip of text"])
def test_a_file_of_another_kind_is_refused(tmp_path, kind):
    path = tmp_path / "file.npz"
    path.write_bytes(broken(kind))
    with pytest.raises(UserError, match=r"file\.npz .*numpy\.savez writes it") as error:
        read_embeddings(path)
    assert "\n" not in str(error.value)


def test_tensors_are_taken_too():
    import torch

    taken = Embeddings.checked(torch.eye(2).half(), torch.eye(2), torch.arange(2), torch.arange(2))
    assert taken.images.dtype == np.float16
    assert (
        Embeddings.checked(torch.eye(2).bfloat16(), torch.eye(2), torch.arange(2), torch.arange(2)).images.dtype
        == np.float32
    )
