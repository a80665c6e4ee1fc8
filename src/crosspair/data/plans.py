"""An epoch's plan: which images and captions its batches hold, drawn in advance from a seed.

The plan owns all randomness (order, captions, flips, crops), so batches are the same for any number of workers and
after a resume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crosspair.data.samplers import shuffled
from crosspair.errors import UserError
from crosspair.settings import apply_settings

CHANGES = 7  # random numbers that decide the shift of an image and the box erased in it
Sampler = Callable[..., Sequence[Sequence[int] | np.ndarray]]  # as `crosspair.data.samplers` says


@dataclass(frozen=True)
class Drawing:
    """Settings of a recipe's stage by which an epoch's batches are drawn; shuffle_buffer is for streams alone."""

    batch_size: int
    captions_per_image: int = 1
    covers: Literal["images", "captions"] = "captions"
    hflip: bool = False
    sampler: Sampler = shuffled
    shuffle_buffer: int = 1
    processes: int = 1


@dataclass(frozen=True)
class BatchPlan:
    """The plan of one batch: its images and captions, and how the images are augmented."""

    images: np.ndarray  # int64 [b], rows of the split
    captions: list[np.ndarray]  # for each of the b images, which of its captions
    hflipped: np.ndarray  # bool [b]
    crops: np.ndarray  # float64 [b, 4], in 0..1, decide the crop of an image
    changes: np.ndarray  # float64 [b, CHANGES], in 0..1, decide its shift (the first two) and the box erased in it

    def shard(self, rank: int, processes: int) -> "BatchPlan":
        """The part of one of several processes: consecutive images, as many as the others' or one more or less."""
        first, end = (len(self.images) * part // processes for part in (rank, rank + 1))
        rows = slice(first, end)
        return BatchPlan(
            self.images[rows], self.captions[rows], self.hflipped[rows], self.crops[rows], self.changes[rows]
        )


def plan_epoch(
    caption_counts: Sequence[int],
    *,
    batch_size: int,
    captions_per_image: int,
    covers: Literal["images", "captions"],
    hflip: bool,
    seed: Sequence[int],
    labels: Sequence[int] | None = None,
    sampler: Sampler = shuffled,
) -> list[BatchPlan]:
    """The batches of one epoch, as all processes together see them (`BatchPlan.shard` is one process's part).

    caption_counts: captions of each image. captions_per_image: 0 takes all. covers: `images` draws every image
    once with some of its captions, `captions` every caption once, in groups of captions_per_image that share their
    image. labels: of each image, where the sampler looks at them. sampler: which of these share a batch, as
    `crosspair.data.samplers` says.

    Raises UserError for a sampler that gives no batches, an empty one, or something that is not in the epoch.
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
    images = [image for image, _ in items]
    shown = [0 if labels is None else labels[image] for image in images]
    batches = apply_settings(sampler, {}, images=images)(shown, batch_size, random)
    ends = np.cumsum([len(batch) for batch in batches])
    if not all(len(batch) and min(batch) >= 0 and max(batch) < len(items) for batch in batches) or len(ends) == 0:
        raise UserError(f"the sampler's batches are not lists of numbers 0 .. {len(items) - 1}; mend the sampler")
    drawn = max(len(items), ends[-1])
    hflipped = random.random(drawn) < 0.5 if hflip else np.zeros(drawn, dtype=bool)
    crops, changes = random.random((drawn, 4)), random.random((drawn, CHANGES))
    return [
        BatchPlan(
            np.array([items[item][0] for item in batch]),
            [items[item][1] for item in batch],
            hflipped[end - len(batch) : end],
            crops[end - len(batch) : end],
            changes[end - len(batch) : end],
        )
        for batch, end in zip(batches, ends, strict=True)
    ]
