"""Karpathy's JSON: Flickr8k, Flickr30k and COCO with the splits everyone reports on.

    {"dataset": "coco", "images": [{"imgid": 0, "split": "train", "filepath": "train2014", "filename": "a.jpg",
                                    "sentences": [{"raw": "A dog runs .", "tokens": ["a", "dog", "runs"]}, ...]}, ...]}

COCO's images lie under filepath/filename, the others' have no filepath. COCO's entries have its own numbers of
images and captions too, `cocoid` and `sentid`; the latter are kept.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosspair.data.reader import Counts, published
from crosspair.data.readers.schema import Entry, SchemaError, keys_of, kind_of, load_json, path_inside, require_folder
from crosspair.data.records import Record
from crosspair.errors import UserError
from crosspair.registry import register_reader

SPLITS = ("train", "val", "test", "restval")
_FIX = "expected Karpathy's dataset_flickr8k.json, dataset_flickr30k.json or dataset_coco.json"


def _coco_counts(*, merge_restval: bool = False) -> dict[str, Counts]:
    """Karpathy and Fei-Fei (2015). restval is part of train when it is merged."""
    counts = {"val": Counts(5_000, 25_010), "test": Counts(5_000, 25_010)}
    if merge_restval:
        return {"train": Counts(113_287, 566_747), **counts}
    return {"train": Counts(82_783, 414_113), **counts, "restval": Counts(30_504, 152_634)}


@register_reader("flickr8k")
@published({"train": Counts(6_000, 30_000), "val": Counts(1_000, 5_000), "test": Counts(1_000, 5_000)})
def read_flickr8k(annotations: Path, images: Path) -> list[Record]:
    """Flickr8k by Karpathy's dataset_flickr8k.json."""
    return read_karpathy(annotations, images)


@register_reader("flickr30k")
@published({"train": Counts(29_000, 145_000), "val": Counts(1_014, 5_070), "test": Counts(1_000, 5_000)})
def read_flickr30k(annotations: Path, images: Path) -> list[Record]:
    """Flickr30k by Karpathy's dataset_flickr30k.json."""
    return read_karpathy(annotations, images)


@register_reader("coco")
@published(_coco_counts)
def read_coco(annotations: Path, images: Path, *, merge_restval: bool = False) -> list[Record]:
    """MSCOCO by Karpathy's dataset_coco.json; --merge-restval adds its split restval to train."""
    records = read_karpathy(annotations, images)
    if not merge_restval:
        return records
    return [replace(record, split="train") if record.split == "restval" else record for record in records]


def read_karpathy(annotations: Path, images: Path) -> list[Record]:
    """A record per entry of `images`, in the order of the file; label = imgid, image_id = [filepath/]filename.

    Raises UserError, before the first record, when the file or an entry has another shape.
    """
    require_folder(images)
    entries = _load(annotations)
    try:
        records = [_record(entry, images) for entry in _numbered(entries)]
    except SchemaError as problem:
        raise UserError(f"{annotations} is not Karpathy's JSON: {problem}; {_FIX}") from None
    if any(record.caption_ids is None for record in records):
        records = [replace(record, caption_ids=None) for record in records]
    return records


def _load(path: Path) -> list[Any]:
    content = load_json(path, _FIX)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        found = f"an object with {keys_of(content)}" if isinstance(content, dict) else kind_of(content)
        raise UserError(f"{path} is not Karpathy's JSON: found {found}, not an object with a list of images; {_FIX}")
    entries: list[Any] = content["images"]
    return entries


def _numbered(entries: list[Any]) -> Iterator[Entry]:
    for number, fields in enumerate(entries):
        named = isinstance(fields, dict) and isinstance(fields.get("filename"), str)
        yield Entry(fields, f"image {number}" + (f" ({fields['filename'][:80]!r})" if named else ""))


def _record(entry: Entry, images: Path) -> Record:
    split = entry.get("split", str)
    if split not in SPLITS:
        raise SchemaError(f"{entry.name} is in split {split[:40]!r}, not in one of {', '.join(SPLITS)}")
    image_id = _image_id(entry)
    captions: list[str] = []
    tokens: list[tuple[str, ...]] = []
    for number, fields in enumerate(entry.get("sentences", list)):
        sentence = Entry(fields, f"sentence {number} of {entry.name}")
        captions.append(sentence.get("raw", str))
        tokens.append(sentence.strings("tokens"))
    label = entry.get("imgid", int)
    return Record(image_id, images / image_id, label, tuple(captions), split, tuple(tokens), _caption_ids(entry))


def _caption_ids(entry: Entry) -> tuple[int, ...] | None:
    """COCO's numbers of the captions; None where they aren't COCO's, or not whole."""
    ids = tuple(sentence.get("sentid") for sentence in entry.fields["sentences"])
    known = "cocoid" in entry.fields and all(type(each) is int and 0 <= each < 2**63 for each in ids)
    return ids if known else None


def _image_id(entry: Entry) -> str:
    """The image's path inside the folder of images."""
    filename = entry.image("filename")
    folder = entry.get("filepath", str) if "filepath" in entry.fields else ""
    return path_inside(f"{folder}/{filename}", entry.name, "filepath") if folder else filename
