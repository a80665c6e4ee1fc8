"""What the authors of the known data sets count in them, to notice a source that is cut short or another version."""

from collections.abc import Mapping
from dataclasses import dataclass

from crosspair.data.layout import SplitFacts


@dataclass(frozen=True)
class Counts:
    """Published counts of a split; None is not published."""

    images: int | None = None
    captions: int | None = None
    labels: int | None = None


# Sources: Karpathy and Fei-Fei (2015) for Flickr and COCO; Li et al. (2017) and the file itself for CUHK-PEDES; Ding et
# al. (2021) for ICFG-PEDES; Zhu et al. (2021) for RSTPReid; Reed et al. (2016) for CUB and Flowers.
PUBLISHED: dict[str, dict[str, Counts]] = {
    "flickr8k": {
        "train": Counts(6_000, 30_000),
        "val": Counts(1_000, 5_000),
        "test": Counts(1_000, 5_000),
    },
    "flickr30k": {
        "train": Counts(29_000, 145_000),
        "val": Counts(1_014, 5_070),
        "test": Counts(1_000, 5_000),
    },
    "coco": {
        "train": Counts(82_783, 414_113),
        "val": Counts(5_000, 25_010),
        "test": Counts(5_000, 25_010),
        "restval": Counts(30_504, 152_634),
    },
    "cuhk-pedes": {
        "train": Counts(34_054, 68_126, 11_003),
        "val": Counts(3_078, 6_158, 1_000),
        "test": Counts(3_074, 6_156, 1_000),
    },
    "icfg-pedes": {
        "train": Counts(34_674, 34_674, 3_102),
        "test": Counts(19_848, 19_848, 1_000),
    },
    "rstpreid": {
        "train": Counts(18_505, 37_010, 3_701),
        "val": Counts(1_000, 2_000, 200),
        "test": Counts(1_000, 2_000, 200),
    },
    "cub": {
        "train": Counts(labels=100),
        "val": Counts(labels=50),
        "test": Counts(2_933, 29_330, 50),
        "all splits": Counts(11_788, 117_880, 200),
    },
    "flowers": {
        "train": Counts(labels=62),
        "val": Counts(labels=20),
        "test": Counts(1_155, 11_550, 20),
        "all splits": Counts(8_189, 81_890, 102),
    },
}


def differences(name: str, splits: Mapping[str, SplitFacts], merge_restval: bool = False) -> list[str]:
    """What differs from the published counts of a format, a sentence each; none for a format that has none."""
    published = dict(PUBLISHED.get(name, {}))
    if merge_restval:
        published["train"] = _sum([published["train"], published.pop("restval")])
    found = {split: Counts(facts.images, facts.captions, facts.labels) for split, facts in splits.items()}
    if "all splits" in published:
        found["all splits"] = _sum(list(found.values()))
    lines = [_difference(split, found.get(split, Counts(0, 0, 0)), counts) for split, counts in published.items()]
    if published:
        lines += [f"{split} is no published split of {name}" for split in found if split not in published]
    return [line for line in lines if line]


def _sum(counts: list[Counts]) -> Counts:
    def total(values: list[int | None]) -> int | None:
        return None if None in values else sum(value or 0 for value in values)

    return Counts(*(total([getattr(one, name) for one in counts]) for name in ("images", "captions", "labels")))


def _difference(split: str, found: Counts, published: Counts) -> str:
    parts = []
    for name in ("images", "captions", "labels"):
        here, there = getattr(found, name), getattr(published, name)
        if there is not None and here != there:
            parts.append(f"{here:,} {name} ({there:,} published)")
    return f"{split} has {', '.join(parts)}" if parts else ""
