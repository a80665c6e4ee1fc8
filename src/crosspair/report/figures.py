"""The charts of a report, from what an evaluation and a training run have recorded."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.metrics import DirectionResult, RetrievalResult
from crosspair.report.breakdown import recall_by
from crosspair.report.charts import Series, count_chart, group_chart, histogram, line_chart
from crosspair.report.hubness import Hubness

_CURVE_POINTS = 60
_LOSSES = {
    "loss": "total",
    "cmpm": "CMPM",
    "cmpc": "CMPC",
    "infonce": "InfoNCE",
    "sdm": "SDM",
    "triplet": "triplet",
    "siglip": "SigLIP",
}
_PAIRS = {"matching": "positive", "other": "negative"}


def recall_curve(result: RetrievalResult) -> str:
    """Recall@K over all K."""
    series = []
    for name, direction in (("image to text", result.image_to_text), ("text to image", result.text_to_image)):
        size = direction.ranks.gallery_size
        ks = np.unique(np.geomspace(1, size, _CURVE_POINTS).round().astype(int)) if size > 1 else np.array([1])
        series.append(Series(name, ks.tolist(), [direction.recall(int(k)) for k in ks]))
    images, sentences = (
        "half of {} within {:,.0f}, nine of ten within {:,.0f}".format(
            what, *np.percentile(direction.ranks.first, (50, 90), method="higher")
        )
        for what, direction in (("the pictures", result.image_to_text), ("the sentences", result.text_to_image))
    )
    note = f"How far one has to look for a right item: {images}; {sentences}."
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
    """Recall of sentences by their number of words; empty when all are of about one length."""
    words = np.array([len(caption.split()) for caption in captions])
    note = "Text to image; bars are 95 % intervals that take sentences for independent (Wilson)."
    return _recall_by("By length of the sentence", words, direction, "words", note)


def recall_by_positives(direction: DirectionResult) -> str:
    """Recall of pictures by their number of right captions; empty when all have as many."""
    note = "Image to text; bars are 95 % intervals that take pictures for independent (Wilson)."
    return _recall_by("By captions of the picture", direction.ranks.positives, direction, "right captions", note)


def _recall_by(title: str, values: NDArray[np.int64], direction: DirectionResult, x_label: str, note: str) -> str:
    groups = recall_by(values, direction.ranks.first, direction.ks)
    if len(groups) < 2:
        return ""
    series = {f"R@{k}": [group.recalls[k] for group in groups] for k in direction.ks}
    names, sizes = [group.name for group in groups], [group.queries for group in groups]
    return group_chart(title, names, sizes, series, x_label, "recall in %", note=note)


def hubness_chart(hubness: Hubness, items: str, queries: str) -> str:
    """How many items are retrieved how often; items and queries in words, such as "pictures" and "sentences"."""
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
    weights = {kind: [row for row in val if row.get("weights") == kind] for kind in ("averaged", "raw")}
    followed = weights["averaged"] or weights["raw"]
    recalls = (("image to text", "image_to_text"), ("text to image", "text_to_image"))
    charts = [
        line_chart("Training loss", [_series(name, train, key) for key, name in _LOSSES.items()], "step", "nats"),
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
