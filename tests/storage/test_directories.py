"""What a directory is, whole or on its way, and one sentence for any other."""

import pytest

from crosspair.errors import UserError
from crosspair.storage.directories import expect_kind, kind_of

SIGNS = {"DATA": "crosspair.json", "RUN": "recipe.yaml", "MODEL": "config.json", "GALLERY": "gallery.json"}


@pytest.mark.parametrize("kind", SIGNS)
def test_each_kind_is_told_by_its_file(kind, tmp_path):
    assert kind_of(tmp_path) is None
    (tmp_path / SIGNS[kind]).touch()
    assert kind_of(tmp_path) == kind
    assert expect_kind(tmp_path, "MODEL", kind) == kind


def test_a_gallery_is_one_before_its_first_state_and_while_that_moves(tmp_path):
    (tmp_path / "first" / ".partial").mkdir(parents=True)
    (tmp_path / "moving" / ".next").mkdir(parents=True)
    (tmp_path / "moving" / ".next" / "gallery.json").touch()
    assert [kind_of(tmp_path / name) for name in ("first", "moving")] == ["GALLERY", "GALLERY"]


@pytest.mark.parametrize("name", ["user/model", "a" * 5000, "a\0b", ""])
def test_what_is_no_name_of_a_directory_is_of_no_kind(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kind_of(name) is None


def test_another_kind_is_named_with_what_was_expected(tmp_path):
    (tmp_path / "gallery.json").touch()
    with pytest.raises(UserError, match=r" is a GALLERY; expected a RUN or MODEL directory, name a dir"):
        expect_kind(tmp_path, "RUN", "MODEL")
    with pytest.raises(UserError, match=r"is not a DATA directory \(it is a file\); name .*`crosspair prepare` wrote"):
        expect_kind(tmp_path / "gallery.json", "DATA")
    with pytest.raises(UserError, match=r"none does not exist; expected a DATA directory"):
        expect_kind(tmp_path / "none", "DATA")
