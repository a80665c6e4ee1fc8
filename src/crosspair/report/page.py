"""One self-contained HTML file about a run: its numbers, what it retrieves, where it fails, and its training.

The page needs no network, follows the reader's light or dark scheme, and holds every image once beside the map's
sheet. Only the map runs a script; the page's policy allows that script by its hash and nothing else.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.inputs import EvaluationInputError
from crosspair.evaluation.metrics import RetrievalResult
from crosspair.evaluation.protocols import PLAIN, Evaluation
from crosspair.evaluation.uncertainty import intervals_of
from crosspair.report import examples, figures
from crosspair.report.hubness import Neighbours, count_retrieved, hub_images, hub_texts, nearest
from crosspair.report.inline_images import Sheet, ShownImages, Thumbnail
from crosspair.report.map import draw_map, kept_neighbours, tsne
from crosspair.storage.files import write_text

ON_MAP = 1000  # images; the layout's time and memory grow with their square
QUERIES = 25_000  # of a direction, whose first items are counted
FAILURES = 4  # shown of a kind


def write_report(
    output: Path,
    *,
    title: str,
    facts: dict[str, str],
    embeddings: Embeddings,
    evaluation: Evaluation,
    captions: Sequence[str],
    thumbnail: Thumbnail,
    history: list[dict[str, Any]],
    queries: int = 24,
) -> None:
    """Write the report of one evaluation to `output`, whole or not at all.

    facts: what was evaluated, by name, shown on top; the protocol is added.
    embeddings: of n images and m texts; evaluation: of these by a protocol. captions: the m texts.
    thumbnail: row of an image to its encoded bytes (JPEG, PNG).
    history: rows of metrics.jsonl, of kinds "train" and "val"; may be empty.
    queries: how many examples to show, half of them texts and half images.
    """
    if len(captions) != len(embeddings.texts):
        raise EvaluationInputError(
            f"found {len(captions)} captions; expected one for each of {len(embeddings.texts)} texts"
        )
    page = _Page(embeddings, evaluation, captions, thumbnail)
    parts = [
        page.results(),
        page.similarities(),
        page.map(),
        page.failures(),
        page.hubs(),
        page.examples(queries),
        _training(history),
    ]
    protocol = evaluation.protocol
    shown = [part for part in parts if part]
    links = "".join(f'<a href="#{part.name}">{part.heading}</a>' for part in shown)
    body = [
        figures.facts_list({**facts, "Protocol": f"{protocol.name}: {protocol.summary}"}),
        f'<nav aria-label="Sections">{links}</nav>',
        *(part.html() for part in shown),
        "<footer>Ranks start at 1, and a tie counts against the model.</footer>",
    ]
    source = resources.files("crosspair.report").joinpath("report.html").read_text(encoding="utf-8")
    text = Template(source).substitute(
        title=escape(title), body="\n".join(body), image_styles=page.styles(), script_hash=_script_hash(source)
    )
    write_text(output, text)


@dataclass(frozen=True)
class _Section:
    """A part of the page. name: of its link. explanation, content: HTML."""

    name: str
    heading: str
    explanation: str
    content: str

    def html(self) -> str:
        return (
            f'<section id="{self.name}"><h2>{self.heading}</h2><p class="quiet">{self.explanation}</p>'
            f"{self.content}</section>"
        )


class _Page:
    """The sections, and the images that they show."""

    def __init__(
        self, embeddings: Embeddings, evaluation: Evaluation, captions: Sequence[str], thumbnail: Thumbnail
    ) -> None:
        self.data, self.evaluation, self.captions, self.thumbnail = embeddings, evaluation, captions, thumbnail
        self.result = _of_all(evaluation, embeddings)
        self.names = embeddings.image_names
        self.images, self.texts = (_comparable(each, self.result) for each in (embeddings.images, embeddings.texts))
        self.own_captions = _captions_of_images(embeddings, captions)
        self.shown = ShownImages(thumbnail, self.names, self.own_captions)
        self.sheet: Sheet | None = None
        self.to_texts, self.to_images = (
            self.result.directions[name].ranks.first for name in ("image_to_text", "text_to_image")
        )
        self.text_neighbours = self._nearest(of_texts=True, rows=_sample(len(self.texts), QUERIES))
        self.image_neighbours = self._nearest(of_texts=False, rows=_sample(len(self.images), QUERIES))

    def styles(self) -> str:
        return "\n".join([self.shown.styles(), self.sheet.styles() if self.sheet else ""])

    def results(self) -> _Section:
        intervals = intervals_of(self.evaluation)
        table = figures.results_table(self.evaluation, intervals)
        explanation = (
            "Each sentence looks for its picture among all pictures, each picture for its sentences among all of them. "
            "Recall at K (R@K) is the share of queries with a relevant item among the first K they retrieve."
        )
        content = f'<div class="overview">{table}{figures.recall_curve(self.result)}</div>'
        return _Section("results", "Results", explanation, content)

    def similarities(self) -> _Section:
        ids = self.data.image_labels, self.data.text_labels
        matching, other = figures.sample_similarities(self.images, self.texts, *ids, self.result.metric)
        charts = [
            figures.similarities(matching, other, self.result),
            figures.recall_by_length(self.result.directions["text_to_image"], self.captions),
            figures.recall_by_positives(self.result.directions["image_to_text"]),
        ]
        explanation = (
            "The less the two histograms overlap, the better the model tells matching pairs from others "
            f"({len(matching):,} and {len(other):,} pairs). Longer sentences say more, and are often easier to find."
        )
        content = f'<div class="overview">{"".join(charts)}</div>'
        return _Section("similarities", "Similarities and lengths", explanation, content)

    def map(self) -> _Section | None:
        if len(self.images) < 3:
            return None
        rows = _sample(len(self.images), ON_MAP)
        points, first = self.images[rows], self.to_texts[rows]
        places = tsne(points)
        found = self._nearest(of_texts=False, rows=rows, top=1)
        notes = [
            (
                self.own_captions[row],
                f"first relevant caption at rank {rank:,} of {len(self.texts):,}",
                "" if rank == 1 else self.captions[item],
            )
            for row, rank, item in zip(rows.tolist(), first.tolist(), found.items[:, 0].tolist(), strict=True)
        ]
        self.sheet = Sheet(self.thumbnail, rows)
        drawn = draw_map(places, first, [self.names[row] for row in rows], notes, self.sheet)
        some = (
            f"{len(rows):,} of the {len(self.images):,} pictures, drawn at random"
            if len(rows) < len(self.images)
            else "all pictures"
        )
        explanation = (
            f"Pictures the model takes for alike are near to each other ({some}; t-SNE of their embeddings). Point, "
            "tap or use the arrow keys to see them. Neighbourhoods mean something, distances between far points don't: "
            f"of a picture's ten nearest, {100 * kept_neighbours(points, places):.0f} % are among its ten nearest here."
        )
        return _Section("map", "Map of the pictures", explanation, drawn)

    def failures(self) -> _Section | None:
        metric, data = self.result.metric, self.data
        kinds = {
            "Hardest sentences": (True, examples.hardest_queries(self.to_images, data.text_labels, FAILURES)),
            "Hardest pictures": (False, examples.hardest_queries(self.to_texts, data.image_labels, FAILURES)),
            "Most confident wrong pictures": (
                True,
                examples.confident_mistakes(self.text_neighbours, self.to_images, data.text_labels, metric, FAILURES),
            ),
            "Most confident wrong captions": (
                False,
                examples.confident_mistakes(self.image_neighbours, self.to_texts, data.image_labels, metric, FAILURES),
            ),
        }
        cards = [self._cards([(name, row) for row in rows], of_texts=of) for name, (of, rows) in kinds.items() if rows]
        explanation = (
            "The hardest queries are those whose relevant item ranks last. A confident mistake has an irrelevant item "
            "in first place that is very similar all the same: often it fits too, and only the data doesn't say so. "
            "Different queries and different irrelevant items, not five captions of one picture."
        )
        return _Section("failures", "Where it fails", explanation, "\n".join(cards)) if cards else None

    def hubs(self) -> _Section:
        of_images, of_texts = count_retrieved(self.text_neighbours), count_retrieved(self.image_neighbours)
        charts = figures.hubness_chart(of_images, "pictures", "sentences") + figures.hubness_chart(
            of_texts, "captions", "pictures"
        )
        asked = [
            f"{len(each.queries):,} of the {total:,} {what}"
            for each, total, what in (
                (self.text_neighbours, len(self.texts), "sentences"),
                (self.image_neighbours, len(self.images), "pictures"),
            )
            if len(each.queries) < total
        ]
        sampled = f" Counted over {' and '.join(asked)}, drawn at random." if asked else ""
        explanation = (
            f"Hubs come up among the first {of_images.k} of far more queries than others do and push relevant items "
            "down. A skewness near 0 means that all items come up about equally often; above 1 there are clear hubs. "
            "Below the pictures and captions: how often each is retrieved, and how often it is relevant." + sampled
        )
        content = (
            f'<div class="overview">{charts}</div><div class="overview">{hub_images(of_images, self.shown)}'
            f"{hub_texts(of_texts, self.captions)}</div>"
        )
        return _Section("hubs", "Hubs", explanation, content)

    def examples(self, count: int) -> _Section:
        by_text, by_image = (
            [(f"{what} {group}", row) for group, row in examples.choose_queries(first, number, seed)]
            for what, first, number, seed in (
                ("Sentences", self.to_images, count // 2, 0),
                ("Pictures", self.to_texts, count - count // 2, 1),
            )
        )
        explanation = (
            "What a sentence and a picture retrieve first. Drawn at random, a third from each group where there are "
            f"enough. What matches is marked {examples.RELEVANT}; beside the places is the "
            + ("cosine similarity." if self.result.metric == "cosine" else "distance.")
        )
        content = self._cards(by_text, of_texts=True) + self._cards(by_image, of_texts=False)
        return _Section("examples", "Examples", explanation, content)

    def _cards(self, chosen: list[tuple[str, int]], *, of_texts: bool) -> str:
        sides = [
            (self.images, self.data.image_labels, self.to_texts),
            (self.texts, self.data.text_labels, self.to_images),
        ]
        (queries, labels, first), (gallery, gallery_labels, _) = sides[::-1] if of_texts else sides
        found = examples.retrieve(chosen, first, queries, gallery, labels, gallery_labels, self.result.metric)
        card = (examples.text_card if of_texts else examples.image_card)(self.data, self.captions, self.shown)
        return examples.grouped_cards(found, card)

    def _nearest(self, *, of_texts: bool, rows: NDArray[np.int64], top: int = 10) -> Neighbours:
        sides = [(self.images, self.data.image_labels), (self.texts, self.data.text_labels)]
        (queries, labels), (gallery, gallery_labels) = sides[::-1] if of_texts else sides
        return nearest(queries, gallery, labels, gallery_labels, self.result.metric, rows, top)


def _training(history: list[dict[str, Any]]) -> _Section | None:
    charts = figures.training_charts(history)
    explanation = "Losses on the training split and validations after each epoch, over the steps of both stages."
    return _Section("training", "Training", explanation, f'<div class="overview">{charts}</div>') if charts else None


def _of_all(evaluation: Evaluation, embeddings: Embeddings) -> RetrievalResult:
    """The ranks of every text among all images and of every image among all texts."""
    if evaluation.protocol.ranks_whole_split:
        return evaluation.result
    return PLAIN.evaluate(embeddings, evaluation.result.metric).result


def _comparable(embeddings: NDArray[Any], result: RetrievalResult) -> NDArray[Any]:
    embeddings = embeddings.astype(np.float32) if embeddings.dtype == np.float16 else embeddings
    if result.metric == "euclidean":
        return embeddings
    unit: NDArray[Any] = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return unit


def _sample(count: int, most: int) -> NDArray[np.int64]:
    """All rows, or `most` of them drawn at random, ascending."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _captions_of_images(data: Embeddings, captions: Sequence[str]) -> list[str]:
    """The first caption of each image, or of another image that means the same; for who can't see it."""
    of_label: dict[int, str] = {}
    for label, caption in zip(data.text_labels.tolist(), captions, strict=True):
        of_label.setdefault(label, caption)
    first = [of_label.get(label, "") for label in data.image_labels.tolist()]
    if data.text_images is not None:
        for row, caption in zip(data.text_images[::-1].tolist(), reversed(captions), strict=True):
            first[row] = caption
    return first


def _script_hash(source: str) -> str:
    """The template's script as a source of a content security policy."""
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    assert script, "the template has a script"
    return "sha256-" + base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode("ascii")
