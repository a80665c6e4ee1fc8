"""What exactly is ranked for a published number: the protocols of the field by name.

A protocol turns the pictures and texts of a split into one or several retrieval tasks, and says which metrics papers
report. docs/evaluation.md describes each in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.errors import UserError
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.metrics import DirectionResult, MetricDefinition, RetrievalResult
from crosspair.evaluation.ranking import Metric, PositiveRanks, rank_positives

_RECALLS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Protocol:
    """How a split is evaluated.

    image_to_text, text_to_image: the metrics that papers report, by direction; others are computed all the same.
    extra: further metrics of every result. formats: source formats of DATA that it is chosen for.
    images: how many the test split must have. captions: how many of each picture's are used, the first ones.
    folds: blocks of consecutive pictures, each evaluated on its own. by_class: a text is the mean of its class's.
    listed: what is right are lists of COCO's ids, not equal labels; see `eccv`.
    """

    name: str
    summary: str
    reference: str
    image_to_text: tuple[str, ...] = _RECALLS
    text_to_image: tuple[str, ...] = _RECALLS
    extra: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    num_images: int | None = None
    captions: int | None = None
    folds: int = 1
    by_class: bool = False
    listed: bool = False

    @property
    def main(self) -> tuple[tuple[str, str], ...]:
        """The metrics that papers report, as (direction, name)."""
        directions = {"image_to_text": self.image_to_text, "text_to_image": self.text_to_image}
        return tuple((direction, name) for direction, names in directions.items() for name in names)


_KARPATHY = "Karpathy and Fei-Fei, CVPR 2015"
_LABELS = "all pictures of a text's person are right; text to image"
_CLASSES = "a text query is the mean of its class's sentence embeddings; R@1 of classes, AP@50 of pictures"
_ECCV = ("mAP@R", "R-Precision", "R@1")
_REED = "Reed et al., CVPR 2016; Zhang and Lu, ECCV 2018"


def _of_persons(name: str, reference: str) -> Protocol:
    metrics = (*_RECALLS, "mAP", "mINP")
    return Protocol(name, _LABELS, reference, (), metrics, extra=("mINP",), formats=(name,))


def _of_classes(name: str) -> Protocol:
    return Protocol(name, _CLASSES, _REED, ("R@1",), ("AP@50",), extra=("AP@50",), formats=(name,), by_class=True)


PLAIN = Protocol("plain", "every picture and every text of the split", "equal labels match")
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        PLAIN,
        Protocol(
            "flickr30k-1k",
            "the 1,000 test pictures with five captions each",
            _KARPATHY,
            formats=("flickr30k",),
            num_images=1000,
            captions=5,
        ),
        Protocol(
            "coco-5k",
            "the 5,000 test pictures with their first five captions",
            _KARPATHY,
            formats=("coco",),
            num_images=5000,
            captions=5,
        ),
        Protocol(
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
        _of_classes("cub"),
        _of_classes("flowers"),
        Protocol(
            "eccv-caption",
            "COCO's 5,000 test pictures with the right answers that people found, CxC's and COCO's own beside",
            "Chun et al., ECCV 2022; CxC: Parekh et al., EACL 2021",
            _ECCV,
            _ECCV,
            extra=("mAP@R", "R-Precision"),
            listed=True,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """Raises UserError with the names there are."""
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol '{name}'; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def choose_protocol(source_format: str, split: str, num_images: int) -> Protocol:
    """The protocol that a split's numbers are usually reported with, `plain` where there is none.

    source_format: of DATA's crosspair.json. A protocol of a fixed number of pictures is that of a test split of so
    many.
    """
    for protocol in PROTOCOLS.values():
        fits = protocol.num_images is None or (split == "test" and num_images == protocol.num_images)
        if source_format in protocol.formats and fits:
            return protocol
    return PLAIN


def check_fits(protocol: Protocol, image_labels: NDArray[np.int64], text_labels: NDArray[np.int64]) -> None:
    """Raise UserError unless the pictures and texts are as many as the protocol needs."""
    if protocol.num_images is None:
        return
    if len(image_labels) != protocol.num_images:
        raise UserError(
            f"protocol {protocol.name} needs the {protocol.num_images:,} pictures of its test split, found "
            f"{len(image_labels):,}; choose another split or --protocol plain"
        )
    if len(np.unique(image_labels)) != len(image_labels):
        raise UserError(
            f"protocol {protocol.name} needs a label of its own for each picture, found some that share theirs; "
            "number the pictures, or choose --protocol plain"
        )
    captions = np.isin(text_labels, image_labels)
    found = np.bincount(np.searchsorted(np.sort(image_labels), text_labels[captions]), minlength=len(image_labels))
    fewest = int(found.argmin())
    if protocol.captions is not None and found[fewest] < protocol.captions:
        raise UserError(
            f"protocol {protocol.name} needs {protocol.captions} captions of every picture, found {found[fewest]} of "
            f"the one with label {np.sort(image_labels)[fewest]}; complete them or choose --protocol plain"
        )


@dataclass(frozen=True)
class Task:
    """One gallery for each direction, and for each query the cluster that it is drawn with in a resampling.

    image_clusters [n], text_clusters [m]: the picture a query belongs to, or its label where that is unknown.
    """

    embeddings: Embeddings
    image_clusters: NDArray[np.int64]
    text_clusters: NDArray[np.int64]

    def part(self, images: NDArray[Any], texts: NDArray[Any]) -> "Task":
        """The pictures and texts of these rows."""
        return Task(self.embeddings.part(images, texts), self.image_clusters[images], self.text_clusters[texts])


def arrange(protocol: Protocol, embeddings: Embeddings) -> list[Task]:
    """The retrieval tasks of a protocol. Raises UserError when the pictures and texts don't fit it."""
    if protocol.listed:
        raise UserError(
            f"protocol {protocol.name} has no single task that could be exported or divided; take coco-5k for that"
        )
    if protocol.by_class:
        classes = embeddings.averaged_texts()
        return [Task(classes, classes.image_labels, classes.text_labels)]
    if embeddings.text_images is None:
        task = Task(embeddings, embeddings.image_labels, embeddings.text_labels)
    else:
        task = Task(embeddings, np.arange(len(embeddings.images)), embeddings.text_images)
    if protocol.num_images is None:
        return [task]
    check_fits(protocol, embeddings.image_labels, embeddings.text_labels)
    if protocol.captions is not None:
        kept = np.flatnonzero(_number_of_its_label(embeddings.text_labels) < protocol.captions)
        task = task.part(np.arange(len(embeddings.images)), kept)
    labels, text_labels = task.embeddings.image_labels, task.embeddings.text_labels
    blocks = np.array_split(np.arange(len(labels)), protocol.folds)
    return [task.part(block, np.flatnonzero(np.isin(text_labels, labels[block]))) for block in blocks]


@dataclass(frozen=True)
class Evaluation:
    """What a protocol gives: metrics over all queries, of each fold where there are several, and the clusters.

    The folds are of equal size, so the mean over all queries is the mean of the folds; `median_rank` is the median over
    all queries. image_clusters, text_clusters: of the queries of `result`, in its order. beside: the same embeddings
    by other judgements or another ranking, by name.
    """

    protocol: Protocol
    result: RetrievalResult
    folds: tuple[RetrievalResult, ...]
    image_clusters: NDArray[np.int64]
    text_clusters: NDArray[np.int64]
    beside: Mapping[str, RetrievalResult] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the protocol's name, the metrics as RetrievalResult gives them, those of folds and beside."""
        folds = {"folds": [fold.to_dict() for fold in self.folds]} if self.folds else {}
        beside = {"beside": {name: result.to_dict() for name, result in self.beside.items()}} if self.beside else {}
        return {"protocol": self.protocol.name, **self.result.to_dict(), **folds, **beside}

    def to_table(self) -> str:
        """Lines of text: the metrics, the protocol, and the reported metrics of each fold."""
        protocol = self.protocol
        lines = [self.result.to_table(), f"protocol {protocol.name}: {protocol.summary} ({protocol.reference})"]
        if self.folds:
            names = "  ".join(f"{name:>6}" for _, name in protocol.main)
            lines.append(f"{'by fold':8}  {names}  (image to text, then text to image)")
        for number, fold in enumerate(self.folds, 1):
            cells = (f"{getattr(fold, direction).value(name):6.1f}" for direction, name in protocol.main)
            lines.append(f"{number:8}  {'  '.join(cells)}")
        for name, beside in self.beside.items():
            directions = (beside.image_to_text, beside.text_to_image)
            values = ("/".join(f"{each.recall(k):.1f}" for k in each.ks) for each in directions)
            lines.append(f"{name:13}  R@1/5/10 {'  '.join(values)}  (image to text, text to image)")
        return "\n".join(lines)


def evaluate_protocol(
    protocol: Protocol,
    embeddings: Embeddings,
    metric: Metric = "cosine",
    metric_definition: MetricDefinition = "exact",
    *,
    device: str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Evaluate embeddings by a protocol. Raises UserError when they don't fit it or can't be evaluated.

    device, progress: as `rank_positives` takes them.
    """
    if protocol.listed:
        from crosspair.evaluation.eccv import evaluate_eccv

        return evaluate_eccv(protocol, embeddings, metric, metric_definition)
    tasks = arrange(protocol, embeddings)
    ranks = [
        rank_positives(
            task.embeddings.images,
            task.embeddings.texts,
            task.embeddings.image_labels,
            task.embeddings.text_labels,
            metric,
            device=device,
            progress=progress,
        )
        for task in tasks
    ]
    return evaluation_of(protocol, tasks, ranks, metric, metric_definition)


def evaluation_of(
    protocol: Protocol,
    tasks: Sequence[Task],
    ranks: Sequence[tuple[PositiveRanks, PositiveRanks]],
    metric: Metric = "cosine",
    metric_definition: MetricDefinition = "exact",
) -> Evaluation:
    """What the ranks of a protocol's tasks amount to."""
    results = [
        RetrievalResult(
            DirectionResult(image_to_text, metric_definition=metric_definition, extra=protocol.extra),
            DirectionResult(text_to_image, metric_definition=metric_definition, extra=protocol.extra),
            metric,
        )
        for image_to_text, text_to_image in ranks
    ]
    pooled = RetrievalResult(
        _pooled([result.image_to_text for result in results]),
        _pooled([result.text_to_image for result in results]),
        metric,
    )
    return Evaluation(
        protocol,
        pooled,
        tuple(results) if len(results) > 1 else (),
        np.concatenate([task.image_clusters for task in tasks]),
        np.concatenate([task.text_clusters for task in tasks]),
    )


def _pooled(folds: Sequence[DirectionResult]) -> DirectionResult:
    """The queries of all folds, each ranked within its own."""
    one, ranks = folds[0], [fold.ranks for fold in folds]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([each.positives for each in ranks]))])
    pooled = PositiveRanks(np.concatenate([each.ranks for each in ranks]), offsets, ranks[0].gallery_size)
    return DirectionResult(pooled, one.ks, one.metric_definition, one.extra)


def _number_of_its_label(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows before each have the same label [rows]."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    number = np.empty(len(labels), dtype=np.int64)
    number[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return number
