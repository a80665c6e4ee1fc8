"""Small charts as inline SVG, each with its numbers as a table to unfold.

Colours are CSS variables of the page (`--series-1` ...), so that a chart follows its light and dark scheme; series also
differ by their dashes and marks, for who can't tell the colours apart. Text keeps its size down to a phone's width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosspair.report.text import attribute, foreign

_WIDTH, _HEIGHT = 440, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 50
_MOST_POINTS = 300
_MOST_ROWS = 12  # of a table
_DASHES = ("", "6 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Series:
    """A named line: x and y of equal length, x ascending. `marks` draws every point, with its value on hovering."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = False


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    from_zero: bool = False,
    note: str = "",
) -> str:
    """A figure with a legend; points that aren't finite are left out. Empty without any point.

    log_x: places x, which is then positive, by its logarithm. from_zero: begins y at 0.
    """
    series = [each for each in map(_drawable, series) if len(each.x)]
    if not series:
        return ""
    heights = [y for each in series for y in each.y] + [0.0] * from_zero
    scale = _Scale([x for each in series for x in each.x], heights, log_x=log_x)
    drawn = [_line(each, index, scale) for index, each in enumerate(series)]
    summary = "; ".join(f"{each.name} ends at {_number(each.y[-1])}" for each in series)
    values = [dict(zip(each.x, each.y, strict=True)) for each in series]
    every = sorted(set().union(*values))
    picked = [every[index] for index in np.unique(np.linspace(0, len(every) - 1, _MOST_ROWS).round().astype(int))]
    rows = [[_number(x), *(_number(value[x]) if x in value else "" for value in values)] for x in picked]
    table = _table([x_label, *(each.name for each in series)], rows)
    return _figure(
        title, summary, [each.name for each in series], scale.axes(x_label, y_label) + "".join(drawn), table, note
    )


def histogram(
    title: str, samples: dict[str, NDArray[np.floating]], x_label: str, *, bins: int = 50, note: str = ""
) -> str:
    """A figure of overlaid histograms, each scaled to its own 100 per cent, on bins they share."""
    values = [np.asarray(sample, dtype=np.float64) for sample in samples.values()]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = [np.histogram(v, edges)[0] / len(v) * 100 for v in values]
    scale = _Scale(edges.tolist(), [0.0, *(float(share.max()) for share in shares)])
    drawn = [_area(edges, share, index, scale) for index, share in enumerate(shares)]
    means = (round(float(v.mean()), 2) + 0.0 for v in values)  # the sum turns -0.0 into 0.0
    summary = "Mean of " + ", of ".join(f"{name} {mean:.2f}" for name, mean in zip(samples, means, strict=True))
    points = (5, 25, 50, 75, 95)
    rows = [[f"{point} % are below", *(f"{np.percentile(v, point):.3f}" for v in values)] for point in points]
    table = _table([x_label, *samples], rows)
    drawing = scale.axes(x_label, "% of pairs") + "".join(drawn)
    return _figure(title, summary, list(samples), drawing, table, f"{summary}. {note}".strip())


def count_chart(title: str, counts: NDArray[np.int64], x_label: str, y_label: str, *, note: str = "") -> str:
    """A figure of how many items have which count, with the mean count marked."""
    width = max(1, math.ceil((int(counts.max()) + 1) / 40))  # whole numbers, at most 40 bars
    edges = np.arange(0, int(counts.max()) + 1 + width, width) - 0.5
    heights = np.histogram(counts, edges)[0]
    scale = _Scale([edges[0], edges[-1]], [0.0, float(heights.max())])
    mean = float(counts.mean())
    x = scale.x(mean)
    anchor, beside = ("start", 5) if x < _WIDTH / 2 else ("end", -5)
    drawn = _area(edges, heights, 0, scale) + (
        f'<line class="line series-2" stroke-dasharray="{_DASHES[1]}" x1="{x:.1f}" x2="{x:.1f}" '
        f'y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text class="marked" x="{x + beside:.1f}" y="{_TOP + 9}" text-anchor="{anchor}">mean {mean:.1f}</text>'
    )
    rows = [
        [f"{point} % at most" if point < 100 else "the most", f"{np.percentile(counts, point, method='higher'):,.0f}"]
        for point in (5, 25, 50, 75, 95, 99, 100)
    ]
    summary = f"Mean {mean:.1f}, most {int(counts.max())}"
    return _figure(title, summary, [], scale.axes(x_label, y_label) + drawn, _table(["Items", x_label], rows), note)


def group_chart(
    title: str,
    groups: Sequence[str],
    sizes: Sequence[int],
    series: Mapping[str, Sequence[Estimate]],
    x_label: str,
    y_label: str,
    *,
    note: str = "",
) -> str:
    """A figure of values with intervals for groups side by side; series holds one estimate a group."""
    everything = [bound for each in series.values() for one in each for bound in (one.low, one.high)]
    scale = _Scale([-0.5, len(groups) - 0.5], [0.0, *everything])
    drawn = []
    for index, estimates in enumerate(series.values()):
        xs = [scale.x(group + (index - (len(series) - 1) / 2) * 0.12) for group in range(len(groups))]
        line = " ".join(f"{x:.1f},{scale.y(one.value):.1f}" for x, one in zip(xs, estimates, strict=True))
        dashes = _DASHES[index % 4]
        drawn.append(
            f'<polyline class="line thin series-{index % 4 + 1}" stroke-dasharray="{dashes}" points="{line}"/>'
        )
        for x, one in zip(xs, estimates, strict=True):
            drawn.append(
                f'<line class="line series-{index % 4 + 1}" x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(one.low):.1f}" '
                f'y2="{scale.y(one.high):.1f}"/>{_mark(index, x, scale.y(one.value))}'
            )
    labels = [(scale.x(group), name) for group, name in enumerate(groups)]
    names = list(series)
    rows = [
        [group, f"{size:,}", *(f"{series[name][row].value:.1f}" for name in names)]
        for row, (group, size) in enumerate(zip(groups, sizes, strict=True))
    ]
    last = ", ".join(f"{name} {series[name][0].value:.1f} to {series[name][-1].value:.1f}" for name in names)
    summary = f"From the first group to the last: {last}"
    table = _table([x_label, "queries", *names], rows)
    return _figure(title, summary, names, scale.axes(x_label, y_label, labels) + "".join(drawn), table, note)


class _Scale:
    """Data to drawing coordinates, with round numbers on the axes."""

    def __init__(self, x: Sequence[float], y: Sequence[float], *, log_x: bool = False) -> None:
        self.log_x = log_x
        self.x_low, self.x_high = (math.log(each) if log_x else each for each in (min(x), max(x)))
        if self.x_low == self.x_high:
            self.x_low, self.x_high = self.x_low - 0.5, self.x_high + 0.5
        self.y_ticks = _ticks(min(y), max(y))
        ticks = _log_ticks(min(x), max(x)) if log_x else _ticks(self.x_low, self.x_high)
        self.x_ticks = [tick for tick in ticks if _LEFT <= round(self.x(tick)) <= _WIDTH - _RIGHT]

    def x(self, value: float) -> float:
        place = math.log(value) if self.log_x else value
        return _LEFT + (place - self.x_low) / (self.x_high - self.x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str, labels: Sequence[tuple[float, str]] = ()) -> str:
        """Grid, numbers and names of both axes. labels: places and names to write along x instead of numbers."""
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
        for x, name in labels or [(self.x(tick), _number(tick)) for tick in self.x_ticks]:
            parts.append(
                f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{attribute(name)}</text>'
            )
        across, down = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
        turned = f'transform="translate(14 {down}) rotate(-90)" text-anchor="middle"'
        parts.append(
            f'<text class="label" x="{across}" y="{_HEIGHT - 9}" text-anchor="middle">{attribute(x_label)}</text>'
        )
        parts.append(f'<text class="label" {turned}>{attribute(y_label)}</text>')
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers that span low to high."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (power * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with 2 and 5 of each where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1, 3) if len(powers) <= 4 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors]


def _drawable(series: Series) -> Series:
    """The finite points, averaged in groups where there are more than can be seen."""
    points = np.array([(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        points = np.array([group.mean(0) for group in np.array_split(points, _MOST_POINTS)])
    return Series(series.name, points[:, 0].tolist(), points[:, 1].tolist(), series.marks)


def _line(series: Series, index: int, scale: _Scale) -> str:
    places = [(scale.x(x), scale.y(y)) for x, y in zip(series.x, series.y, strict=True)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = f'<polyline class="line series-{index % 4 + 1}" stroke-dasharray="{_DASHES[index % 4]}" points="{points}"/>'
    if series.marks or len(places) == 1:
        drawn += "".join(
            _mark(index, x, y, f"{series.name}, {_number(value_x)}: {_number(value_y)}")
            for (x, y), value_x, value_y in zip(places, series.x, series.y, strict=True)
        )
    return drawn


def _area(edges: NDArray[np.floating], heights: NDArray[np.number], index: int, scale: _Scale) -> str:
    """The outline of bars that touch."""
    path = f"M{scale.x(edges[0]):.1f} {scale.y(0):.1f}"
    for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
        path += f"L{scale.x(left):.1f} {scale.y(float(height)):.1f}H{scale.x(right):.1f}"
    path += f"V{scale.y(0):.1f}Z"
    return f'<path class="area series-{index % 4 + 1}" stroke-dasharray="{_DASHES[index % 4]}" d="{path}"/>'


def _mark(index: int, x: float, y: float, title: str = "") -> str:
    """A point of a series: a circle, a square, a triangle or a diamond."""
    shapes = (
        "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0Z",
        "M-3-3H3V3H-3Z",
        "M0-4L3.8 3H-3.8Z",
        "M0-4L4 0L0 4L-4 0Z",
    )
    named = f"<title>{attribute(title)}</title>" if title else ""
    return (
        f'<path class="mark series-{index % 4 + 1}" transform="translate({x:.1f} {y:.1f})" d="{shapes[index % 4]}">'
        f"{named}</path>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{foreign(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{foreign(row[0])}</th>'
        + "".join(f"<td>{foreign(cell)}</td>" if cell else "<td></td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _figure(title: str, summary: str, names: Sequence[str], drawing: str, table: str, note: str) -> str:
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 26 8" aria-hidden="true"><line class="line series-{index % 4 + 1}" '
        f'stroke-dasharray="{_DASHES[index % 4]}" x1="1" x2="25" y1="4" y2="4"/></svg>{foreign(name)}</span>'
        for index, name in enumerate(names)
    )
    legend = f'<span class="legend">{keys}</span>' if keys else ""
    below = f'<p class="quiet small">{foreign(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption><b>{foreign(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{attribute(title)}. {attribute(summary)}">'
        f'{drawing}</svg>{below}<details><summary>Numbers<span class="hidden"> of {foreign(title)}</span></summary>'
        f"{table}</details></figure>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
