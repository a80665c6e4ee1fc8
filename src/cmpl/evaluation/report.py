"""One self-contained HTML file about a run: its numbers, its training, and what it retrieves.

The page needs no network and no script, follows the reader's light or dark scheme, and holds every picture once.
"""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cmpl.evaluation.charts import Series, histogram, line_chart
from cmpl.evaluation.examples import Query, choose_queries, retrieve, sample_similarities
from cmpl.evaluation.inputs import EvaluationInputError, check_embeddings, check_labels
from cmpl.evaluation.metrics import RetrievalResult
from cmpl.files import write_text

_THUMBNAIL = 200  # pixels of the longer side; shown at half of that or less
_PAIRS = {"matching": "positive", "other": "negative"}
_RIGHT = '<span class="mark-right">✓ right</span>'


def write_report(
    output: Path,
    *,
    title: str,
    facts: dict[str, str],
    result: RetrievalResult,
    image_embeddings: Tensor | NDArray[Any],
    text_embeddings: Tensor | NDArray[Any],
    image_labels: Tensor | NDArray[Any],
    text_labels: Tensor | NDArray[Any],
    captions: list[str],
    thumbnail: Callable[[int], bytes],
    history: list[dict[str, Any]],
    queries: int = 24,
) -> None:
    """Write the report of one evaluation to `output`, whole or not at all.

    facts: what was evaluated, by name, shown on top.
    result: what evaluate_retrieval returned for these embeddings and labels.
    image_embeddings [n, d], text_embeddings [m, d], image_labels [n], text_labels [m], captions (m of them).
    thumbnail: row of a picture to its encoded bytes (JPEG, PNG); called once for every picture shown.
    history: rows of metrics.jsonl, of kinds "train" and "val"; may be empty.
    queries: how many to show, half of them texts and half pictures.
    """
    image_ids = check_labels(image_labels, len(image_embeddings), "image_labels")
    text_ids = check_labels(text_labels, len(text_embeddings), "text_labels")
    if len(captions) != len(text_embeddings):
        raise EvaluationInputError(
            f"found {len(captions)} captions; expected one for each of {len(text_embeddings)} texts"
        )
    images = _comparable(check_embeddings(image_embeddings, "image_embeddings"), result)
    texts = _comparable(check_embeddings(text_embeddings, "text_embeddings"), result)
    pictures = _Pictures(thumbnail, _captions_of_pictures(image_ids, text_ids, captions))

    to_images, to_texts = result.text_to_image.ranks.first, result.image_to_text.ranks.first
    by_text = choose_queries(to_images, queries // 2, seed=0)
    by_picture = choose_queries(to_texts, queries - queries // 2, seed=1)
    found_images = retrieve(by_text, to_images, texts, images, text_ids, image_ids, result.metric)
    found_texts = retrieve(by_picture, to_texts, images, texts, image_ids, text_ids, result.metric)
    body = [
        _facts(facts),
        '<div class="overview">',
        _table(result),
        _similarities(images, texts, image_ids, text_ids, result),
        "</div>",
        _training(history),
        _text_queries(found_images, captions, pictures, text_ids, image_ids, result),
        _picture_queries(found_texts, captions, pictures, result),
        "<footer>Ranks start at 1, and a tie counts against the model. "
        "Examples are drawn at random, a third from each group where there are enough.</footer>",
    ]
    template = Template(resources.files("cmpl.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escape(title), body="\n".join(body), pictures=pictures.styles())
    write_text(output, page)


class _Pictures:
    """Thumbnails as backgrounds of style classes, so that a picture shown many times is stored once."""

    def __init__(self, thumbnail: Callable[[int], bytes], captions: list[str]) -> None:
        self.thumbnail, self.captions = thumbnail, captions
        self.data: dict[int, str] = {}

    def show(self, row: int) -> str:
        if row not in self.data:
            self.data[row] = base64.b64encode(_small_jpeg(self.thumbnail(row))).decode("ascii")
        description = f"Picture {row}" + (f": {self.captions[row]}" if self.captions[row] else "")
        return f'<span class="picture p{row}" role="img" aria-label="{escape(description)}"></span>'

    def styles(self) -> str:
        return "\n".join(
            f".p{row}{{background-image:url(data:image/jpeg;base64,{data})}}" for row, data in self.data.items()
        )


def _small_jpeg(picture: bytes) -> bytes:
    with Image.open(io.BytesIO(picture)) as opened:
        opened.draft("RGB", (2 * _THUMBNAIL, 2 * _THUMBNAIL))
        small = opened.convert("RGBA")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    white = Image.new("RGBA", small.size, "white")
    file = io.BytesIO()
    Image.alpha_composite(white, small).convert("RGB").save(file, "JPEG", quality=78, optimize=True)
    return file.getvalue()


def _comparable(embeddings: NDArray[Any], result: RetrievalResult) -> NDArray[Any]:
    if result.metric == "euclidean":
        return embeddings
    unit: NDArray[Any] = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return unit


def _captions_of_pictures(
    image_ids: NDArray[np.int64], text_ids: NDArray[np.int64], captions: Sequence[str]
) -> list[str]:
    """The first caption of each picture, or of another picture that means the same; for who can't see it."""
    first: dict[int, str] = {}
    for label, caption in zip(text_ids.tolist(), captions, strict=True):
        first.setdefault(label, caption)
    return [first.get(label, "") for label in image_ids.tolist()]


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>' if facts else ""


def _table(result: RetrievalResult) -> str:
    to_text, to_image = result.image_to_text.to_dict(), result.text_to_image.to_dict()
    rows = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th>{_cell(name, to_text)}{_cell(name, to_image)}</tr>'
        for name in to_text
    )
    images, texts = result.text_to_image.ranks.gallery_size, result.image_to_text.ranks.gallery_size
    return (
        '<section class="card"><table><caption>Retrieval</caption><thead><tr><th scope="col"><span class="hidden">'
        'Metric</span></th><th scope="col">Image to text</th><th scope="col">Text to image</th></tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">Sum of recalls</th><td colspan="2">{result.rsum:.1f}</td>'
        f'</tr></tfoot></table><p class="quiet small">Recall and mAP in per cent; ranks of the first right item among '
        f"{texts:,} texts and {images:,} pictures.</p></section>"
    )


def _cell(name: str, values: dict[str, float]) -> str:
    value = values[name]
    if name.endswith("rank"):
        return f"<td>{value:,.0f}</td>" if value.is_integer() else f"<td>{value:,.1f}</td>"
    return f'<td class="share" style="--share:{value:.1f}%">{value:.1f}</td>'


def _similarities(
    images: NDArray[Any],
    texts: NDArray[Any],
    image_ids: NDArray[np.int64],
    text_ids: NDArray[np.int64],
    result: RetrievalResult,
) -> str:
    matching, other = sample_similarities(images, texts, image_ids, text_ids, result.metric)
    samples = {"matching pairs": matching, "other pairs": other}
    name = "cosine similarity" if result.metric == "cosine" else "euclidean distance"
    return histogram("Similarities", {key: value for key, value in samples.items() if len(value)}, name)


def _training(history: list[dict[str, Any]]) -> str:
    train = [row for row in history if row.get("kind") == "train"]
    val = [row for row in history if row.get("kind") == "val"]
    weights = {kind: [row for row in val if row.get("weights") == kind] for kind in ("averaged", "raw")}
    followed = weights["averaged"] or weights["raw"]
    charts = [
        line_chart(
            "Training loss",
            [_series(name, train, key) for name, key in (("total", "loss"), ("CMPM", "cmpm"), ("CMPC", "cmpc"))],
            "step",
            "nats",
        ),
        line_chart(
            "Sum of recalls on val, by weights",
            [_series(kind, rows, "rsum", marks=True) for kind, rows in weights.items()],
            "step",
            "rsum",
        ),
        line_chart(
            "Recall@1 on val",
            [
                _series("image to text", followed, "image_to_text", "R@1", marks=True),
                _series("text to image", followed, "text_to_image", "R@1", marks=True),
            ],
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
    drawn = "".join(charts)
    return f'<section><h2>Training</h2><div class="overview">{drawn}</div></section>' if drawn else ""


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


def _text_queries(
    found: list[Query],
    captions: Sequence[str],
    pictures: _Pictures,
    text_ids: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    result: RetrievalResult,
) -> str:
    def card(query: Query) -> str:
        items = "".join(
            f'<li{_class(right)}>{pictures.show(item)}<span class="note"><span>{place} · {score:.2f}</span>'
            f"{_RIGHT if right else ''}</span></li>"
            for place, (item, score, right) in enumerate(zip(query.items, query.scores, query.right, strict=True), 1)
        )
        if not any(query.right):
            sought = int(np.flatnonzero(image_ids == text_ids[query.query])[0])
            note = f'<span class="note"><span>sought</span>{_RIGHT}</span>'
            items += f'<li class="sought is-right">{pictures.show(sought)}{note}</li>'
        return (
            f'<article class="card query"><p class="sentence">“{escape(captions[query.query])}”</p>'
            f'{_verdict(query, "picture", result.text_to_image.ranks.gallery_size)}<ol class="pictures">{items}</ol>'
            "</article>"
        )

    return _groups("Text to image", "The five pictures nearest to a sentence.", found, card)


def _picture_queries(found: list[Query], captions: Sequence[str], pictures: _Pictures, result: RetrievalResult) -> str:
    def card(query: Query) -> str:
        items = "".join(
            f'<li{_class(right)}><span class="quiet">{place}</span><span class="quiet">{score:.2f}</span>'
            f'<span><span class="sentence">{escape(captions[item])}</span> {_RIGHT if right else ""}</span></li>'
            for place, (item, score, right) in enumerate(zip(query.items, query.scores, query.right, strict=True), 1)
        )
        return (
            f'<article class="card query by-picture">{pictures.show(query.query)}<div>'
            f'{_verdict(query, "caption", result.image_to_text.ranks.gallery_size)}<ol class="captions">{items}</ol>'
            "</div></article>"
        )

    return _groups("Image to text", "The five captions nearest to a picture.", found, card)


def _groups(heading: str, explanation: str, found: list[Query], card: Callable[[Query], str]) -> str:
    parts = [f'<section><h2>{heading}</h2><p class="quiet">{explanation} Those that match are marked {_RIGHT}.</p>']
    for group, queries in groupby(found, key=lambda query: query.group):
        parts.append(f"<h3>{group}</h3>")
        parts.extend(card(query) for query in queries)
    return "\n".join([*parts, "</section>"])


def _verdict(query: Query, what: str, gallery_size: int) -> str:
    return f'<p class="verdict">first right {what} at rank {query.first:,} of {gallery_size:,}</p>'


def _class(right: bool) -> str:
    return ' class="is-right"' if right else ""
