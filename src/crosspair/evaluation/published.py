"""The protocols of published numbers: the test splits of Karpathy and Fei-Fei, persons, and species by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crosspair.errors import UserError
from crosspair.evaluation.protocols import RECALLS, Protocol, Task
from crosspair.registry import register_protocol

_KARPATHY = "Karpathy and Fei-Fei, CVPR 2015"
_REED = "Reed et al., CVPR 2016; Zhang and Lu, ECCV 2018"


@dataclass(frozen=True, kw_only=True)
class FixedSplit(Protocol):
    """A test split of a known size, whose images have labels of their own.

    captions: how many of each image's are used, the first ones; None for all. folds: blocks of consecutive images, each
    evaluated on its own.
    """

    num_images: int
    captions: int | None = None
    folds: int = 1

    def check_tasks(self, option: str) -> None:
        if self.folds > 1 and option in ("--shard", "--merge"):
            raise UserError(
                f"protocol {self.name} has {self.folds} folds, small ones; evaluate them at once, without {option}"
            )

    def fits(self, split: str, num_images: int) -> bool:
        return split == "test" and num_images == self.num_images

    def check(self, image_labels: NDArray[np.int64], text_labels: NDArray[np.int64], *, with_ids: bool) -> None:
        if len(image_labels) != self.num_images:
            raise UserError(
                f"protocol {self.name} needs the {self.num_images:,} pictures of its test split, found "
                f"{len(image_labels):,}; choose another split or --protocol plain"
            )
        if len(np.unique(image_labels)) != len(image_labels):
            raise UserError(
                f"protocol {self.name} needs a label of its own for each picture, found some that share theirs; "
                "number the pictures, or choose --protocol plain"
            )
        captions = np.isin(text_labels, image_labels)
        found = np.bincount(np.searchsorted(np.sort(image_labels), text_labels[captions]), minlength=len(image_labels))
        fewest = int(found.argmin())
        if self.captions is not None and found[fewest] < self.captions:
            raise UserError(
                f"protocol {self.name} needs {self.captions} captions of every picture, found {found[fewest]} of "
                f"the one with label {np.sort(image_labels)[fewest]}; complete them or choose --protocol plain"
            )

    def arrange(self, task: Task) -> Sequence[Task]:
        labels, text_labels = task.embeddings.image_labels, task.embeddings.text_labels
        self.check(labels, text_labels, with_ids=False)
        if self.captions is not None:
            kept = np.flatnonzero(_number_within_label(text_labels) < self.captions)
            task = task.part(np.arange(len(labels)), kept)
            text_labels = task.embeddings.text_labels
        blocks = np.array_split(np.arange(len(labels)), self.folds)
        return [task.part(block, np.flatnonzero(np.isin(text_labels, labels[block]))) for block in blocks]


@dataclass(frozen=True)
class LabelMeans(Protocol):
    """A label stands for a species; the mean of the embeddings of all its texts is the only text of that label."""

    text_unit: ClassVar[str] = "label means"

    def arrange(self, task: Task) -> Sequence[Task]:
        means = task.embeddings.averaged_texts()
        return [Task(means)]


def _number_within_label(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of earlier rows with the same label [rows]."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    number = np.empty(len(labels), dtype=np.int64)
    number[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return number


def _of_persons(name: str, reference: str) -> Protocol:
    summary = "all pictures of a text's person are relevant; text to image"
    return Protocol(name, summary, reference, (), (*RECALLS, "mAP", "mINP"), formats=(name,), label_unit="persons")


def _of_species(name: str) -> Protocol:
    summary = "a text query is the mean of its label's sentence embeddings; R@1 of labels, AP@50 of pictures"
    return LabelMeans(name, summary, _REED, ("R@1",), ("AP@50",), formats=(name,), label_unit="classes")


for _protocol in (
    FixedSplit(
        "flickr30k-1k",
        "the 1,000 test pictures with five captions each",
        _KARPATHY,
        formats=("flickr30k",),
        num_images=1000,
        captions=5,
    ),
    FixedSplit(
        "coco-5k",
        "the 5,000 test pictures with their first five captions",
        _KARPATHY,
        formats=("coco",),
        shown_beside=("coco-1k-5fold",),
        num_images=5000,
        captions=5,
    ),
    FixedSplit(
        "coco-1k-5fold",
        "five blocks of 1,000 test pictures in file order with their first five captions, averaged",
        f"{_KARPATHY}; Faghri et al., BMVC 2018",
        num_images=5000,
        captions=5,
        folds=5,
    ),
    _of_persons("cuhk-pedes", "Li et al., CVPR 2017"),
    _of_persons("icfg-pedes", "Ding et al., arXiv:2107.12666"),
    _of_persons("rstpreid", "Zhu et al., ACM MM 2021"),
    _of_species("cub"),
    _of_species("flowers"),
):
    register_protocol(_protocol.name)(_protocol)
