"""Small charts as inline SVG: lines over a number axis, and two overlaid histograms.

Colours are CSS variables of the page (`--series-1` ...), so that a chart follows its light and dark scheme; series
also differ by their dashes, for who can't tell the colours apart. Text keeps its size down to a phone's width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 12, 40
_MOST_POINTS = 300
_DASHES = ("", "6 3", "2 3")


@dataclass(frozen=True)
class Series:
    """A named line: x and y of equal length, x ascending. `marks` draws every point, with its value on hovering."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = False


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """A figure with a legend; points that aren't finite are left out. Empty without any point."""
    series = [each for each in map(_drawable, series) if len(each.x)]
    if not series:
        return ""
    scale = _Scale([x for each in series for x in each.x], [y for each in series for y in each.y])
    drawn = [_line(each, index, scale) for index, each in enumerate(series)]
    summary = "; ".join(f"{each.name} ends at {_number(each.y[-1])}" for each in series)
    return _figure(title, summary, [each.name for each in series], scale.axes(x_label, y_label) + "".join(drawn))


def histogram(title: str, samples: dict[str, NDArray[np.floating]], x_label: str, bins: int = 50) -> str:
    """A figure of overlaid histograms, each scaled to its own 100 per cent, on bins they share."""
    values = [np.asarray(sample, dtype=np.float64) for sample in samples.values()]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = [np.histogram(v, edges)[0] / len(v) * 100 for v in values]
    scale = _Scale(edges.tolist(), [0.0, *(float(share.max()) for share in shares)])
    drawn = []
    for index, share in enumerate(shares):
        path = f"M{scale.x(edges[0]):.1f} {scale.y(0):.1f}"
        for height, left, right in zip(share, edges[:-1], edges[1:], strict=True):
            path += f"L{scale.x(left):.1f} {scale.y(height):.1f}H{scale.x(right):.1f}"
        path += f"V{scale.y(0):.1f}Z"
        drawn.append(f'<path class="area series-{index + 1}" stroke-dasharray="{_DASHES[index]}" d="{path}"/>')
    means = (round(float(v.mean()), 2) + 0.0 for v in values)  # the sum turns -0.0 into 0.0
    summary = "Mean of " + ", of ".join(f"{name} {mean:.2f}" for name, mean in zip(samples, means, strict=True))
    drawing = scale.axes(x_label, "% of pairs") + "".join(drawn)
    return _figure(title, summary, list(samples), drawing, note=f"{summary}.")


class _Scale:
    """Data to drawing coordinates, with round numbers on the axes."""

    def __init__(self, x: Sequence[float], y: Sequence[float]) -> None:
        self.x_low, self.x_high = min(x), max(x)
        if self.x_low == self.x_high:
            self.x_low, self.x_high = self.x_low - 0.5, self.x_high + 0.5
        self.y_ticks = _ticks(min(y), max(y))
        self.x_ticks = [tick for tick in _ticks(self.x_low, self.x_high) if self.x_low <= tick <= self.x_high]

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
        for tick in self.x_ticks:
            parts.append(
                f'<text x="{self.x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{_number(tick)}</text>'
            )
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text class="label" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>'
        )
        turned = f'transform="translate(11 {middle}) rotate(-90)" text-anchor="middle"'
        parts.append(f'<text class="label" {turned}>{escape(y_label)}</text>')
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers that span low to high."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (power * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _drawable(series: Series) -> Series:
    """The finite points, averaged in groups where there are more than can be seen."""
    points = np.array([(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        points = np.array([group.mean(0) for group in np.array_split(points, _MOST_POINTS)])
    return Series(series.name, points[:, 0].tolist(), points[:, 1].tolist(), series.marks)


def _line(series: Series, index: int, scale: _Scale) -> str:
    places = [(scale.x(x), scale.y(y)) for x, y in zip(series.x, series.y, strict=True)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = f'<polyline class="line series-{index + 1}" stroke-dasharray="{_DASHES[index % 3]}" points="{points}"/>'
    if series.marks or len(places) == 1:
        drawn += "".join(
            f'<circle class="mark series-{index + 1}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            f"<title>{escape(series.name)}, {_number(value_x)}: {_number(value_y)}</title></circle>"
            for (x, y), value_x, value_y in zip(places, series.x, series.y, strict=True)
        )
    return drawn


def _figure(title: str, summary: str, names: Sequence[str], drawing: str, note: str = "") -> str:
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 26 8" aria-hidden="true"><line class="line series-{index + 1}" '
        f'stroke-dasharray="{_DASHES[index % 3]}" x1="1" x2="25" y1="4" y2="4"/></svg>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    below = f'<p class="quiet small">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><span class="legend">{keys}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}. {escape(summary)}">'
        f"{drawing}</svg>{below}</figure>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
