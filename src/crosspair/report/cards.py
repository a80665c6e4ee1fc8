"""Queries and what they retrieve, and hubs with their pictures, as HTML."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

import numpy as np

from crosspair.evaluation.embeddings import Embeddings
from crosspair.report.examples import Query
from crosspair.report.hubness import Hubness
from crosspair.report.images import ShownImages

RIGHT = '<span class="mark-right">✓ right</span>'

Card = Callable[[Query], str]


def text_card(data: Embeddings, captions: Sequence[str], shown: ShownImages) -> Card:
    """A card of a sentence: the nearest pictures, and the one it sought if it isn't among them."""

    def card(query: Query) -> str:
        items = "".join(
            f'<li{_class(right)}>{shown.show(item)}<span class="note"><span>{place} · {score:.2f}</span>'
            f"{RIGHT if right else ''}</span></li>"
            for place, (item, score, right) in enumerate(zip(query.items, query.scores, query.right, strict=True), 1)
        )
        if not any(query.right):
            sought = int(np.flatnonzero(data.image_labels == data.text_labels[query.query])[0])
            note = f'<span class="note"><span>sought</span>{RIGHT}</span>'
            items += f'<li class="sought is-right">{shown.show(sought)}{note}</li>'
        return (
            f'<article class="card query"><p class="sentence">“{escape(captions[query.query])}”</p>'
            f'{_verdict(query, "picture", len(data.images))}<ol class="pictures">{items}</ol></article>'
        )

    return card


def image_card(data: Embeddings, captions: Sequence[str], shown: ShownImages) -> Card:
    """A card of a picture: the nearest captions, and one of its own if none is among them."""

    def card(query: Query) -> str:
        items = "".join(
            f'<li{_class(right)}><span class="quiet">{place}</span><span class="quiet">{score:.2f}</span>'
            f'<span><span class="sentence">{escape(captions[item])}</span> {RIGHT if right else ""}</span></li>'
            for place, (item, score, right) in enumerate(zip(query.items, query.scores, query.right, strict=True), 1)
        )
        if not any(query.right):
            sought = int(np.flatnonzero(data.text_labels == data.image_labels[query.query])[0])
            items += (
                '<li class="sought is-right"><span class="quiet wide">sought</span>'
                f'<span><span class="sentence">{escape(captions[sought])}</span> {RIGHT}</span></li>'
            )
        return (
            f'<article class="card query by-picture">{shown.show(query.query)}<div>'
            f'{_verdict(query, "caption", len(data.texts))}<ol class="captions">{items}</ol></div></article>'
        )

    return card


def grouped_cards(found: Sequence[Query], card: Card) -> str:
    """Cards under the names of their groups."""
    parts = []
    for group, queries in groupby(found, key=lambda query: query.group):
        parts.append(f"<h3>{escape(group)}</h3>")
        parts.extend(card(query) for query in queries)
    return "\n".join(parts)


def hub_images(hubness: Hubness, shown: ShownImages, count: int = 6) -> str:
    """The most retrieved pictures."""
    items = "".join(
        f'<li>{shown.show(row)}<span class="note">{_times(hubness, row)}</span></li>' for row in hubness.hubs(count)
    )
    return f'<div class="card"><h3>Most retrieved pictures</h3><ol class="pictures">{items}</ol></div>'


def hub_texts(hubness: Hubness, captions: Sequence[str], count: int = 6) -> str:
    """The most retrieved captions."""
    items = "".join(
        f'<li><span class="sentence">{escape(captions[row])}</span>'
        f'<span class="note">{_times(hubness, row)}</span></li>'
        for row in hubness.hubs(count)
    )
    return f'<div class="card"><h3>Most retrieved captions</h3><ol class="hubs">{items}</ol></div>'


def _times(hubness: Hubness, row: int) -> str:
    return f"<span>{hubness.counts[row]:,} times, right {hubness.right[row]:,}</span>"


def _verdict(query: Query, what: str, gallery_size: int) -> str:
    return f'<p class="verdict">first right {what} at rank {query.first:,} of {gallery_size:,}</p>'


def _class(right: bool) -> str:
    return ' class="is-right"' if right else ""
