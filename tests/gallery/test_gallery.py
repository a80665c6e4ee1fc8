"""A gallery on disk: what it gives back, and what it refuses."""

import json
import shutil

import numpy as np
import pytest

from crosspair.data.images import decode_image
from crosspair.errors import UserError
from crosspair.gallery.gallery import Gallery


def test_a_picture_finds_itself_first_and_a_sentence_finds_all(written_gallery, images):
    gallery = written_gallery()
    assert len(gallery) == 8
    assert gallery.dimension == 8
    query = gallery.model().encode_image([images / "more" / "white.png"]).numpy()
    found = gallery.search(query, 3)
    assert found.scores.shape == found.rows.shape == (1, 3)
    assert gallery.item(found.rows[0, 0]).item_id == "more/white.png"
    assert found.scores[0, 0] == pytest.approx(1, abs=1e-5)
    assert sorted(gallery.search(gallery.model().encode_text(["a red square"]).numpy(), 99).rows[0]) == list(range(8))


def test_it_gives_the_picture_its_thumbnail_and_its_columns(written_gallery, images):
    gallery = written_gallery()
    assert gallery.image(0) == (images / "black.png").read_bytes()
    assert decode_image(gallery.thumbnail(0)).shape == (3, 32, 48)
    assert gallery.items["item_id"][:2] == ["black.png", "blue.png"]
    assert gallery.item(7).captions is None
    with pytest.raises(IndexError):
        gallery.item(8)


def test_a_missing_thumbnail_is_made_from_the_picture(written_gallery):
    gallery = written_gallery()
    shutil.rmtree(gallery.path / "thumbnails")
    assert decode_image(gallery.thumbnail(3)).shape == (3, 32, 48)


def test_a_picture_that_changed_or_vanished_is_not_given_out(written_gallery, images):
    gallery = written_gallery()
    (images / "black.png").write_bytes(b"another")
    (images / "blue.png").unlink()
    with pytest.raises(UserError, match=r"black\.png is no longer the picture that was indexed"):
        gallery.image(0)
    with pytest.raises(UserError, match=r"blue\.png is gone"):
        gallery.image(1)


@pytest.mark.parametrize("queries", [np.zeros(8, np.float32), np.zeros((1, 7), np.float32)])
def test_queries_of_another_shape_are_refused(written_gallery, queries):
    with pytest.raises(ValueError, match="expected"):
        written_gallery().search(queries, 1)


def test_a_gallery_that_moved_with_its_pictures_still_finds_them(written_gallery, tmp_path, images):
    written_gallery()
    (tmp_path / "new").mkdir()
    (tmp_path / "gallery").rename(tmp_path / "new" / "gallery")
    data = (images / "black.png").read_bytes()
    images.rename(tmp_path / "new" / "images")
    assert Gallery.open(tmp_path / "new" / "gallery").image(0) == data


def test_what_is_no_gallery_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Gallery.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no gallery\.json"):
        Gallery.open(tmp_path)


@pytest.mark.parametrize("name", ["embeddings.npy", "items.parquet"])
@pytest.mark.parametrize("damage", ["cut", "missing", "longer"])
def test_a_damaged_file_is_refused(written_gallery, name, damage):
    path = written_gallery().path / name
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data[:-1] if damage == "cut" else data + b"x")
    with pytest.raises(UserError, match=f"{name}.*(damaged|missing)"):
        Gallery.open(path.parent)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1}', '{"format": "x"}', "null"])
def test_a_damaged_manifest_is_refused(written_gallery, text):
    path = written_gallery().path / "gallery.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"damaged|format 99"):
        Gallery.open(path.parent)


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", -1), ("dimension", "512"), ("files", []), ("source", 5), ("model", None)],
)
def test_a_wrong_field_of_the_manifest_is_named(written_gallery, name, value):
    path = written_gallery().path / "gallery.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(UserError, match=rf"gallery\.json is damaged \(field '{name}.*index anew"):
        Gallery.open(path.parent)


def test_another_model_under_the_old_name_is_refused(written_gallery, tmp_path, model_dir):
    gallery = written_gallery()
    path = gallery.path / "gallery.json"
    fields = json.loads(path.read_text())
    other = tmp_path / "model"
    shutil.copytree(model_dir, other)
    (other / "vocabulary.txt").write_text("a\nsquare\nother\n")
    fields["model"]["path"] = str(other)
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="is not the one"):
        Gallery.open(gallery.path).model()
    fields["model"] = {"path": str(tmp_path / "gone"), "relative": "../gone"}
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="gone"):
        Gallery.open(gallery.path).model()
