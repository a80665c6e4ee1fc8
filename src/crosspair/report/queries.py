"""All queries of a report to search, filter and sort: data for the page's script, in a size that a page can have."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.ranking import Direction
from crosspair.report.examples import Model
from crosspair.report.inline_images import Sheet
from crosspair.report.rivals import FOUND
from crosspair.report.text import clean, foreign, isolated

MOST_TEXTS = 5_000  # sentences that are listed; there are as many pictures as on the map
_ITEMS: dict[Direction, int] = {"text_to_image": 5, "image_to_text": 3}  # shown of a query
_ORDERS = {
    "data": "as in the data",
    "best": "found soonest first",
    "worst": "found last first",
    "label": "by label",
}


def listed_rows(data: Embeddings, images: NDArray[np.int64]) -> dict[Direction, NDArray[np.int64]]:
    """The rows that are listed: these images, and their texts, of which MOST_TEXTS are drawn where there are more."""
    texts = np.flatnonzero(np.isin(data.text_labels, data.image_labels[images]))
    if len(texts) > MOST_TEXTS:
        texts = np.sort(np.random.default_rng(0).choice(texts, MOST_TEXTS, replace=False))
    return {"text_to_image": texts, "image_to_text": images}


def query_list(
    models: Sequence[Model],
    data: Embeddings,
    captions: Sequence[str],
    ids: Sequence[str],
    sheet: Sheet | None,
    rows: dict[Direction, NDArray[np.int64]],
) -> str:
    """The form, the place of the list and its data, as HTML for the script of report.js. The first model has searches.

    captions, ids: of all texts and images. sheet: where images are seen; None where there are none. rows: to list.
    """
    kept = _Kept(data, captions, ids, sheet)
    directions = [kept.direction(models, name, rows[name]) for name in models[0].searches]
    names = [model.name for model in models] if len(models) > 1 else []
    found = {
        "models": list(map(clean, names)),
        "directions": directions,
        "images": kept.images.columns,
        "texts": kept.texts.columns,
        "sheet": [sheet.columns, sheet.lines] if sheet else None,
        "found": FOUND,
    }
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    largest = max(len(search.gallery) for search in models[0].searches.values())
    return (
        f"{_form(list(models[0].searches), names, largest)}"
        '<p id="count" class="quiet" role="status">The list needs JavaScript.</p><ol id="list"></ol>'
        '<button type="button" id="more" hidden>Show more</button>'
        f'<script type="application/json" id="queries-data">{text}</script>'
    )


@dataclass
class _Column:
    """Rows that the list refers to, numbered from 0 in the order in which they came up, with what is said of each."""

    number: dict[int, int] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)


class _Kept:
    """The images and texts that a list's queries and items are: each is kept once."""

    def __init__(self, data: Embeddings, captions: Sequence[str], ids: Sequence[str], sheet: Sheet | None) -> None:
        self.data, self.captions, self.ids, self.names = data, captions, ids, data.image_names
        self.cells = {int(row): place for place, row in enumerate(sheet.rows)} if sheet else {}
        labels, first = np.unique(data.image_labels, return_index=True)
        self.image_of_label = dict(zip(labels.tolist(), first.tolist(), strict=True))
        self.images, self.texts = _Column(), _Column()

    def direction(self, models: Sequence[Model], name: Direction, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The listed queries of a direction with each model's ranks and first items."""
        rows = rows[models[0].ranks[name][rows] > 0]
        side, other = (self.text, self.image) if name == "text_to_image" else (self.image, self.text)
        known = [model for model in models if name in model.ranks]
        items = [
            [
                [other(item) for item in found]
                for found in model.searches[name].nearest(rows, _ITEMS[name]).items.tolist()
            ]
            if name in model.searches
            else []
            for model in known
        ]
        return {
            "name": name,
            "gallery": len(models[0].searches[name].gallery),
            "queries": [side(row) for row in rows.tolist()],
            "ranks": [model.ranks[name][rows].tolist() for model in known],
            "items": items,
        }

    def image(self, row: int) -> int:
        number = self.images.number.get(row)
        if number is None:
            number = self.images.number[row] = len(self.images.number)
            said = {
                "name": clean(self.names[row]),
                "id": self.ids[row],
                "label": str(self.data.image_labels[row]),
                "cell": self.cells.get(row, -1),
            }
            for key, value in said.items():
                self.images.columns.setdefault(key, []).append(value)
        return number

    def text(self, row: int) -> int:
        number = self.texts.number.get(row)
        if number is None:
            number = self.texts.number[row] = len(self.texts.number)
            label = int(self.data.text_labels[row])
            own = self.image_of_label.get(label) if self.data.text_images is None else int(self.data.text_images[row])
            said = {
                "caption": clean(self.captions[row]),
                "label": str(label),
                "image": -1 if own is None else self.image(own),
            }
            for key, value in said.items():
                self.texts.columns.setdefault(key, []).append(value)
        return number


def _form(directions: list[Direction], names: list[str], largest: int) -> str:
    words = {"text_to_image": "sentences", "image_to_text": "pictures"}
    fields = [_field("Words", '<input type="search" name="words" autocomplete="off" spellcheck="false">')]
    if len(directions) > 1:
        fields.append(_select("Queries", "direction", {"": "all", **{name: words[name] for name in directions}}))
    limits = f'type="number" min="1" max="{largest}" step="1" inputmode="numeric"'
    fields.append(_field("Rank from", f'<input name="low" {limits}>'))
    fields.append(_field("Rank to", f'<input name="high" {limits}>'))
    fields.append(_field("Label", '<input name="label" inputmode="numeric" autocomplete="off">'))
    orders = dict(_ORDERS)
    if names:
        ours, theirs = map(isolated, names)
        among = f"among the first {FOUND}"
        choices = {"": "whatever", "both": "by both", "first": f"by {ours} alone", "second": f"by {theirs} alone"}
        fields.append(_select(f"Found {among}", "found", {**choices, "none": "by neither"}))
        orders |= {"lead": f"{ours} far ahead first", "lag": f"{theirs} far ahead first"}
    fields.append(_select("Order", "order", orders))
    fields.append('<button type="reset">Clear</button>')
    return f'<form id="filters" role="search" aria-label="Filter the queries" hidden>{"".join(fields)}</form>'


def _field(label: str, control: str) -> str:
    return f"<label><span>{foreign(label)}</span>{control}</label>"


def _select(label: str, name: str, choices: dict[str, str]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices.items())
    return _field(label, f'<select name="{name}">{options}</select>')


def left_out(count: int, total: int, what: str) -> Iterable[str]:
    """Words for how many are listed, if not all."""
    return [f"{count:,} of the {total:,} {what}"] if count < total else []
