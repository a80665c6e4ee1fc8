"""Protocols: what exactly is ranked for a number, and which metrics are reported with it.

A protocol turns the images and texts of a split into one or several retrieval tasks, or evaluates them in a way of its
own. `published` registers those of the field, `eccv` the one that judges by lists; docs/evaluation.md describes each.
A user's own is registered in the same way: a `Protocol`, a subclass of it, or a function from the Task of a whole split
to the Task (or the list of Tasks) that is ranked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crosspair.errors import UserError
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.identical import warn_of_identical_rows
from crosspair.evaluation.inputs import count_distractors
from crosspair.evaluation.metrics import MetricDefinition, RetrievalResult, result_of_ranks
from crosspair.evaluation.per_query import check_metric
from crosspair.evaluation.ranking import DIRECTIONS, Direction, Metric, PositiveRanks, count_ranks
from crosspair.evaluation.similarities import Similarities
from crosspair.registry import PROTOCOLS, register_protocol

Rankable = Embeddings | Similarities

RECALLS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Task:
    """Images and texts that are ranked by themselves, by embeddings or a matrix of similarities. Equal labels match.

    image_rows [n], text_rows [m]: where each stands in the split; None where they are all, in its order.
    """

    embeddings: Rankable
    image_rows: NDArray[np.int64] | None = None
    text_rows: NDArray[np.int64] | None = None

    def part(self, images: NDArray[Any], texts: NDArray[Any]) -> "Task":
        """The images and texts of these rows, in the given order."""
        return Task(
            self.embeddings.part(images, texts),
            np.asarray(images) if self.image_rows is None else self.image_rows[images],
            np.asarray(texts) if self.text_rows is None else self.text_rows[texts],
        )


@dataclass(frozen=True)
class Protocol:
    """A protocol of evaluation; this base ranks every image and every text of a split, and equal labels match.

    image_to_text, text_to_image: the reported metrics of each direction; the usual ones are computed all the same.
    formats: data formats whose splits are evaluated by it when no protocol is named.
    shown_beside: names of protocols that the same embeddings are evaluated by, too, to be shown beside.
    label_unit: what a label stands for where several images share one, such as "persons".
    Raises EvaluationInputError for a metric that there is not.
    """

    text_unit: ClassVar[str] = "texts"  # what stands on the texts' side

    name: str
    summary: str = ""
    reference: str = ""
    image_to_text: tuple[str, ...] = RECALLS
    text_to_image: tuple[str, ...] = RECALLS
    formats: tuple[str, ...] = ()
    shown_beside: tuple[str, ...] = ()
    label_unit: str = "labels"

    def __post_init__(self) -> None:
        for _, metric in self.main:
            check_metric(metric)

    @property
    def main(self) -> tuple[tuple[str, str], ...]:
        """The reported metrics, as (direction, name)."""
        return tuple((direction, name) for direction, names in self.metrics.items() for name in names)

    @property
    def metrics(self) -> dict[Direction, tuple[str, ...]]:
        """The reported metrics of each direction."""
        return {"image_to_text": self.image_to_text, "text_to_image": self.text_to_image}

    @property
    def ranks_whole_split(self) -> bool:
        """Whether every image and every text is ranked as it is, in the order of the split."""
        return type(self).arrange is Protocol.arrange and type(self).evaluate is Protocol.evaluate

    def fits(self, split: str, num_images: int) -> bool:
        """Whether it is taken for a split of one of its formats when no protocol is named."""
        return True

    def check(self, image_labels: NDArray[np.int64], text_labels: NDArray[np.int64], *, with_ids: bool) -> None:
        """Raise UserError for a split that doesn't fit; it is called before anything is encoded.

        with_ids: whether the split has COCO's ids.
        """

    def check_tasks(self, option: str) -> None:
        """Raise UserError where nothing can be arranged for `option`, as relevance doesn't follow from labels."""

    def arrange(self, task: Task) -> Sequence[Task]:
        """The tasks that a whole split is ranked in; several are folds. Raises UserError when it doesn't fit."""
        return [task]

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
    ) -> "Evaluation":
        """Evaluate embeddings. Raises UserError when they don't fit or can't be evaluated.

        metric, device, progress, directions, distractors: as `evaluate_retrieval` takes them.
        """
        tasks = arrange(self, embeddings)
        if isinstance(embeddings, Embeddings):
            warn_of_identical_rows(embeddings.images, embeddings.image_labels, "image_embeddings")
            if self.text_unit == Protocol.text_unit:
                warn_of_identical_rows(embeddings.texts, embeddings.text_labels, "text_embeddings")
        ranks = []
        for task in tasks:
            counting = task.embeddings.counting(metric, device=device, directions=directions, distractors=distractors)
            ranks.append(count_ranks(counting, progress=progress))
        found = evaluation_of(self, tasks, ranks, embeddings.ranked_by(metric), metric_definition)
        options: dict[str, Any] = {"device": device, "directions": directions, "distractors": distractors}
        return found.with_beside(embeddings, metric_definition, **options)


@dataclass(frozen=True, kw_only=True)
class FunctionProtocol(Protocol):
    """A protocol that was registered as a function from the Task of a whole split to what is ranked."""

    function: Callable[[Task], Task | Sequence[Task]]

    def arrange(self, task: Task) -> Sequence[Task]:
        found = self.function(task)
        tasks = [found] if isinstance(found, Task) else found
        if not isinstance(tasks, Sequence) or not tasks or not all(isinstance(each, Task) for each in tasks):
            raise UserError(
                f"the protocol {self.name} returns {type(found).__name__}; expected a Task or a list of them, "
                "as task.part(images, texts) gives"
            )
        return tasks


PLAIN = register_protocol("plain")(Protocol("plain", "every image and every text of the split", "equal labels match"))


def find_protocol(name: str) -> Protocol:
    """The registered protocol. Raises UserError with the names there are."""
    thing = PROTOCOLS.get(name)
    if isinstance(thing, Protocol):
        return thing if thing.name == name else replace(thing, name=name)
    summary = PROTOCOLS.entry(name).summary
    if isinstance(thing, type) and issubclass(thing, Protocol):
        return thing(name, summary)
    if callable(thing):
        return FunctionProtocol(name, summary, function=thing)
    raise UserError(
        f"the protocol '{name}' is registered as {type(thing).__name__}; expected a function, or a Protocol "
        "(crosspair.evaluation.protocols)"
    )


def choose_protocol(source_format: str, split: str, num_images: int) -> Protocol:
    """The protocol that a split's numbers are usually reported with, `plain` where there is none.

    source_format: of DATA's crosspair.json.
    """
    for protocol in map(find_protocol, PROTOCOLS.names()):
        if source_format in protocol.formats and protocol.fits(split, num_images):
            return protocol
    return PLAIN


def plugin_facts(protocol: Protocol) -> dict[str, Any]:
    """Facts for a result about the plugin that its protocol comes from, {} for a built-in one."""
    plugin = PROTOCOLS.entry(protocol.name).plugin if protocol.name in PROTOCOLS else None
    return {"protocol_plugin": {"name": plugin.name, "checksum": plugin.checksum}} if plugin else {}


def arrange(protocol: Protocol, embeddings: Rankable) -> Sequence[Task]:
    """The retrieval tasks of a protocol. Raises UserError when the images and texts don't fit it."""
    return protocol.arrange(Task(embeddings))


@dataclass(frozen=True)
class Evaluation:
    """The result of a protocol: metrics over all queries, of each fold where there are several, and the labels.

    The folds are of equal size, so the mean over all queries is the mean of the folds; `median_rank` is the median over
    all queries. query_labels: of the queries of each direction of `result`, in its order; queries of one label are
    found or missed together. beside: the same embeddings by other judgements or another ranking, by name.
    """

    protocol: Protocol
    result: RetrievalResult
    folds: tuple[RetrievalResult, ...]
    query_labels: Mapping[str, NDArray[np.int64]]
    beside: Mapping[str, RetrievalResult] = field(default_factory=dict)

    @property
    def main(self) -> tuple[tuple[str, str], ...]:
        """The metrics that the protocol reports of what was evaluated, its recalls where it reports none."""
        directions = self.result.directions
        reported = tuple((direction, name) for direction, name in self.protocol.main if direction in directions)
        return reported or tuple((direction, name) for direction in directions for name in RECALLS)

    @property
    def cluster_unit(self) -> str:
        """What the queries are drawn by: "pictures" where each has a label of its own, else what labels stand for."""
        of_images = self.query_labels.get("image_to_text")
        if of_images is None:
            alone = bool((self.result.directions["text_to_image"].ranks.positives == 1).all())
        else:
            alone = len(np.unique(of_images)) == len(of_images)
        return "pictures" if alone else self.protocol.label_unit

    def with_beside(self, embeddings: Rankable, metric_definition: MetricDefinition, **options: Any) -> "Evaluation":
        """The same with what the protocol shows beside. options: of `Protocol.evaluate`."""
        beside = {
            name: find_protocol(name).evaluate(embeddings, self.result.metric, metric_definition, **options).result
            for name in self.protocol.shown_beside
        }
        return replace(self, beside={**self.beside, **beside})

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the protocol's name, the metrics as RetrievalResult gives them, those of folds and beside."""
        folds = {"folds": [fold.to_dict() for fold in self.folds]} if self.folds else {}
        beside = {"beside": {name: result.to_dict() for name, result in self.beside.items()}} if self.beside else {}
        return {"protocol": self.protocol.name, **self.result.to_dict(), **folds, **beside}

    def to_table(self) -> str:
        """Lines of text: the metrics, the protocol, and the reported metrics of each fold."""
        protocol = self.protocol
        reference = f" ({protocol.reference})" if protocol.reference else ""
        lines = [self.result.to_table(), f"protocol {protocol.name}: {protocol.summary}{reference}"]
        if self.folds:
            names = "  ".join(f"{name:>6}" for _, name in self.main)
            order = ", then ".join(dict.fromkeys(direction.replace("_", " ") for direction, _ in self.main))
            lines.append(f"{'by fold':8}  {names}  ({order})")
        for number, fold in enumerate(self.folds, 1):
            cells = (f"{fold.directions[direction].value(name):6.1f}" for direction, name in self.main)
            lines.append(f"{number:8}  {'  '.join(cells)}")
        for name, beside in self.beside.items():
            values = ("/".join(f"{each.recall(k):.1f}" for k in each.ks) for each in beside.directions.values())
            order = ", ".join(direction.replace("_", " ") for direction in beside.directions)
            rsum = "" if beside.rsum is None else f", rsum {beside.rsum:.1f}"
            lines.append(f"{name:13}  R@1/5/10 {'  '.join(values)}  ({order}){rsum}")
        return "\n".join(lines)


def evaluation_of(
    protocol: Protocol,
    tasks: Sequence[Task],
    ranks: Sequence[Mapping[Direction, PositiveRanks]],
    metric: Metric = "cosine",
    metric_definition: MetricDefinition = "exact",
) -> Evaluation:
    """The evaluation that the ranks of a protocol's tasks give."""
    results = [
        result_of_ranks(each, metric, metric_definition=metric_definition, extra=protocol.metrics) for each in ranks
    ]
    of_tasks = {
        "image_to_text": [task.embeddings.image_labels for task in tasks],
        "text_to_image": [task.embeddings.text_labels for task in tasks],
    }
    labels = {direction: np.concatenate(each) for direction, each in of_tasks.items()}
    pooled = {
        direction: _pooled([each[direction] for each in ranks], [len(rows) for rows in of_tasks[direction]])
        for direction in ranks[0]
    }
    alone = [count_distractors(task.embeddings.image_labels, task.embeddings.text_labels) for task in tasks]
    images, texts = np.sum(alone, axis=0).tolist()
    return Evaluation(
        protocol,
        result_of_ranks(
            pooled,
            metric,
            metric_definition=metric_definition,
            extra=protocol.metrics,
            distractors=(images, texts),
        ),
        tuple(results) if len(results) > 1 else (),
        {direction: labels[direction][each.queries] for direction, each in pooled.items()},
    )


def _pooled(folds: Sequence[PositiveRanks], rows: Sequence[int]) -> PositiveRanks:
    """The queries of all folds, each ranked within its own. rows: how many rows each fold has on the queries' side."""
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([fold.positives for fold in folds]))])
    before = np.cumsum([0, *rows[:-1]])
    return PositiveRanks(
        np.concatenate([fold.ranks for fold in folds]),
        offsets,
        folds[0].gallery_size,
        np.concatenate([start + fold.queries for start, fold in zip(before, folds, strict=True)]),
        np.concatenate([fold.optimistic for fold in folds]),
    )
