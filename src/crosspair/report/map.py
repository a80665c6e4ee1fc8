"""A map of the pictures: near to each other what the model takes for alike, each shown where the pointer is."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from crosspair.report.images import Sheet

WIDTH, HEIGHT, _MARGIN = 1000, 860, 45
_APART = 118  # between pictures that the map shows by themselves
# Names of the groups that points are marked by, with the highest rank of the first right caption.
GROUPS = {"right caption first": 1, "among the first ten": 10, "later": np.inf}
_SHAPES = ("M-7 0a7 7 0 1 0 14 0a7 7 0 1 0-14 0Z", "M-6-6H6V6H-6Z", "M0-9L8.5 6.5H-8.5Z")


def draw_map(
    places: NDArray[np.float32],
    first: NDArray[np.int64],
    names: Sequence[str],
    notes: Sequence[Sequence[str]],
    sheet: Sheet,
) -> str:
    """The map as HTML, for the script of report.html.

    places [n, 2]: of the pictures, in any unit. first [n]: rank of their first right caption.
    names [n], notes [n]: what to say of a picture, its own caption first. sheet: holds the pictures, in this order.
    """
    spots = _spots(places)
    groups = np.searchsorted(list(GROUPS.values()), first)
    points = "".join(
        f'<path class="point g{group}" transform="translate({x} {y})" d="{_SHAPES[group]}" data-x="{x}" data-y="{y}" '
        f'data-position="{sheet.position(place)}" data-name="{escape(name)}" '
        + " ".join(f'data-note{number}="{escape(note)}"' for number, note in enumerate(said))
        + "/>"
        for place, ((x, y), group, name, said) in enumerate(zip(spots.tolist(), groups, names, notes, strict=True))
    )
    landmarks = "".join(
        f'<span class="landmark sheet g{groups[place]}" data-place="{place}" style="left:{spots[place, 0] / WIDTH:.2%};'
        f'top:{spots[place, 1] / HEIGHT:.2%};background-position:{sheet.position(place)}"></span>'
        for place in _landmarks(spots)
    )
    keys = "".join(
        f'<span class="key"><svg viewBox="-12 -12 24 24" aria-hidden="true"><path class="point g{group}" '
        f'd="{_SHAPES[group]}"/></svg>{name} ({int((groups == group).sum()):,})</span>'
        for group, name in enumerate(GROUPS)
    )
    return (
        '<div class="card"><input type="checkbox" id="landmarks" checked><div class="map-head">'
        f'<span class="legend">{keys}</span><label for="landmarks">Pictures on the map</label></div>'
        '<div class="atlas"><div class="map" tabindex="0" role="application" aria-roledescription="map" '
        f'aria-label="Map of {len(spots):,} pictures; arrow keys go to the next one in their direction" '
        f'aria-describedby="shown"><svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{points}</svg>{landmarks}'
        '<span class="here" hidden></span></div><div class="shown" id="shown">'
        '<p class="quiet small">The picture under the pointer appears here; this needs JavaScript.</p></div></div>'
        "</div>"
    )


def _spots(places: NDArray[np.float32]) -> NDArray[np.int64]:
    """Places stretched over the drawing, in its whole units."""
    low, high = places.min(0), places.max(0)
    share = np.where(high > low, (places - low) / np.where(high > low, high - low, 1), 0.5)
    size = np.array([WIDTH, HEIGHT]) - 2 * _MARGIN
    return np.asarray(np.rint(_MARGIN + share * size), dtype=np.int64)


def _landmarks(spots: NDArray[np.int64]) -> list[int]:
    """Points that stand for those around them: the most crowded first, each well apart from those before."""
    apart = np.abs(spots[:, None] - spots).max(2)
    chosen: list[int] = []
    for place in np.argsort(-(apart < _APART / 2).sum(1), kind="stable"):
        if (apart[place, chosen] >= _APART).all():
            chosen.append(int(place))
    return chosen
