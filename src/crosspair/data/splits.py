"""Training data from Python: a split of any dataset of (image, captions, label), and splits given by name."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from crosspair.data.batching import Split, TrainingSplit
from crosspair.data.dataset import open_data
from crosspair.data.images import load_image
from crosspair.errors import UserError
from crosspair.progress import progress_bar


class ImageTextDataset(Protocol):
    """The input of `from_dataset`: a `torch.utils.data.Dataset` with a length, or anything with these methods."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any:
        """(image, captions, label): what `Split.image` may give, a sentence or a list of them, an integer."""


class TrainingData(Protocol):
    """Splits to train and to validate on, by name; `open_data` gives one, `GivenData` is another."""

    def split(self, name: str) -> Any:
        """`train` is a TrainingSplit, `val` a Split. Raises UserError for a split that there is not."""


class GivenData:
    """Training data made of given splits, by name.

    splits: `train` and `val` to train with, each a dataset as `from_dataset` takes it, a stream, a split of opened
    data, or the path of a DATA directory that has a split of that name. Raises UserError for what can't be used.
    """

    def __init__(
        self, splits: Mapping[str, TrainingSplit | ImageTextDataset | str | Path], *, progress: bool = True
    ) -> None:
        self._splits = {name: _as_split(name, given, progress) for name, given in splits.items()}

    def split(self, name: str) -> Any:
        """Raises UserError where there is no such split, or where it is a stream and not `train`."""
        if name not in self._splits:
            raise UserError(f"the data has no split '{name}'; it has {', '.join(self._splits)}")
        found = self._splits[name]
        if name != "train" and found.by_index is None:
            raise UserError(f"split '{name}' is a stream; expected images that can be read in any order")
        return found


@dataclass(frozen=True)
class RunSplits:
    """Training data of a run, and what it is validated on, if anything."""

    train: TrainingSplit
    val: Split | None


def run_splits(data: TrainingData, names: Sequence[str], *, validate: bool) -> RunSplits:
    """The splits of these names as one to train on, and the split `val`, unless nothing is to be validated.

    Raises UserError for a split that there is not, and for a stream among several splits.
    """
    parts = [data.split(name) for name in names]
    if len(parts) == 1:
        train = parts[0]
    else:
        for name, part in zip(names, parts, strict=True):
            if part.by_index is None:
                raise UserError(
                    f"split '{name}' is a stream, which can't be joined with others; set train_splits to {name}"
                )
        train = JoinedSplit(parts)
    return RunSplits(train, data.split("val") if validate else None)


class JoinedSplit(Split):
    """Several splits, one behind the other, to train on all of them.

    Equal labels match, in whichever splits they are; images of a dataset without labels match none of another split.
    """

    labels: np.ndarray
    checksum: str

    def __init__(self, parts: Sequence[Split]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.checksum = hashlib.sha256(" ".join(part.checksum for part in parts).encode()).hexdigest()
        self.labels = _joined_labels(parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each image."""
        return [captions for part in self._parts for captions in part.captions]

    @cached_property
    def image_ids(self) -> list[str]:
        return [name for part in self._parts for name in part.image_ids]

    @cached_property
    def tokens(self) -> list[list[list[str]]] | None:
        found = [part.tokens for part in self._parts]
        return None if None in found else [row for tokens in found for row in tokens or []]

    @property
    def directory(self) -> Path | None:
        return self._parts[0].directory

    def image(self, index: int) -> Any:
        """The image of a row, as its split gives it."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part].image(index - int(self._ends[part]) + len(self._parts[part]))

    def describe(self) -> dict[str, Any]:
        facts = self._parts[0].describe()
        return {**facts, "images": len(self)} if facts else {}


def _joined_labels(parts: Sequence[Split]) -> np.ndarray:
    """int64 [n]; the labels that a dataset's rows have for want of others are moved past all labels before them."""
    found: list[np.ndarray] = []
    free = max((int(part.labels.max()) + 1 for part in parts if not _numbered_by_row(part)), default=0)
    for part in parts:
        by_row = _numbered_by_row(part)
        found.append(free + np.arange(len(part)) if by_row else part.labels)
        free += len(part) if by_row else 0
    return np.concatenate(found)


def _numbered_by_row(split: Split) -> bool:
    return isinstance(split, DatasetSplit) and not split.labelled


class DatasetSplit(Split):
    """A dataset of (image, captions, label), whose captions and labels are kept in memory and its images are not."""

    captions: list[list[str]]
    labels: np.ndarray
    checksum: str  # of labels, captions and pixels

    def __init__(
        self,
        dataset: ImageTextDataset,
        captions: list[list[str]],
        labels: np.ndarray,
        checksum: str,
        *,
        labelled: bool = True,
    ) -> None:
        """labelled: False where `labels` are the numbers of the rows, as the dataset has none."""
        self.labelled = labelled
        self.dataset = dataset
        self.captions = captions
        self.labels = labels
        self.checksum = checksum

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> Any:
        """The image of a row as the dataset returns it."""
        return self.dataset[index][0]

    def describe(self) -> dict[str, Any]:
        return {"dataset": type(self.dataset).__name__, "images": len(self)}


def from_dataset(dataset: ImageTextDataset, *, progress: bool = True) -> DatasetSplit:
    """A split to train or to validate on, from any dataset of (image, captions, label).

    image: a path, encoded bytes, a PIL image, an array uint8 [h, w] or [h, w, 3 or 4], or a tensor uint8 [3, h, w]; the
    same each time, as flips and crops are the recipe's, and resuming and kept features depend on it. captions: a
    sentence, or a list of them. label: an integer of 64 bits; images and captions of equal labels match. Items may be
    (image, captions) without labels, as those of torchvision's CocoCaptions: then each image has a label of its own.

    Reads every item once, so that training meets no surprise. Raises UserError naming an item that can't be used.
    """
    if not len(dataset):
        raise UserError("the dataset is empty; expected at least one item (image, captions, label)")
    captions: list[list[str]] = []
    labels: list[int] = []
    checksum = hashlib.sha256()
    parts: int | None = None  # of the first item, with or without a label
    for index in progress_bar(range(len(dataset)), desc="reading the dataset", unit=" images", disable=not progress):
        item = dataset[index]
        parts = len(item) if parts is None and isinstance(item, Sequence) else parts
        image, sentences, label = _item(item, index, parts)
        pixels = load_image(image, f"image {index} of the dataset")
        captions.append(sentences)
        labels.append(label)
        checksum.update(repr((label, sentences, tuple(pixels.shape))).encode())
        checksum.update(pixels.contiguous().numpy().data)
    return DatasetSplit(dataset, captions, np.array(labels, dtype=np.int64), checksum.hexdigest(), labelled=parts == 3)


def _as_split(name: str, given: Any, progress: bool) -> TrainingSplit:
    if isinstance(given, str | Path):
        return open_data(given).split(name)
    return given if hasattr(given, "batch_source") else from_dataset(given, progress=progress)


def _item(item: Any, index: int, parts: int | None) -> tuple[Any, list[str], int]:
    """The image, the captions and the label of an item. Raises UserError for an item of another form."""
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) not in (2, 3):
        found = f"{len(item)} values" if isinstance(item, Sequence) else type(item).__name__
        raise UserError(f"item {index} of the dataset is {found}; expected (image, captions, label)")
    if len(item) != parts:
        raise UserError(
            f"item {index} of the dataset has {len(item)} values, the first {parts}; expected a label in all or in none"
        )
    image, captions, label = item if len(item) == 3 else (*item, index)
    sentences = [captions] if isinstance(captions, str) else captions
    usable = isinstance(sentences, Sequence) and len(sentences) > 0
    if not usable or not all(isinstance(each, str) and each.strip() for each in sentences):
        raise UserError(
            f"item {index} of the dataset has the captions {captions!r:.80}; expected a sentence or several"
        )
    try:
        number = operator.index(label)
    except TypeError:
        raise UserError(f"item {index} of the dataset has the label {label!r:.80}; expected an integer") from None
    if not -(2**63) <= number < 2**63:
        raise UserError(f"item {index} of the dataset has the label {number}, which no 64 bits hold")
    return image, list(sentences), number
