"""Training batches: what training asks of a split, and the batches that are made by an epoch's plan.

A batch holds each of its images once with several of its captions: b images, m captions.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from crosspair.data.images import load_image
from crosspair.data.plans import BatchPlan, Drawing, plan_epoch
from crosspair.data.tokens import Tokenizer, pad, says_side, tokenize
from crosspair.data.transforms import ImageInput, random_crop, random_erase, random_shift
from crosspair.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class TrainingSplit(Protocol):
    """The interface of training data: n images with labels and captions, however they are stored.

    `Split` is the usual case, of images that can be read in any order; a stream is another one.
    """

    if TYPE_CHECKING:  # read only; plain attributes do as well

        @property
        def labels(self) -> np.ndarray:
            """int64 [n]; images and captions of one label match."""

        @property
        def checksum(self) -> str:
            """Of the contents; a run goes on only where it is the same."""

    def __len__(self) -> int:
        """The number of images, n."""

    @property
    def by_index(self) -> "Split | None":
        """This split where its images can be read in any order, else None: then no features are kept of them."""

    @property
    def directory(self) -> Path | None:
        """The DATA directory that it belongs to, if any."""

    def describe(self) -> dict[str, Any]:
        """Facts for the first row of a run's metrics.jsonl, beside `directory` and `checksum`."""

    def word_counts(self, tokenizer: Tokenizer = "words") -> Counter[str]:
        """Word counts of the captions. Raises UserError for a tokenizer that it can't be read with."""

    def batch_source(self, reading: "Reading") -> "BatchSource":
        """The source of batches of this split."""


class Split(TrainingSplit, Protocol):
    """n images with labels and captions that can be read in any order; row i of everything is image i.

    A subclass gives what is not given here: the length, `labels`, `captions`, `checksum` and `image`.
    """

    if TYPE_CHECKING:

        @property
        def captions(self) -> list[list[str]]:
            """The captions of each image, at least one of each."""

    @property
    def image_ids(self) -> list[str]:
        """A name of each image, for messages."""
        return [f"image {row}" for row in range(len(self))]

    def image(self, index: int) -> "bytes | str | Path | Image | np.ndarray | Tensor":
        """Image 0 <= index < n: encoded bytes, a path, a PIL image, an array uint8 [h, w, 3] or tensor uint8 [3, h, w].

        The same each time: what varies (flips, crops) is the recipe's.
        """

    @property
    def by_index(self) -> "Split | None":
        return self

    @property
    def directory(self) -> Path | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {}

    @property
    def tokens(self) -> list[list[list[str]]] | None:
        """The words of each caption of each image, where they came with the annotations."""
        return None

    def texts(self, tokenizer: Tokenizer) -> Sequence[Sequence[str | list[str]]]:
        """The texts of each image for a text encoder: its captions or, for `stored`, their words if there are any."""
        return self.tokens if tokenizer == "stored" and self.tokens is not None else self.captions

    def word_counts(self, tokenizer: Tokenizer = "words") -> Counter[str]:
        if tokenizer == "stored" and self.tokens is None:
            raise UserError(
                f"model.text.tokenizer is stored, and {self.directory or 'the dataset'} has no column tokens; set it "
                "to original or words, or prepare annotations that have words"
            )
        texts = (text for row in self.texts(tokenizer) for text in row)
        return Counter(
            word for text in texts for word in (tokenize(text, tokenizer) if isinstance(text, str) else text)
        )

    def batch_source(self, reading: "Reading") -> "BatchSource":
        return BatchSource(self, reading)


class ImagesByRow(Protocol):
    """Decoded images, uint8 [3, h, w], by their row."""

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class Reading:
    """Settings by which images and captions become a model's input.

    tokenize: token numbers of a caption or, with the tokenizer `stored`, of its words. features: float32
    [n, 1 or 2, num_features] (of each image, and of it flipped); with them no image is read. text_features:
    float32 [all captions, num_features], in the order of their images. smallest_crop: images are cropped to a random
    share of their area, from this to 1. hflip_sides: flip also images of which a caption in the batch says left or
    right. shift: images are moved by up to so many pixels. erasing: share of images with a box erased. decoded: the
    images, where they are kept decoded.
    """

    tokenize: Callable[[Any], list[int]]
    image_input: ImageInput
    features: np.ndarray | None = None
    text_features: np.ndarray | None = None
    smallest_crop: float = 1.0
    hflip_sides: bool = False
    shift: int = 0
    erasing: float = 0.0
    decoded: ImagesByRow | None = None
    tokenizer: Tokenizer = "words"


# What is looked at from the CPU: reading it from a GPU would wait for all work under way.
_ON_CPU = {"lengths", "image_labels", "text_labels"}
_OF_AN_IMAGE = {"image_labels", "images", "features"}  # the others have a row for each caption


@dataclass(frozen=True)
class Batch:
    """b images (or their features) with m captions."""

    tokens: Tensor  # int64 [m, t]
    lengths: Tensor  # int64 [m]
    image_labels: Tensor  # int64 [b], the label's number among the training labels
    text_labels: Tensor  # int64 [m]
    image_rows: Tensor  # int64 [m], which of the b images a caption belongs to
    images: Tensor | None = None  # [b, 3, height, width], values 0..255
    features: Tensor | None = None  # float32 [b, num_features]
    text_features: Tensor | None = None  # float32 [m, num_features] of the captions

    def to(self, device: torch.device) -> "Batch":
        return self._map(lambda name, value: value if name in _ON_CPU else value.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._map(lambda _, value: value.pin_memory())

    def split(self, parts: int) -> "list[Batch]":
        """Consecutive images with their captions, in parts that differ by one image at most."""
        count = len(self.image_labels)
        captions_up_to = [0, *torch.bincount(self.image_rows, minlength=count).cumsum(0).tolist()]
        bounds = [count * part // parts for part in range(parts + 1)]
        ends = [captions_up_to[bound] for bound in bounds]
        cuts = zip(pairwise(bounds), pairwise(ends), strict=True)
        return [self._part(slice(*images), slice(*captions)) for images, captions in cuts]

    def _part(self, images: slice, captions: slice) -> "Batch":
        part = self._map(lambda name, value: value[images if name in _OF_AN_IMAGE else captions])
        return replace(part, image_rows=part.image_rows - images.start)

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> "Batch":
        present = {item.name: getattr(self, item.name) for item in fields(self)}
        return Batch(**{name: change(name, value) for name, value in present.items() if value is not None})


class BatchSource:
    """Makes the batches of a split."""

    def __init__(self, split: Split, reading: Reading) -> None:
        self.split = split
        self.tokens: list[list[list[int]]] | dict[int, list[list[int]]]
        self.tokens = [[reading.tokenize(text) for text in row] for row in split.texts(reading.tokenizer)]
        self.caption_counts = [len(captions) for captions in self.tokens]
        self._first_captions = np.cumsum([0, *self.caption_counts])
        self._prepare(split, reading)

    def _prepare(self, split: TrainingSplit, reading: Reading) -> None:
        self.reading = reading
        found, numbers = np.unique(split.labels, return_inverse=True)
        self.num_classes = len(found)
        self._labels = torch.from_numpy(numbers.astype(np.int64))

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> list[int]:
        """Class index of each image: the position of its label among the training labels."""
        return self._labels.tolist()

    def plan(self, drawing: Drawing, seed: Sequence[int]) -> Sequence[BatchPlan]:
        """The batches of one epoch, as all processes together see them; `share` is one process's part."""
        return plan_epoch(
            self.caption_counts,
            batch_size=drawing.batch_size,
            captions_per_image=drawing.captions_per_image,
            covers=drawing.covers,
            hflip=drawing.hflip,
            seed=seed,
            labels=self.labels,
            sampler=drawing.sampler,
        )

    def share(self, plans: Sequence[BatchPlan], rank: int, processes: int) -> Sequence[BatchPlan]:
        """The part of each batch that one of the processes takes."""
        return [plan.shard(rank, processes) for plan in plans]

    def __getitem__(self, plan: BatchPlan) -> Batch:
        """The batch of a plan (named so that a DataLoader with the plans as its sampler can call it)."""
        reading = self.reading
        if not reading.hflip_sides:
            plan = replace(plan, hflipped=plan.hflipped & ~self._says_side(plan))
        rows = torch.from_numpy(plan.images)
        counts = torch.tensor([len(chosen) for chosen in plan.captions])
        image_rows = torch.arange(len(rows)).repeat_interleave(counts)
        chosen = zip(plan.images, plan.captions, strict=True)
        tokens, lengths = pad([self.tokens[image][caption] for image, row in chosen for caption in row])
        labels = self._labels[rows]
        images: dict[str, Tensor] = {}
        if reading.features is not None:
            images["features"] = torch.from_numpy(reading.features[plan.images, plan.hflipped.astype(np.int64)]).float()
        else:
            images["images"] = torch.stack(self._images(plan))
        if reading.text_features is not None:
            firsts = self._first_captions[plan.images]
            read = np.concatenate([first + chosen for first, chosen in zip(firsts, plan.captions, strict=True)])
            images["text_features"] = torch.from_numpy(reading.text_features[read])
        return Batch(tokens, lengths, labels, labels[image_rows], image_rows, **images)

    def batches(self, plans: Sequence[BatchPlan], workers: int, pin_memory: bool = False) -> Iterator[Batch]:
        """The batches of `plans` in their order; images are decoded by `workers` processes (0: here)."""
        from torch.utils.data import DataLoader

        loader: DataLoader[Batch] = DataLoader(
            self,  # type: ignore[arg-type]
            batch_size=None,
            sampler=plans,
            num_workers=0 if self.reading.features is not None else workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # a loader left to itself would draw from the generator that dropout uses
        )
        yield from loader

    def _says_side(self, plan: BatchPlan) -> np.ndarray:
        """bool [b]: whether a caption that is read with an image says left or right."""
        chosen = zip(plan.images.tolist(), plan.captions, strict=True)
        return np.array([any(says_side(self._captions(image)[row]) for row in rows) for image, rows in chosen])

    def _captions(self, image: int) -> Sequence[str]:
        return self.split.captions[image]

    def _images(self, plan: BatchPlan) -> list[Tensor]:
        return [self._image(plan, row) for row in range(len(plan.images))]

    def _image(self, plan: BatchPlan, row: int) -> Tensor:
        image = self._pixels(int(plan.images[row]))
        if self.reading.smallest_crop < 1:
            image = random_crop(image, self.reading.smallest_crop, plan.crops[row])
        resized = self.reading.image_input.resize(image)
        changes = plan.changes[row]
        if self.reading.shift:
            resized = random_shift(resized, self.reading.shift, changes[:2])
        if changes[2] < self.reading.erasing:
            resized = random_erase(resized, changes[3:], self.reading.image_input.mean)
        return resized.flip(-1) if plan.hflipped[row] else resized

    def _pixels(self, index: int) -> Tensor:
        """The decoded image of a row, or what the cache keeps of it."""
        if self.reading.decoded is not None:
            return self.reading.decoded[index]
        return load_image(self.split.image(index), self.split.image_ids[index])


def load_batches(
    source: BatchSource, plans: Sequence[BatchPlan], workers: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of `plans` in their order, on `device`; `workers` as `BatchSource.batches` takes them."""
    for batch in source.batches(plans, workers, pin_memory=device.type == "cuda"):
        yield batch.to(device)
