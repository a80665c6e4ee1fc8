"""The figures and tables of a report, from what an evaluation and a training run have recorded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.clusters import RSUM
from crosspair.evaluation.metrics import DirectionResult, RetrievalResult
from crosspair.evaluation.protocols import Evaluation
from crosspair.evaluation.ranking import Metric
from crosspair.evaluation.uncertainty import LEVEL, Intervals
from crosspair.registry import LOSSES
from crosspair.report.charts import Estimate, Series, count_chart, group_chart, histogram, line_chart
from crosspair.report.hubness import Hubness
from crosspair.report.text import foreign, isolated

_CURVE_POINTS = 60
_PAIRS = {"matching": "positive", "other": "negative"}
_DIRECTIONS = {"image_to_text": "Image to text", "text_to_image": "Text to image"}
_Z = 1.959964  # of a 95 per cent interval

Bounds = tuple[float, float]


def facts_list(facts: Mapping[str, str]) -> str:
    """Names and values."""
    rows = "".join(f"<div><dt>{foreign(name)}</dt><dd>{foreign(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>' if facts else ""


def origin_table(origin: Mapping[str, str]) -> str:
    """Where a report comes from, a line each; several lines of a value stay apart."""
    rows = "".join(
        f'<tr><th scope="row">{foreign(name)}</th><td>{"<br>".join(map(foreign, value.splitlines() or [""]))}</td></tr>'
        for name, value in origin.items()
    )
    return f'<div class="card"><table class="origin"><tbody>{rows}</tbody></table></div>'


def results_table(evaluation: Evaluation, intervals: Intervals) -> str:
    """The metrics of the directions that were evaluated, with intervals and the protocol's name."""
    result, protocol = evaluation.result, evaluation.protocol
    directions = result.directions
    heads = "".join(f'<th scope="col">{_DIRECTIONS[name]}</th>' for name in directions)
    rows = "".join(
        f'<tr><th scope="row">{foreign(name.replace("_", " "))}</th>'
        + "".join(_cell(name, each, intervals.bounds.get((where, name))) for where, each in directions.items())
        + "</tr>"
        for name in dict.fromkeys(name for each in directions.values() for name in each.names)
    )
    total = (
        f'<tfoot><tr><th scope="row">Sum of recalls</th><td colspan="2">{result.rsum:.1f}'
        f"{_bracket(intervals.bounds[RSUM])}</td></tr></tfoot>"
        if result.rsum is not None
        else ""
    )
    folds = f" in each of {len(evaluation.folds)} folds" if evaluation.folds else ""
    reference = f" ({protocol.reference})" if protocol.reference else ""
    note = (
        f"Protocol {isolated(protocol.name + reference)}. All in per cent but the ranks, which are of the first "
        f"relevant item among {_sizes(evaluation)}{folds}. In brackets {LEVEL} % intervals: how "
        f"far a number could move with another draw of the {intervals.clusters:,} {intervals.unit}."
    )
    return (
        '<div class="card"><table><caption>Retrieval</caption><thead><tr><th scope="col"><span class="hidden">'
        f"Metric</span></th>{heads}</tr></thead><tbody>{rows}</tbody>{total}</table>"
        f'<p class="quiet small">{foreign(note)}</p></div>'
    )


def _sizes(evaluation: Evaluation) -> str:
    """The galleries, and the queries where they are fewer than the items of their side."""
    units = {"image_to_text": evaluation.protocol.text_unit, "text_to_image": "pictures"}
    directions = evaluation.result.directions
    sizes = [f"{each.ranks.gallery_size:,} {units[name]}" for name, each in directions.items()]
    return " and ".join(sizes)


def recall_curve(result: RetrievalResult) -> str:
    """Recall@K over all K."""
    series, notes = [], []
    queries = {"image_to_text": "the pictures", "text_to_image": "the sentences"}
    for name, direction in result.directions.items():
        size = direction.ranks.gallery_size
        ks = np.unique(np.geomspace(1, size, _CURVE_POINTS).round().astype(int)) if size > 1 else np.array([1])
        series.append(Series(name.replace("_", " "), ks.tolist(), [direction.recall(int(k)) for k in ks]))
        half, most = np.percentile(direction.ranks.first, (50, 90), method="higher")
        notes.append(f"half of {queries[name]} within {half:,.0f}, nine of ten within {most:,.0f}")
    note = f"How far one has to look for a relevant item: {'; '.join(notes)}."
    x_label = "K: items looked at (logarithmic)"
    return line_chart("Recall at every K", series, x_label, "recall in %", log_x=True, from_zero=True, note=note)


def similarities(matching: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]], result: RetrievalResult) -> str:
    """Histograms of the similarities of matching and of other pairs."""
    samples = {"matching pairs": matching, "other pairs": other}
    name, closer = ("cosine similarity", 1) if result.metric == "cosine" else ("euclidean distance", -1)
    note = ""
    if len(matching) and len(other):
        below = np.searchsorted(np.sort(closer * other), closer * matching, side="left")
        note = f"A matching pair is closer than another pair {100 * below.mean() / len(other):.1f} % of the time."
    return histogram("Similarities", {key: value for key, value in samples.items() if len(value)}, name, note=note)


def recall_by_length(direction: DirectionResult, captions: Sequence[str]) -> str:
    """Recall of sentences by their number of words; empty when all are of about one length. captions: of all rows."""
    words = np.array([len(captions[row].split()) for row in direction.ranks.queries])
    note = "Text to image; bars are 95 % intervals that take sentences for independent (Wilson)."
    return _recall_by("By length of the sentence", words, direction, "words", note)


def recall_by_positives(direction: DirectionResult) -> str:
    """Recall of images by their number of relevant captions; empty when all have as many."""
    note = "Image to text; bars are 95 % intervals that take pictures for independent (Wilson)."
    return _recall_by("By captions of the picture", direction.ranks.positives, direction, "relevant captions", note)


def _recall_by(title: str, values: NDArray[np.int64], direction: DirectionResult, x_label: str, note: str) -> str:
    groups = recall_by(values, direction.ranks.first, direction.ks)
    if len(groups) < 2:
        return ""
    series = {f"R@{k}": [group.recalls[k] for group in groups] for k in direction.ks}
    names, sizes = [group.name for group in groups], [group.queries for group in groups]
    return group_chart(title, names, sizes, series, x_label, "recall in %", note=note)


def hubness_chart(hubness: Hubness, items: str, queries: str) -> str:
    """A chart of how many items are retrieved how often; items and queries in words: "images" and "sentences"."""
    note = (
        f"Skewness {hubness.skewness:.2f}. The most retrieved 5 % of the {items} take "
        f"{100 * hubness.share_of_most_retrieved():.0f} % of the places; {100 * hubness.never:.1f} % of the {items} "
        f"are in no {queries[:-1]}'s first {hubness.k}."
    )
    x_label = f"{queries} that have it among their first {hubness.k}"
    return count_chart(f"How often {items} are retrieved", hubness.counts, x_label, items, note=note)


def training_charts(history: list[dict[str, Any]]) -> str:
    """Losses and validations over the steps; empty without any."""
    train = [row for row in history if row.get("kind") == "train"]
    val = [row for row in history if row.get("kind") == "val"]
    weights = {kind: [row for row in val if row.get("weights") == kind] for kind in ("ema", "raw")}
    followed = weights["ema"] or weights["raw"]
    losses = {"loss": "total", **{name: name for name in LOSSES.names()}}
    recalls = (("image to text", "image_to_text"), ("text to image", "text_to_image"))
    charts = [
        line_chart("Training loss", [_series(name, train, key) for key, name in losses.items()], "step", "nats"),
        line_chart(
            "Sum of recalls on val, by weights",
            [_series(kind, rows, "rsum", marks=True) for kind, rows in weights.items()],
            "step",
            "rsum",
        ),
        line_chart(
            "Recall@1 on val",
            [_series(name, followed, key, "R@1", marks=True) for name, key in recalls],
            "step",
            "%",
        ),
        line_chart(
            "Cosine distance in training",
            [_series(f"{kind} pairs", train, f"{key}_distance") for kind, key in _PAIRS.items()],
            "step",
            "distance",
        ),
    ]
    return "".join(charts)


@dataclass(frozen=True)
class Group:
    """Queries of a kind. recalls: per cent of them with a relevant item among the first K, by K."""

    name: str
    queries: int
    recalls: dict[int, Estimate]


def recall_by(values: NDArray[np.int64], first: NDArray[np.int64], ks: Sequence[int], groups: int = 6) -> list[Group]:
    """Recall@K of queries grouped by a whole number, at most `groups` groups of about equal size.

    values [queries]: what to group by; equal values stay together. first [queries]: rank of the first relevant item.
    """
    found = []
    for low, high in _ranges(values, groups):
        ranks = first[(values >= low) & (values <= high)]
        recalls = {k: wilson(int((ranks <= k).sum()), len(ranks)) for k in ks}
        found.append(Group(f"{low}" if low == high else f"{low}\u2013{high}", len(ranks), recalls))
    return found


def wilson(successes: int, trials: int) -> Estimate:
    """A share in per cent with Wilson's score interval of 95 per cent (JASA 1927), for independent trials."""
    share = successes / trials
    shrink = 1 + _Z**2 / trials
    centre = (share + _Z**2 / (2 * trials)) / shrink
    half = _Z / shrink * np.sqrt(share * (1 - share) / trials + (_Z / (2 * trials)) ** 2)
    return Estimate(100 * share, 100 * max(0.0, float(centre - half)), 100 * min(1.0, float(centre + half)))


def sample_similarities(
    images: NDArray[Any],
    texts: NDArray[Any],
    image_labels: NDArray[np.int64],
    text_labels: NDArray[np.int64],
    metric: Metric,
    most: int = 20_000,
    seed: int = 0,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Scores of matching and of other pairs, up to `most` of each, drawn at random where there are more.

    images [n, d], texts [m, d]: unit rows for "cosine". The second is empty when everything matches.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(text_labels, kind="stable")
    start = np.searchsorted(text_labels[order], image_labels, side="left")
    count = np.searchsorted(text_labels[order], image_labels, side="right") - start
    end = np.cumsum(count)
    pair = np.arange(end[-1]) if end[-1] <= most else random.choice(end[-1], most, replace=False)
    image = np.searchsorted(end, pair, side="right")
    text = order[start[image] + pair - (end - count)[image]]
    matching = _scores(images[image], texts[text], metric)
    image, text = random.integers(0, len(images), most), random.integers(0, len(texts), most)
    other = image_labels[image] != text_labels[text]
    return matching, _scores(images[image[other]], texts[text[other]], metric)


def _scores(first: NDArray[Any], second: NDArray[Any], metric: Metric) -> NDArray[np.floating[Any]]:
    scores: NDArray[np.floating[Any]]
    if metric == "cosine":
        scores = np.einsum("nd,nd->n", first, second)
    else:
        scores = np.linalg.norm(first - second, axis=1)
    return scores


def _series(name: str, rows: Iterable[dict[str, Any]], *keys: str, marks: bool = False) -> Series:
    """The values under `keys` of the rows that have them, by step."""
    points = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and "step" in row:
            points.append((float(row["step"]), float(value)))
    return Series(name, [x for x, _ in points], [y for _, y in points], marks)


def _ranges(values: NDArray[np.int64], groups: int) -> list[tuple[int, int]]:
    """Lowest and highest value of each group; what is left at the end, if little, joins the last."""
    distinct, counts = np.unique(values, return_counts=True)
    share = len(values) / groups
    ends, taken = [], 0
    for place, count in enumerate(counts.tolist()):
        taken += count
        if taken >= share:
            ends.append(place)
            taken = 0
    if ends and taken < share / 2:
        ends.pop()
    if not ends or ends[-1] != len(distinct) - 1:
        ends.append(len(distinct) - 1)
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [(int(distinct[start]), int(distinct[end])) for start, end in zip(starts, ends, strict=True)]


def _cell(name: str, direction: DirectionResult, bounds: Bounds | None) -> str:
    """A metric with its interval; empty where the direction doesn't have it."""
    if bounds is None:
        return "<td></td>"
    value = direction.value(name)
    if name.endswith("rank"):
        shown = f"{value:,.0f}" if value.is_integer() else f"{value:,.1f}"
        return f"<td>{shown}{_bracket(bounds)}</td>"
    return f'<td class="share" style="--share:{value:.1f}%">{value:.1f}{_bracket(bounds)}</td>'


def _bracket(bounds: Bounds) -> str:
    low, high = (f"{bound:.0f}" if bound >= 1000 else f"{bound:.1f}" for bound in bounds)
    return f' <span class="interval">[{low}, {high}]</span>'
