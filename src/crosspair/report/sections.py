"""The sections of a report: what each one shows, in words and figures, of the directions that were evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import Evaluation
from crosspair.evaluation.ranking import Direction
from crosspair.evaluation.uncertainty import intervals_of
from crosspair.report import examples, figures, rivals
from crosspair.report.examples import Model
from crosspair.report.hubness import Hubness, count_retrieved, hub_images, hub_texts
from crosspair.report.inline_images import Sheet, ShownImages, Thumbnail
from crosspair.report.map import draw_map, kept_neighbours, tsne
from crosspair.report.queries import left_out, listed_rows, query_list
from crosspair.report.rivals import FOUND, Rival
from crosspair.report.searches import Search, of_all, sample, searches
from crosspair.report.text import foreign

ON_MAP = 1000  # images; the layout's time and memory grow with their square
QUERIES = 25_000  # of a direction, whose first items are counted
FAILURES = 4  # shown of a kind


@dataclass(frozen=True)
class Section:
    """A part of the page. name: of its link's target. heading, explanation, content, link: HTML.

    link: the text of its link, where the heading is too long for one.
    """

    name: str
    heading: str
    explanation: str
    content: str
    link: str = ""

    def html(self) -> str:
        return (
            f'<section id="{self.name}"><h2>{self.heading}</h2><p class="quiet">{self.explanation}</p>'
            f"{self.content}</section>"
        )


class Sections:
    """The sections, and the images that they show; see `write_report` for what they are made of."""

    def __init__(
        self,
        embeddings: Embeddings,
        evaluation: Evaluation,
        captions: Sequence[str] | None,
        thumbnail: Thumbnail | None,
        name: str,
        rival: Rival | None,
    ) -> None:
        self.data, self.evaluation, self.thumbnail, self.rival = embeddings, evaluation, thumbnail, rival
        self.written = captions is not None
        self.captions = list(embeddings.text_names) if captions is None else captions
        self.result = of_all(evaluation, embeddings)
        self.searches = searches(self.result, embeddings)
        self.model = Model(name, {each: search.ranks for each, search in self.searches.items()}, self.searches)
        rows: dict[Direction, int] = {each: len(search.queries) for each, search in self.searches.items()}
        self.models = [self.model, *([rival.model(rows)] if rival else [])]
        self.names = embeddings.image_names
        self.ids = _ids(embeddings)
        self.own_captions = _captions_of_images(embeddings, self.captions)
        self.shown = ShownImages(thumbnail, self.names, self.ids, self.own_captions if self.written else self.names)
        self.on_map = sample(len(embeddings.images), ON_MAP)
        self.sheet = Sheet(thumbnail, self.on_map) if thumbnail else None
        self.neighbours = {
            each: search.nearest(search.rows[sample(len(search.rows), QUERIES)])
            for each, search in self.searches.items()
        }

    def all(self, queries: int, history: Sequence[dict[str, Any]], origin: Mapping[str, str]) -> list[Section | None]:
        """All of them in order, None for one that has nothing to show. queries: how many examples there are."""
        return [
            self.results(),
            *(self.only_found(finder) for finder in (0, 1)),
            self.similarities(),
            self.map(),
            self.failures(),
            self.hubs(),
            self.examples(queries),
            self.queries(),
            training(history),
            origin_section(origin),
        ]

    def styles(self) -> str:
        """The style sheet of the images."""
        return "\n".join([self.shown.styles(), self.sheet.styles() if self.sheet else ""])

    def results(self) -> Section:
        table = figures.results_table(self.evaluation, intervals_of(self.evaluation))
        explanations = {
            "text_to_image": "Each sentence looks for its picture among all pictures.",
            "image_to_text": "Each picture looks for its sentences among all of them.",
        }
        explanation = (
            " ".join(explanations[name] for name in self.searches)
            + " Recall at K (R@K) is the share of queries with a relevant item among the first K they retrieve."
            + _distractors(self.searches)
        )
        content = f'<div class="overview">{table}{figures.recall_curve(self.result)}</div>'
        if self.rival:
            ours, theirs = self.models
            tables = [
                rivals.comparison_table(self.rival.comparison, (ours.name, theirs.name)),
                rivals.agreement_table((ours, theirs)),
            ]
            content += f'<div class="overview tables">{"".join(tables)}</div>'
        return Section("results", "Results", explanation, content)

    def only_found(self, finder: int) -> Section | None:
        """Queries that the first (0) or the second (1) model finds and the other one does not."""
        if not self.rival:
            return None
        one, other = self.models[finder], self.models[1 - finder]
        cards, counted = [], []
        for name, search in self.searches.items():
            if name in other.ranks and name in one.ranks:
                rows, count = rivals.only_found_by(one, other, name, search.query_labels, FAILURES)
                counted.append(f"{count:,} {search.query_word}{'s' if count != 1 else ''}")
                group = f"{search.query_word}s".capitalize()
                cards.append(self._cards([(group, row) for row in rows], name))
        if not any(cards):
            return None
        names = foreign(one.name), foreign(other.name)
        explanation = (
            f"{' and '.join(counted)} have a relevant item among the first {FOUND} of {names[0]} and not among "
            f"those of {names[1]}. Shown are the clearest, of different labels; the list of queries below has them all."
        )
        heading = f"Where {names[0]} finds and {names[1]} does not"
        place = "first" if finder == 0 else "second"
        return Section(f"only-{place}", heading, explanation, "\n".join(cards), f"Only {names[0]}")

    def similarities(self) -> Section:
        data, any_search = self.data, next(iter(self.searches.values()))
        images, texts = (
            (any_search.gallery, any_search.queries)
            if any_search.of_texts
            else (any_search.queries, any_search.gallery)
        )
        matching, other = figures.sample_similarities(
            images, texts, data.image_labels, data.text_labels, self.result.metric
        )
        charts = [figures.similarities(matching, other, self.result)]
        if "text_to_image" in self.searches and self.written:
            charts.append(figures.recall_by_length(self.result.directions["text_to_image"], self.captions))
        if "image_to_text" in self.searches:
            charts.append(figures.recall_by_positives(self.result.directions["image_to_text"]))
        lengths = " Longer sentences say more, and are often easier to find." if self.written else ""
        explanation = (
            "The less the two histograms overlap, the better the model tells matching pairs from others "
            f"({len(matching):,} and {len(other):,} pairs).{lengths}"
        )
        content = f'<div class="overview">{"".join(charts)}</div>'
        return Section("similarities", "Similarities and lengths", explanation, content)

    def map(self) -> Section | None:
        if len(self.data.images) < 3:
            return None
        rows, search = self.on_map, self.searches.get("image_to_text")
        points = self.searches["text_to_image"].gallery[rows] if search is None else search.queries[rows]
        places = tsne(points)
        first = np.zeros(len(rows), dtype=np.int64) if search is None else search.ranks[rows]
        found = None if search is None else search.nearest(rows, top=1).items[:, 0]
        notes = []
        for place, row in enumerate(rows.tolist()):
            rank = int(first[place])
            asked = found is not None and rank > 0
            notes.append(
                (
                    self.own_captions[row] if self.written else "",
                    f"first relevant caption at rank {rank:,} of {len(self.captions):,}" if asked else "",
                    self.captions[found[place]] if found is not None and rank > 1 else "",
                    self.ids[row],
                )
            )
        drawn = draw_map(places, first, [self.names[row] for row in rows], notes, self.sheet)
        some = (
            f"{len(rows):,} of the {len(self.data.images):,} pictures, drawn at random"
            if len(rows) < len(self.data.images)
            else "all pictures"
        )
        explanation = (
            f"Pictures the model takes for alike are near to each other ({some}; t-SNE of their embeddings). Point, "
            "tap or use the arrow keys to see them. Neighbourhoods mean something, distances between far points don't: "
            f"of a picture's ten nearest, {100 * kept_neighbours(points, places):.0f} % are among its ten nearest here."
        )
        return Section("map", "Map of the pictures", explanation, drawn)

    def failures(self) -> Section | None:
        kinds: dict[str, tuple[Direction, list[int]]] = {}
        for name, search in self.searches.items():
            hardest = examples.hardest_queries(search.first, search.query_labels[search.rows], FAILURES)
            kinds[f"Hardest {search.query_word}s"] = name, [int(search.rows[number]) for number in hardest]
        for name, search in self.searches.items():
            mistakes = examples.confident_mistakes(
                self.neighbours[name], search.ranks, search.query_labels, search.metric, FAILURES
            )
            kinds[f"Most confident wrong {search.item_word}s"] = name, mistakes
        cards = [self._cards([(kind, row) for row in rows], name) for kind, (name, rows) in kinds.items() if rows]
        explanation = (
            "The hardest queries are those whose relevant item ranks last. A confident mistake has an irrelevant item "
            "in first place that is very similar all the same: often it fits too, and only the data doesn't say so. "
            "Different queries and different irrelevant items, not five captions of one picture."
        )
        return Section("failures", "Where it fails", explanation, "\n".join(cards)) if cards else None

    def hubs(self) -> Section:
        counts: dict[Direction, Hubness] = {name: count_retrieved(each) for name, each in self.neighbours.items()}
        charts: list[str] = []
        lists: list[str] = []
        asked: list[str] = []
        for name, search in self.searches.items():
            charts.append(figures.hubness_chart(counts[name], f"{search.item_word}s", f"{search.query_word}s"))
            lists.append(
                hub_images(counts[name], self.shown) if search.of_texts else hub_texts(counts[name], self.captions)
            )
            asked += left_out(len(self.neighbours[name].queries), len(search.rows), f"{search.query_word}s")
        sampled = f" Counted over {' and '.join(asked)}, drawn at random." if asked else ""
        explanation = (
            f"Hubs come up among the first {next(iter(counts.values())).k} of far more queries than others do and push "
            "relevant items down. A skewness near 0 means that all come up about equally often; above 1 there are "
            "clear hubs. Below each one: how often it is retrieved, and how often it is relevant." + sampled
        )
        content = f'<div class="overview">{"".join(charts)}</div><div class="overview">{"".join(lists)}</div>'
        return Section("hubs", "Hubs", explanation, content)

    def examples(self, count: int) -> Section:
        shares = [count // 2, count - count // 2] if len(self.searches) > 1 else [count]
        cards = []
        for seed, ((name, search), share) in enumerate(zip(self.searches.items(), shares, strict=True)):
            chosen = examples.choose_queries(search.first, share, seed)
            what = f"{search.query_word}s".capitalize()
            cards.append(self._cards([(f"{what} {group}", int(search.rows[number])) for group, number in chosen], name))
        both = f" Grouped by the ranks of {foreign(self.model.name)}." if self.rival else ""
        explanation = (
            "What a query retrieves first. Drawn at random, a third from each group where there are enough. What "
            f"matches is marked {examples.RELEVANT}; beside the places is the "
            + ("cosine similarity." if self.result.metric == "cosine" else "distance.")
            + both
        )
        return Section("examples", "Examples", explanation, "\n".join(cards))

    def queries(self) -> Section:
        rows = listed_rows(self.data, self.on_map)
        listed = query_list(self.models, self.data, self.captions, self.ids, self.sheet, rows)
        some: list[str] = []
        for name, search in self.searches.items():
            some += left_out(int((search.ranks[rows[name]] > 0).sum()), len(search.rows), f"{search.query_word}s")
        left = (
            f" Listed are {' and '.join(some)}, drawn at random; the others are left out for the file's size."
            if some
            else ""
        )
        explanation = (
            "Search them by the words of captions and file names, by rank and by label. A rank is that of the first "
            f"relevant item.{left}"
        )
        return Section("queries", "All queries" if not some else "Queries", explanation, listed)

    def _cards(self, chosen: list[tuple[str, int]], direction: Direction) -> str:
        models = [model for model in self.models if direction in model.ranks]
        return examples.cards(chosen, models, direction, self.captions, self.shown)


def training(history: Sequence[dict[str, Any]]) -> Section | None:
    """Losses and validations over the steps; None without any."""
    charts = figures.training_charts(list(history))
    explanation = "Losses on the training split and validations after each epoch, over the steps of both stages."
    return Section("training", "Training", explanation, f'<div class="overview">{charts}</div>') if charts else None


def origin_section(origin: Mapping[str, str]) -> Section | None:
    """Where the numbers come from; None where nothing is known."""
    explanation = "What it takes to make these numbers again: model, data, settings and commands, with their checksums."
    return Section("origin", "Where it comes from", explanation, figures.origin_table(origin)) if origin else None


def _distractors(found: Mapping[Direction, Search]) -> str:
    """A sentence about rows that are in a gallery and no query."""
    silent = []
    for search in found.values():
        count = len(search.queries) - len(search.rows)
        if count:
            verb = "match nothing" if count > 1 else "matches nothing"
            silent.append(f"{count:,} {search.query_word}{'s' if count > 1 else ''} {verb}")
    return f" {' and '.join(silent)}: in the gallery alone." if silent else ""


def _ids(data: Embeddings) -> list[str]:
    """What tells an image apart where names are alike: COCO's id, or its row."""
    if data.image_ids is not None:
        return [f"id {number}" for number in data.image_ids.tolist()]
    return [f"row {row}" for row in range(len(data.images))]


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
