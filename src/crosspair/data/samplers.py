"""Samplers, which say which items of an epoch share a batch. All randomness comes from the generator that is handed in.

A sampler takes the label of every item, the batch size and a generator, and by a parameter called `images` also which
image an item shows; it returns the items of each batch. It must give as many batches in every epoch.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from crosspair.registry import register_sampler
from crosspair.settings import Range


@register_sampler("shuffled")
def shuffled(labels: Sequence[int], batch_size: int, random: np.random.Generator) -> list[np.ndarray]:
    """All items in random order; a last batch that is not full is left out, unless it is the only one."""
    order = random.permutation(len(labels))
    end = len(labels) // batch_size * batch_size or len(labels)
    return [order[start : start + batch_size] for start in range(0, end, batch_size)]


@register_sampler("labels")
def label_balanced(
    labels: Sequence[int],
    batch_size: int,
    random: np.random.Generator,
    images: Sequence[int],
    *,
    images_per_label: Annotated[
        int, Range(at_least=1), "Images of each label in a batch; a label that has fewer gives all of them."
    ] = 4,
) -> list[np.ndarray]:
    """Batches of batch_size / images_per_label different labels with as many different images of each.

    A label with fewer images gives all it has, and where there are fewer labels a batch has all of them. Every item is
    in at least one batch, some are in two; the number of batches depends on the labels and images alone.
    """
    items_of: dict[int, list[int]] = {}
    for item, label in enumerate(labels):
        items_of.setdefault(label, []).append(item)
    turns = [
        (label, [items[entry] for entry in turn])
        for label, items in items_of.items()
        for turn in _of_different([images[item] for item in items], images_per_label, random)
    ]
    groups = _of_different([label for label, _ in turns], batch_size // images_per_label, random)
    return [np.array([item for turn in group for item in turns[turn][1]]) for group in groups]


def _of_different(keys: Sequence[int], size: int, random: np.random.Generator) -> list[list[int]]:
    """Entries in random groups of `size` different keys (of all keys where there are fewer), each entry at least once.

    Entries are dealt like cards, those of one key in a row, so that they fall into different groups; how many groups
    there are depends on the keys alone. Groups that are not full then draw entries again.
    """
    _, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
    size = min(size, len(counts))
    row = np.lexsort((random.permutation(len(keys)), random.permutation(len(counts))[numbers]))
    total = max(-(-len(keys) // size), int(counts.max()))
    groups = []
    for first in random.permutation(total):
        chosen = {int(numbers[entry]): int(entry) for entry in row[first::total]}
        if len(chosen) < size:
            for entry in random.permutation(len(keys)):
                if len(chosen) < size:
                    chosen.setdefault(int(numbers[entry]), int(entry))
        groups.append(list(chosen.values()))
    return groups
