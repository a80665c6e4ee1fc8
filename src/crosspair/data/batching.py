"""What an epoch reads, decided in advance from a seed, and the batches made of it.

A batch holds each of its pictures once with several of its captions: b pictures, m captions. The plan owns all
randomness (order, captions, mirroring, crops), so batches are the same for any number of workers and after a resume.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from crosspair.data.samplers import label_balanced, shuffled
from crosspair.data.tokens import pad, says_side
from crosspair.data.transforms import ImageInput, random_crop

if TYPE_CHECKING:
    from crosspair.data.dataset import Split
    from crosspair.data.decoded import DecodedImages


@dataclass(frozen=True)
class BatchPlan:
    """Which pictures and captions make one batch, and how the pictures are changed."""

    images: np.ndarray  # int64 [b], rows of the split
    captions: list[np.ndarray]  # for each of the b pictures, which of its captions
    hflipped: np.ndarray  # bool [b]
    crops: np.ndarray  # float64 [b, 4], in 0..1, decide the crop of a picture

    def shard(self, rank: int, processes: int) -> "BatchPlan":
        """The part of one of several processes: consecutive pictures, as many as the others' or one more or less."""
        first, end = (len(self.images) * part // processes for part in (rank, rank + 1))
        return BatchPlan(
            self.images[first:end], self.captions[first:end], self.hflipped[first:end], self.crops[first:end]
        )


# What is looked at from the CPU: reading it from a GPU would wait for all work under way.
_ON_CPU = {"lengths", "image_labels", "text_labels"}
_OF_AN_IMAGE = {"image_labels", "images", "features"}  # the others have a row for each caption


@dataclass(frozen=True)
class Batch:
    """b pictures (or their features) with m captions."""

    tokens: Tensor  # int64 [m, t]
    lengths: Tensor  # int64 [m]
    image_labels: Tensor  # int64 [b], the label's number among the training labels
    text_labels: Tensor  # int64 [m]
    image_rows: Tensor  # int64 [m], which of the b pictures a caption belongs to
    images: Tensor | None = None  # [b, 3, height, width], values 0..255
    features: Tensor | None = None  # float32 [b, num_features]
    text_features: Tensor | None = None  # float32 [m, num_features] of the captions

    def to(self, device: torch.device) -> "Batch":
        return self._map(lambda name, value: value if name in _ON_CPU else value.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._map(lambda _, value: value.pin_memory())

    def split(self, parts: int) -> "list[Batch]":
        """Consecutive pictures with their captions, in parts that differ by one picture at most."""
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


def plan_epoch(
    caption_counts: Sequence[int],
    *,
    batch_size: int,
    captions_per_image: int,
    covers: Literal["images", "captions"],
    hflip: bool,
    seed: Sequence[int],
    identities: Sequence[int] | None = None,
    images_per_label: int = 1,
) -> list[BatchPlan]:
    """The batches of one epoch, as all processes together see them (`BatchPlan.shard` is one process's part).

    caption_counts: captions of each picture. captions_per_image: 0 takes all. covers: `images` draws every picture
    once with some of its captions, `captions` every caption once, in groups of captions_per_image that share their
    picture. A last batch that is not full is left out, unless it is the only one.

    identities: the label of each picture, for batches of batch_size / images_per_label different labels with
    images_per_label pictures each, as `label_balanced` has them; None shuffles all pictures.
    """
    random = np.random.default_rng(list(seed))
    items: list[tuple[int, np.ndarray]] = []
    for image, count in enumerate(caption_counts):
        order = random.permutation(count)
        group = min(captions_per_image or count, count)
        if covers == "images":
            items.append((image, order[:group]))
        else:
            items += [(image, order[start : start + group]) for start in range(0, count, group)]
    if identities is None:
        batches = shuffled(len(items), batch_size, random)
    else:
        images = [image for image, _ in items]
        shown = [identities[image] for image in images]
        in_batch = batch_size // images_per_label
        batches = label_balanced(shown, images, in_batch, images_per_label, random)
    ends = np.cumsum([len(batch) for batch in batches])
    hflipped = random.random(ends[-1]) < 0.5 if hflip else np.zeros(ends[-1], dtype=bool)
    crops = random.random((ends[-1], 4))
    plans = [
        BatchPlan(
            np.array([items[item][0] for item in batch]),
            [items[item][1] for item in batch],
            hflipped[end - len(batch) : end],
            crops[end - len(batch) : end],
        )
        for batch, end in zip(batches, ends, strict=True)
    ]
    left_out = identities is None and len(plans) > 1 and len(batches[-1]) < batch_size
    return plans[:-1] if left_out else plans


class BatchSource:
    """Makes the batches of a split.

    features: float32 [n, 1 or 2, num_features] (plain, mirrored); with them no picture is read. text_features: float32
    [all captions, num_features], in the order of their pictures. hflip_sides: mirror also pictures of which a caption
    in the batch says left or right.
    """

    def __init__(
        self,
        split: "Split",
        tokenize: Callable[[str], list[int]],
        image_input: ImageInput,
        *,
        features: np.ndarray | None = None,
        text_features: np.ndarray | None = None,
        smallest_crop: float = 1.0,
        hflip_sides: bool = False,
        decoded: "DecodedImages | None" = None,
    ) -> None:
        self.split = split
        self.image_input = image_input
        self.features = features
        self.text_features = text_features
        self.smallest_crop = smallest_crop
        self.hflip_sides = hflip_sides
        self.decoded = decoded
        self.tokens: list[list[list[int]]] | dict[int, list[list[int]]]
        self.tokens = [[tokenize(caption) for caption in captions] for captions in split.captions]
        self.caption_counts = [len(captions) for captions in self.tokens]
        self._first_captions = np.cumsum([0, *self.caption_counts])
        found, numbers = np.unique(split.labels, return_inverse=True)
        self.num_classes = len(found)
        self._labels = torch.from_numpy(numbers.astype(np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> list[int]:
        """The label's number among the training labels, of each picture."""
        return self._labels.tolist()

    def __getitem__(self, plan: BatchPlan) -> Batch:
        """The batch of a plan (named so that a DataLoader with the plans as its sampler can call it)."""
        if not self.hflip_sides:
            plan = replace(plan, hflipped=plan.hflipped & ~self._says_side(plan))
        rows = torch.from_numpy(plan.images)
        counts = torch.tensor([len(chosen) for chosen in plan.captions])
        image_rows = torch.arange(len(rows)).repeat_interleave(counts)
        chosen = zip(plan.images, plan.captions, strict=True)
        tokens, lengths = pad([self.tokens[image][caption] for image, row in chosen for caption in row])
        labels = self._labels[rows]
        images: dict[str, Tensor] = {}
        if self.features is not None:
            images["features"] = torch.from_numpy(self.features[plan.images, plan.hflipped.astype(np.int64)]).float()
        else:
            images["images"] = torch.stack(self._images(plan))
        if self.text_features is not None:
            firsts = self._first_captions[plan.images]
            read = np.concatenate([first + chosen for first, chosen in zip(firsts, plan.captions, strict=True)])
            images["text_features"] = torch.from_numpy(self.text_features[read])
        return Batch(tokens, lengths, labels, labels[image_rows], image_rows, **images)

    def batches(self, plans: Sequence[BatchPlan], workers: int, pin_memory: bool = False) -> Iterator[Batch]:
        """The batches of `plans` in their order; pictures are decoded by `workers` processes (0: here)."""
        from torch.utils.data import DataLoader

        loader: DataLoader[Batch] = DataLoader(
            self,  # type: ignore[arg-type]
            batch_size=None,
            sampler=plans,
            num_workers=0 if self.features is not None else workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # a loader left to itself would draw from the generator that dropout uses
        )
        yield from loader

    def _says_side(self, plan: BatchPlan) -> np.ndarray:
        """bool [b]: whether a caption that is read with a picture says left or right."""
        chosen = zip(plan.images.tolist(), plan.captions, strict=True)
        return np.array([any(says_side(self._captions(image)[row]) for row in rows) for image, rows in chosen])

    def _captions(self, image: int) -> Sequence[str]:
        return self.split.captions[image]

    def _images(self, plan: BatchPlan) -> list[Tensor]:
        return [self._image(plan, row) for row in range(len(plan.images))]

    def _image(self, plan: BatchPlan, row: int) -> Tensor:
        image = self._pixels(int(plan.images[row]))
        if self.smallest_crop < 1:
            image = random_crop(image, self.smallest_crop, plan.crops[row])
        resized = self.image_input.resize(image)
        return resized.flip(-1) if plan.hflipped[row] else resized

    def _pixels(self, index: int) -> Tensor:
        """The decoded picture of a row, or what the cache keeps of it."""
        from crosspair.data.images import decode_image

        if self.decoded is not None:
            return self.decoded[index]
        return decode_image(self.split.image(index), self.split.image_ids[index])


def load_batches(
    source: BatchSource, plans: Sequence[BatchPlan], workers: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of `plans` in their order, on `device`; `workers` as `BatchSource.batches` takes them."""
    for batch in source.batches(plans, workers, pin_memory=device.type == "cuda"):
        yield batch.to(device)
