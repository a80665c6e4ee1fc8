"""ECCV Caption and CxC: COCO's 5,000 test images with far more relevant captions than their own five.

Chun et al., "ECCV Caption: Correcting False Negatives by Collecting Machine-and-Human-verified Image-Caption
Associations for MS-COCO" (ECCV 2022). Relevance is not given by labels, but by lists of COCO's ids, which come with
the package eccv_caption; so do those of CrissCrossed Captions (Parekh et al., EACL 2021). The package counts from
ranked lists; here the ranks are counted as everywhere, and ties count against the model.
"""

import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.errors import UserError
from crosspair.evaluation.metrics import MetricDefinition, RetrievalResult, result_of_ranks
from crosspair.evaluation.protocols import PLAIN, Evaluation, Protocol, Rankable, Task, find_protocol
from crosspair.evaluation.ranking import DIRECTIONS, Direction, Metric, PositiveRanks
from crosspair.registry import register_protocol

_CAPTIONS_EACH = 5
_ABSENT = -1
_FILES = (("image_to_text", "image_to_caption"), ("text_to_image", "caption_to_image"))


@dataclass(frozen=True)
class Judgements:
    """The relevant items of one direction.

    queries [q]: rows, ascending. relevant: rows of the gallery for each query, -1 for what isn't in it: two captions in
    ECCV Caption's lists are not among the 25,000, and are never found.
    """

    queries: NDArray[np.int64]
    relevant: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, kw_only=True)
class Judged(Protocol):
    """COCO's test split judged by lists of what people found relevant, with COCO's own recalls beside.

    lists: whose they are, "eccv" or "cxc". other_lists: those whose recalls stand beside, too.
    """

    lists: str
    other_lists: tuple[str, ...] = ()

    def check(self, image_labels: NDArray[np.int64], text_labels: NDArray[np.int64], *, with_ids: bool) -> None:
        data_directory(self.name)
        if not with_ids:
            raise UserError(
                f"protocol {self.name} needs COCO's ids of pictures and captions (image_ids, caption_ids), found none; "
                "prepare coco's DATA again with this crosspair, or add them to the file of embeddings"
            )

    def check_tasks(self, option: str) -> None:
        raise UserError(
            f"protocol {self.name} judges by its own lists; evaluate it without {option}, or take coco-5k for that"
        )

    def arrange(self, task: Task) -> Sequence[Task]:
        self.check_tasks("tasks")
        return []

    def evaluate(
        self,
        embeddings: Rankable,
        metric: Metric = "cosine",
        metric_definition: MetricDefinition = "exact",
        *,
        device: str = "cpu",
        progress: bool = False,
        directions: Sequence[Direction] = DIRECTIONS,
        distractors: bool = False,
    ) -> Evaluation:
        """Raises UserError without the package, and unless COCO's ids of the captions and images are there.

        device and progress make no difference: the scores are computed on the CPU in seconds. Nor does distractors: the
        lists say what is asked for.
        """
        self.check(
            embeddings.image_labels,
            embeddings.text_labels,
            with_ids=embeddings.image_ids is not None and embeddings.caption_ids is not None,
        )
        directory = data_directory(self.name)
        caption_ids = np.load(directory / "coco_test_ids.npy", allow_pickle=False).astype(np.int64)
        image_of_caption = _read(directory / "original_caption_to_image.json")
        image_ids = np.array([image_of_caption[caption][0] for caption in caption_ids[::_CAPTIONS_EACH].tolist()])
        ordered = _in_order(embeddings, image_ids, caption_ids, self.name)
        both = (image_ids, caption_ids)
        main, *others = (
            {direction: _judgements(directory / f"{lists}_{name}.json", direction, both) for direction, name in _FILES}
            for lists in (self.lists, *self.other_lists)
        )
        coco = find_protocol("coco-5k").evaluate(ordered, metric, metric_definition, directions=directions)
        judged = {
            name: _result(ordered, each, directions, metric, metric_definition)
            for name, each in zip(self.other_lists, others, strict=True)
        }
        of_images, of_texts = main["image_to_text"].queries, main["text_to_image"].queries
        labels = {"image_to_text": of_images, "text_to_image": of_texts // _CAPTIONS_EACH}
        return Evaluation(
            self,
            _result(ordered, main, directions, metric, metric_definition, self),
            (),
            {name: each for name, each in labels.items() if name in directions},
            {**coco.beside, "coco-5k": coco.result, **judged},
        )


_METRICS = ("mAP@R", "R-Precision", "R@1")
register_protocol("eccv-caption")(
    Judged(
        "eccv-caption",
        "COCO's 5,000 test pictures with all captions that people found relevant, CxC's and COCO's own beside",
        "Chun et al., ECCV 2022; CxC: Parekh et al., EACL 2021",
        _METRICS,
        _METRICS,
        lists="eccv",
        other_lists=("cxc",),
    )
)
register_protocol("cxc")(
    Judged(
        "cxc",
        "COCO's 5,000 test pictures and 25,000 captions by the judgements of Crisscrossed Captions, COCO's own beside",
        "Parekh et al., EACL 2021",
        lists="cxc",
    )
)


def coco_image_ids(names: Sequence[str]) -> NDArray[np.int64]:
    """The numbers at the end of COCO's file names, as val2014/COCO_val2014_000000391895.jpg; -1 without one."""
    numbers = (re.search(r"(\d{1,18})\.\w+$", name) for name in names)
    return np.array([int(number[1]) if number else _ABSENT for number in numbers], dtype=np.int64)


def data_directory(protocol: str = "eccv-caption") -> Path:
    """The directory of the package's lists; it isn't imported, as that warns of packages it could do with."""
    found = importlib.util.find_spec("eccv_caption")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"protocol {protocol} takes its lists from a package that is missing; pip install eccv-caption")
    return Path(next(iter(found.submodule_search_locations))) / "data"


def _read(path: Path) -> dict[int, list[int]]:
    return {int(key): [int(value) for value in values] for key, values in json.loads(path.read_text()).items()}


def _judgements(path: Path, direction: str, ids: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Judgements:
    queries, gallery = ids if direction == "image_to_text" else ids[::-1]
    lists = _read(path)
    rows = _rows_of(queries, np.array(list(lists)))
    order = np.argsort(rows)
    ends = np.cumsum([len(listed) for listed in lists.values()])
    relevant = np.split(_rows_of(gallery, np.concatenate(list(lists.values()))), ends[:-1])
    return Judgements(rows[order], tuple(relevant[place] for place in order))


def _in_order(
    embeddings: Rankable, image_ids: NDArray[np.int64], caption_ids: NDArray[np.int64], protocol: str
) -> Rankable:
    """The images and captions of these ids, in their order, each image with its own label."""
    assert embeddings.image_ids is not None
    assert embeddings.caption_ids is not None
    images, captions = _rows_of(embeddings.image_ids, image_ids), _rows_of(embeddings.caption_ids, caption_ids)
    for rows, what in ((images, "images"), (captions, "captions")):
        missing = int((rows == _ABSENT).sum())
        if missing:
            raise UserError(
                f"protocol {protocol} needs the {len(rows):,} {what} of COCO's test split by their ids, "
                f"{missing:,} are missing; take the split test of coco, with COCO's own ids"
            )
    labels = np.arange(len(images))
    own = np.repeat(labels, _CAPTIONS_EACH)
    ordered = embeddings.part(images, captions)
    return replace(ordered, image_labels=labels, text_labels=own, text_images=own)


def _rows_of(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each wanted id among the known ones, -1 where there is none; the first of equal ones."""
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known[order], wanted).clip(max=len(known) - 1)
    rows: NDArray[np.int64] = np.where(known[order[places]] == wanted, order[places], _ABSENT)
    return rows


def _result(
    embeddings: Rankable,
    judged: dict[str, Judgements],
    directions: Sequence[Direction],
    metric: Metric,
    definition: MetricDefinition,
    protocol: Protocol = PLAIN,
) -> RetrievalResult:
    images, texts = np.arange(len(embeddings.image_labels)), np.arange(len(embeddings.text_labels))
    ranks: dict[Direction, PositiveRanks] = {}
    if "image_to_text" in directions:
        asked = judged["image_to_text"]
        blocks = embeddings.part(asked.queries, texts).score_blocks(metric, of_texts=False)
        ranks["image_to_text"] = _ranks(blocks, asked, len(texts))
    if "text_to_image" in directions:
        asked = judged["text_to_image"]
        blocks = embeddings.part(images, asked.queries).score_blocks(metric, of_texts=True)
        ranks["text_to_image"] = _ranks(blocks, asked, len(images))
    return result_of_ranks(ranks, embeddings.ranked_by(metric), metric_definition=definition, extra=protocol.metrics)


def _ranks(blocks: Iterable[tuple[slice, NDArray[Any]]], judged: Judgements, gallery_size: int) -> PositiveRanks:
    """Ranks of the listed items; those that are not in the gallery rank behind it all."""
    ranks, optimistic = [], []
    for some, block in blocks:
        for scores, relevant in zip(block, judged.relevant[some], strict=True):
            there = relevant[relevant != _ABSENT]
            counts = (scores >= scores[there][:, None]).sum(1)
            ranks.append(np.sort(np.append(counts, np.full(len(relevant) - len(there), gallery_size + 1))))
            optimistic.append(1 + (scores > scores[there].max()).sum() if len(there) else gallery_size + 1)
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in ranks])])
    return PositiveRanks(np.concatenate(ranks), offsets, gallery_size, judged.queries, np.array(optimistic))
