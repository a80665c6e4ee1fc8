"""Which items of an epoch share a batch. All randomness comes from the generator that is handed in."""

from collections.abc import Sequence

import numpy as np


def shuffled(items: int, batch_size: int, random: np.random.Generator) -> list[np.ndarray]:
    """All items in random order, batch_size to a batch; the last batch may be smaller."""
    order = random.permutation(items)
    return [order[start : start + batch_size] for start in range(0, items, batch_size)]


def label_balanced(
    identities: Sequence[int], images: Sequence[int], in_batch: int, of_each: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Batches of `in_batch` different identities with `of_each` different pictures of each.

    identities, pictures: what each item shows. An identity with fewer pictures gives all it has, and where there are
    fewer identities a batch has all of them. Every item is in at least one batch, some are in two; the number of
    batches depends on what the items show alone.
    """
    items_of: dict[int, list[int]] = {}
    for item, identity in enumerate(identities):
        items_of.setdefault(identity, []).append(item)
    turns = [
        (identity, [items[entry] for entry in turn])
        for identity, items in items_of.items()
        for turn in _of_different([images[item] for item in items], of_each, random)
    ]
    groups = _of_different([identity for identity, _ in turns], in_batch, random)
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
