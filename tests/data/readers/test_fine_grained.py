"""CUB and Flowers: the classes' lists make zero-shot splits, and no picture or sentence is lost on the way."""

from pathlib import Path

import pytest

from crosspair.data.readers.fine_grained import read_fine_grained
from crosspair.data.records import Record
from crosspair.errors import UserError
from crosspair.registry import READERS

CUB = {
    "train": ["001.Black_footed_Albatross", "003.Sooty_Albatross"],
    "val": ["002.Laysan_Albatross"],
    "test": ["004.Groove_billed_Ani"],
}
FLOWERS = {"train": ["class_00001"], "val": ["class_00003"], "test": ["class_00002"]}


def release(folder: Path, splits: dict[str, list[str]], flat: bool) -> tuple[Path, Path]:
    """Two pictures a class with ten sentences each, laid out as CUB or, flat, as Flowers."""
    annotations, images = folder / "reed", folder / "images"
    for place in (annotations, images):
        place.mkdir()
    for split, classes in splits.items():
        (annotations / f"{split}classes.txt").write_text("".join(f"{name}\n" for name in classes))
        for name in classes:
            texts = annotations / "text_c10" / name
            texts.mkdir(parents=True)
            inside = images if flat else images / name
            inside.mkdir(exist_ok=True)
            for number in range(2):
                stem = f"image_{name[-5:]}{number}"
                (texts / f"{stem}.txt").write_text("".join(f"the {word} one.\n" for word in range(10)))
                (inside / f"{stem}.jpg").write_bytes(b"")
    return annotations, images


def read(places: tuple[Path, Path]) -> list[Record]:
    return list(read_fine_grained(*places))


@pytest.mark.parametrize(("splits", "flat"), [(CUB, False), (FLOWERS, True)])
def test_every_picture_of_a_class_is_in_its_split(tmp_path, splits, flat):
    records = read(release(tmp_path, splits, flat))
    names = sorted(name for classes in splits.values() for name in classes)
    expected = [(split, names.index(name)) for split in splits for name in splits[split] for _ in range(2)]
    assert [(record.split, record.label) for record in records] == expected
    assert all(record.captions == tuple(f"the {word} one." for word in range(10)) for record in records)
    assert all(isinstance(record.image, Path) and record.image.is_file() for record in records)
    assert len({record.image_id for record in records}) == len(records)


def test_both_names_are_known():
    assert {"cub", "flowers"} <= set(READERS.names())


def test_train_and_val_in_one_list_are_one_split(tmp_path):
    annotations, images = release(tmp_path, CUB, flat=False)
    (annotations / "trainvalclasses.txt").write_text("\n".join(CUB["train"] + CUB["val"]))
    (annotations / "trainclasses.txt").unlink()
    records = read((annotations, images))
    assert {record.split for record in records} == {"train", "test"}
    assert len(records) == 8


def test_a_picture_without_sentences_and_sentences_without_a_picture_are_kept_for_the_account(tmp_path):
    annotations, images = release(tmp_path, CUB, flat=False)
    name = CUB["train"][0]
    next((annotations / "text_c10" / name).glob("*0.txt")).unlink()
    next((images / name).glob("*1.jpg")).unlink()
    first, second = read((annotations, images))[:2]
    assert first.captions == ()
    assert len(second.captions) == 10
    assert not Path(str(second.image)).exists()


def test_lists_that_contradict_each_other_are_refused(tmp_path):
    annotations, images = release(tmp_path, CUB, flat=False)
    (annotations / "valclasses.txt").write_text(CUB["train"][0])
    with pytest.raises(UserError, match=r"is in trainclasses\.txt and in valclasses\.txt"):
        read((annotations, images))


def test_a_class_that_leads_out_is_refused(tmp_path):
    annotations, images = release(tmp_path, CUB, flat=False)
    (annotations / "valclasses.txt").write_text("../../etc\n")
    with pytest.raises(UserError, match="leads out of the folder"):
        read((annotations, images))


def test_a_class_without_sentences_a_missing_list_and_a_missing_folder_are_named(tmp_path):
    annotations, images = release(tmp_path, CUB, flat=False)
    (annotations / "valclasses.txt").write_text("200.Yellowthroat\n")
    with pytest.raises(UserError, match=r"class '200\.Yellowthroat' has no folder"):
        read((annotations, images))
    (annotations / "valclasses.txt").unlink()
    with pytest.raises(UserError, match=r"valclasses\.txt does not exist; expected the folder with trainclasses\.txt"):
        read((annotations, images))
    with pytest.raises(UserError, match="none is not a folder"):
        read((tmp_path / "none", images))


def test_sentences_that_are_not_unicode_are_named(tmp_path):
    annotations, images = release(tmp_path, FLOWERS, flat=True)
    (annotations / "text_c10" / "class_00001" / "image_000010.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"image_000010\.txt is not UTF-8"):
        read((annotations, images))
