"""The map of the images: exact t-SNE of their embeddings, drawn with each image shown where the pointer is.

van der Maaten and Hinton, "Visualizing Data using t-SNE" (JMLR 2008), with the start from principal components of
Kobak and Berens (Nature Communications 2019) and the learning rate of Belkina et al. (ibid.), which make it repeatable
and keep the large structure. All n^2 pairs are held: 1,000 points take about 4 MB a matrix and a few seconds.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosspair.report.inline_images import Sheet
from crosspair.report.text import clean

_EXAGGERATION, _EXAGGERATED_STEPS = 12.0, 150
_STEPS = 500
WIDTH, HEIGHT, _MARGIN = 1000, 860, 45
_APART = 118  # between images that the map shows by themselves
# Names of the groups that points are marked by, with the highest rank of the first relevant caption.
GROUPS = {"relevant caption first": 1, "among the first ten": 10, "later": np.inf}
NO_QUERY = "not asked for"
_SHAPES = (
    "M-7 0a7 7 0 1 0 14 0a7 7 0 1 0-14 0Z",
    "M-6-6H6V6H-6Z",
    "M0-9L8.5 6.5H-8.5Z",
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
)


def tsne(points: NDArray[Any], perplexity: float = 30.0) -> NDArray[np.float32]:
    """Coordinates [n, 2] of points [n, d]; the same for the same points. Distances are Euclidean.

    perplexity: how many neighbours count, smaller where there are fewer than three times as many points.
    """
    with torch.no_grad():
        given = torch.from_numpy(np.array(points, dtype=np.float32))
        places = _principal_components(given)
        spread = places.std(0, unbiased=False).max()
        if len(given) < 5 or spread == 0:
            return places.numpy()
        affinities = _affinities(torch.cdist(given, given).square_(), min(perplexity, (len(given) - 1) / 3))
        result: NDArray[np.float32] = _descend(places / spread * 1e-4, affinities).numpy()
        return result


def kept_neighbours(points: NDArray[Any], places: NDArray[Any], k: int = 10) -> float:
    """Share of the k nearest of points [n, d] that are among the k nearest in places [n, 2], 0 to 1."""
    k = min(k, len(points) - 1)
    if k < 1:
        return 1.0
    near = []
    for each in (points, places):
        tensor = torch.from_numpy(np.array(each, dtype=np.float32))
        near.append(torch.cdist(tensor, tensor).fill_diagonal_(torch.inf).topk(k, largest=False).indices.numpy())
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*near, strict=True)]))


def draw_map(
    places: NDArray[np.float32],
    first: NDArray[np.int64],
    names: Sequence[str],
    notes: Sequence[Sequence[str]],
    sheet: Sheet | None,
) -> str:
    """The map as HTML, for the script of report.js.

    places [n, 2]: of the images, in any unit. first [n]: rank of their first relevant caption, 0 for those that are no
    query. names [n], notes [n]: what to say of an image, its own caption first. sheet: holds the images, in this order;
    None where there are none.
    """
    spots = _spots(places)
    groups = np.where(first == 0, len(GROUPS), np.searchsorted(list(GROUPS.values()), first))
    points = "".join(
        f'<path class="point g{group}" transform="translate({x} {y})" d="{_SHAPES[group]}" data-x="{x}" data-y="{y}" '
        f'data-position="{sheet.position(place) if sheet else ""}" data-name="{escape(clean(name))}" '
        + " ".join(f'data-note{number}="{escape(clean(note))}"' for number, note in enumerate(said))
        + "/>"
        for place, ((x, y), group, name, said) in enumerate(zip(spots.tolist(), groups, names, notes, strict=True))
    )
    landmarks = "".join(
        f'<span class="landmark sheet g{groups[place]}" data-place="{place}" style="left:{spots[place, 0] / WIDTH:.2%};'
        f'top:{spots[place, 1] / HEIGHT:.2%};background-position:{sheet.position(place)}"></span>'
        for place in _landmarks(spots)
        if sheet
    )
    keys = "".join(
        f'<span class="key"><svg viewBox="-12 -12 24 24" aria-hidden="true"><path class="point g{group}" '
        f'd="{_SHAPES[group]}"/></svg>{name} ({int((groups == group).sum()):,})</span>'
        for group, name in enumerate((*GROUPS, NO_QUERY))
        if name != NO_QUERY or (groups == group).any()
    )
    box = '<input type="checkbox" id="landmarks" checked>' if sheet else ""
    label = '<label for="landmarks">Pictures on the map</label>' if sheet else ""
    return (
        f'<div class="card">{box}<div class="map-head"><span class="legend">{keys}</span>{label}</div>'
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


def _principal_components(points: Tensor, count: int = 2) -> Tensor:
    """The first components of points [n, d] as coordinates [n, count], each of the sign of its largest entry."""
    centred = points - points.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    components = torch.zeros(len(points), count, dtype=points.dtype)
    kept = min(count, u.shape[1])
    components[:, :kept] = u[:, :kept] * s[:kept]
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0)


def _affinities(squared: Tensor, perplexity: float) -> Tensor:
    """Joint probabilities of all pairs [n, n] from squared distances, each row of the given perplexity."""
    squared.fill_diagonal_(torch.inf)
    squared -= squared.min(1, keepdim=True).values  # a factor of each row, so that the exponential stays in range
    low = torch.zeros(len(squared), 1)
    high = torch.full_like(low, torch.inf)
    precision = 1 / squared.masked_fill(squared.isinf(), 0).mean(1, keepdim=True).clamp(min=1e-12)
    for _ in range(50):
        weights = torch.exp(-squared * precision)
        p = weights / weights.sum(1, keepdim=True)
        entropy = torch.special.entr(p).sum(1, keepdim=True)
        wide = entropy > math.log(perplexity)
        low, high = torch.where(wide, precision, low), torch.where(wide, high, precision)
        precision = torch.where(high.isinf(), precision * 2, (low + high) / 2)
    joint = (p + p.T) / (2 * len(p))
    return joint.clamp_(min=1e-12)


def _descend(places: Tensor, affinities: Tensor) -> Tensor:
    """Gradient descent on the Kullback-Leibler divergence with momentum and a gain for each coordinate."""
    rate = max(len(places) / _EXAGGERATION / 4, 50.0)
    velocity, gains = torch.zeros_like(places), torch.ones_like(places)
    for step in range(_STEPS):
        early = step < _EXAGGERATED_STEPS
        kernel = 1 / (1 + torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").square_())
        kernel.fill_diagonal_(0)
        force = (affinities * (_EXAGGERATION if early else 1.0)).sub_(kernel / kernel.sum()).mul_(kernel)
        gradient = 4 * (force.sum(1, keepdim=True) * places - force @ places)
        gains = torch.where(gradient.sign() != velocity.sign(), gains + 0.2, gains * 0.8).clamp_(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        places = places + velocity
    return places - places.mean(0)
