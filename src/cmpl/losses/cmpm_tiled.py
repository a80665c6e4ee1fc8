"""CMPM of large batches, by tiles: both directions from one product, and no matrix of all pairs.

With c_ij the cosine of image i and text j, both directions are softmaxes of the same numbers: x_i . z_j / |z_j| is
|x_i| c_ij, and z_j . x_i / |x_i| is |z_j| c_ij. The forward computes the cosines a tile at a time, keeps the softmax
statistics of their rows and of their columns, and drops them. The backward computes each tile again, adds the two
directions' gradients with respect to the cosines, and multiplies the sum by the texts and by the images: 4 products of
n m d where autograd makes 6 of the formula as written, and memory for a few tiles beside a few times (n + m) d.

Images and texts are sorted by label first. The matches then lie along a staircase, and a tile that it misses needs no
mask.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cmpl.losses.inputs import SQUARED_LENGTH_FLOOR

Products = Literal["float32", "bf16"]

# On a CPU 4 MB of float32 stay in the cache between the operations on a tile; elsewhere a tile must occupy the device.
_TILE_SIDE = {"cpu": 1024}
_TILE_SIDE_ELSEWHERE = 4096


def tile_side(device: torch.device) -> int:
    """Side of the square tiles on a device. A batch that fits into one tile has no use for them."""
    return _TILE_SIDE.get(device.type, _TILE_SIDE_ELSEWHERE)


def tiled_divergences(
    images: Tensor, texts: Tensor, image_labels: Tensor, text_labels: Tensor, epsilon: float, products: Products
) -> tuple[Tensor, Tensor]:
    """Both terms of `cmpm_terms`, which says what they are. They can be differentiated once.

    images [n, d], texts [m, d]: one type, float32 or float64. image_labels [n], text_labels [m]: int64, on the same
    device, each with a match. products: "bf16" multiplies matrices in bfloat16; all else stays in the images' type.
    """
    settings = _Settings(epsilon, torch.bfloat16 if products == "bf16" else images.dtype, tile_side(images.device))
    divergences: tuple[Tensor, Tensor] = _TiledDivergences.apply(
        images, texts, *image_labels.sort(stable=True), *text_labels.sort(stable=True), settings
    )
    return divergences


class _Settings(NamedTuple):
    epsilon: float
    product_dtype: torch.dtype
    side: int


class _TiledDivergences(torch.autograd.Function):
    """Takes vectors in their own order, labels sorted, and that order. Saves four numbers a row and a column."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        image_labels: Tensor,
        image_order: Tensor,
        text_labels: Tensor,
        text_order: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        rows = _Sorted.of(images, image_labels, image_order, settings)
        columns = _Sorted.of(texts, text_labels, text_order, settings)
        over_texts, over_images = _RunningSoftmax(rows.lengths), _RunningSoftmax(columns.lengths)
        for tile in _tiles(rows, columns, settings):
            over_texts.add(tile)
            over_images.add(tile.transposed())
        image_to_text, row_state = over_texts.divergences(_matches_of(rows, columns), settings.epsilon)
        text_to_image, column_state = over_images.divergences(_matches_of(columns, rows), settings.epsilon)
        ctx.save_for_backward(
            images, texts, image_labels, image_order, text_labels, text_order, row_state, column_state
        )
        ctx.settings = settings
        return image_to_text.mean(), text_to_image.mean()

    @staticmethod
    def backward(ctx: Any, image_to_text: Tensor, text_to_image: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable takes the gradient for a constant where upstream is one, and raises nothing.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("CMPM by tiles can be differentiated once; smaller batches can be twice")
        images, texts, image_labels, image_order, text_labels, text_order, row_state, column_state = ctx.saved_tensors
        rows = _Sorted.of(images, image_labels, image_order, ctx.settings)
        columns = _Sorted.of(texts, text_labels, text_order, ctx.settings)
        over_texts = _SoftmaxGradient(row_state, rows.lengths, image_to_text / len(images))
        over_images = _SoftmaxGradient(column_state, columns.lengths, text_to_image / len(texts))
        row_gradient = _DirectionGradient(images) if ctx.needs_input_grad[0] else None
        column_gradient = _DirectionGradient(texts) if ctx.needs_input_grad[1] else None
        with torch.autocast(images.device.type, enabled=False):
            for tile in _tiles(rows, columns, ctx.settings):
                by_row, by_column = over_texts.of(tile), over_images.of(tile.transposed()).T
                both = (by_row + by_column).to(ctx.settings.product_dtype)
                if row_gradient is not None:
                    row_gradient.add(tile.rows, both @ columns.units[tile.columns], by_column.mul_(tile.cosines))
                if column_gradient is not None:
                    column_gradient.add(tile.columns, both.T @ rows.units[tile.rows], by_row.mul_(tile.cosines).T)
        return (
            None if row_gradient is None else row_gradient.of(images, image_order),
            None if column_gradient is None else column_gradient.of(texts, text_order),
            *(None,) * 5,
        )


class _Sorted(NamedTuple):
    """One modality in the order of its labels."""

    units: Tensor  # [n, d], of length 1, in the type of the products
    lengths: Tensor  # [n, 1]
    labels: Tensor  # [n]

    @classmethod
    def of(cls, vectors: Tensor, labels: Tensor, order: Tensor, settings: _Settings) -> "_Sorted":
        lengths = _lengths(vectors)[order]
        units = vectors.index_select(0, order).div_(lengths)
        return cls(units.to(settings.product_dtype), lengths, labels)


class _Tile(NamedTuple):
    cosines: Tensor
    matches: Tensor | None  # None where nothing matches
    rows: slice
    columns: slice

    def transposed(self) -> "_Tile":
        return _Tile(self.cosines.T, None if self.matches is None else self.matches.T, self.columns, self.rows)


def _tiles(rows: _Sorted, columns: _Sorted, settings: _Settings) -> Iterator[_Tile]:
    """All tiles of the cosines of `rows` and `columns`, row by row."""
    tile_columns = min(len(columns.units), settings.side)
    tile_rows = min(len(rows.units), settings.side**2 // tile_columns)
    tile_columns = min(len(columns.units), settings.side**2 // tile_rows)
    row_slices, column_slices = _slices(len(rows.units), tile_rows), _slices(len(columns.units), tile_columns)
    row_spans, column_spans = _spans(rows.labels, row_slices), _spans(columns.labels, column_slices)
    middle = _middle_cosine(rows, columns) if settings.product_dtype == torch.bfloat16 else None
    for row_slice, row_span in zip(row_slices, row_spans, strict=True):
        for column_slice, column_span in zip(column_slices, column_spans, strict=True):
            matches = None
            if row_span[0] <= column_span[1] and column_span[0] <= row_span[1]:
                matches = rows.labels[row_slice, None] == columns.labels[column_slice]
            cosines = _product(rows.units[row_slice], columns.units[column_slice].T, middle, rows.lengths.dtype)
            yield _Tile(cosines, matches, row_slice, column_slice)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _spans(labels: Tensor, slices: list[slice]) -> list[tuple[float, float]]:
    """First and last of the sorted labels in each slice.

    Unbounded where looking at values would break torch.compile's graph or wait for the device.
    """
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return [(-math.inf, math.inf)] * len(slices)
    ends = labels[[index for part in slices for index in (part.start, part.stop - 1)]].tolist()
    return list(zip(ends[::2], ends[1::2], strict=True))


def _middle_cosine(rows: _Sorted, columns: _Sorted) -> Tensor:
    """The mean cosine of matches, one for each row, as a bfloat16 number [1].

    A product of bfloat16 matrices is rounded to bfloat16 at the end. Taken off before that, this number moves the small
    rounding errors from where the cosine is near 0 to where it is near that of a match, and the softmax is large.
    """
    partners = torch.searchsorted(columns.labels, rows.labels).clamp(max=len(columns.labels) - 1)
    cosines = (rows.units * columns.units[partners]).sum(1, dtype=rows.lengths.dtype)
    return cosines.mean(0, keepdim=True).bfloat16()


def _product(left: Tensor, right: Tensor, middle: Tensor | None, dtype: torch.dtype) -> Tensor:
    if middle is None:
        return left @ right
    return torch.addmm(-middle, left, right).to(dtype).add_(middle)


def _matches_of(rows: _Sorted, columns: _Sorted) -> Tensor:
    """How many columns match each row, [n, 1]."""
    past_last = torch.searchsorted(columns.labels, rows.labels, right=True)
    return (past_last - torch.searchsorted(columns.labels, rows.labels))[:, None]


class _RunningSoftmax:
    """Statistics of p, the softmax along each row of lengths x cosines, over the tiles seen so far.

    top: the largest logit. Relative to it: total, the sum of exp(logit - top); weighted, that sum with each summand
    times (logit - top); astray, that sum without the matches. Each [n, 1].
    """

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths
        # Finite, so that the first shift is no difference of infinities.
        self.top = torch.full_like(lengths, torch.finfo(lengths.dtype).min / 4)
        self.total, self.weighted, self.astray = (torch.zeros_like(lengths) for _ in range(3))

    def add(self, tile: _Tile) -> None:
        at, lengths = tile.rows, self.lengths[tile.rows]
        top = torch.maximum(self.top[at], lengths * tile.cosines.amax(1, keepdim=True))
        below_top = torch.addcmul(-top, tile.cosines, lengths)
        summands = below_top.exp()
        total = summands.sum(1, keepdim=True)
        weighted = below_top.mul_(summands).sum(1, keepdim=True)
        astray = total if tile.matches is None else summands.masked_fill_(tile.matches, 0).sum(1, keepdim=True)
        shift = self.top[at] - top
        shrink = shift.exp()
        self.weighted[at] = shrink * (self.weighted[at] + shift * self.total[at]) + weighted
        self.total[at] = shrink * self.total[at] + total
        self.astray[at] = shrink * self.astray[at] + astray
        self.top[at] = top

    def divergences(self, matches: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """KL(p || q) of each row [n, 1] for its number of matches [n, 1], and what the gradient needs [4, n, 1].

        The gradient with respect to a logit is p (log p - log(q + epsilon) - divergence). The state holds what makes
        of (logit - top) that bracket: the first for a pair that doesn't match, the second for a match.
        """
        log_total, log_epsilon = self.total.log(), math.log(epsilon)
        log_q_at_match = (1 / matches.to(self.total.dtype) + epsilon).log()
        divergences = self.weighted / self.total - log_total - log_q_at_match
        divergences += self.astray / self.total * (log_q_at_match - log_epsilon)
        offset = log_total + divergences
        return divergences, torch.stack((self.top, self.total, offset + log_epsilon, offset + log_q_at_match))


class _SoftmaxGradient:
    """Gradient of one direction, times `upstream`, with respect to the cosines."""

    def __init__(self, state: Tensor, lengths: Tensor, upstream: Tensor) -> None:
        self.lengths = lengths
        self.top, total, self.offset, self.offset_at_match = state
        self.factor = lengths * upstream / total

    def of(self, tile: _Tile) -> Tensor:
        at = tile.rows
        bracket = torch.addcmul(-self.top[at], tile.cosines, self.lengths[at])
        gradient = bracket.exp()
        if tile.matches is None:
            bracket -= self.offset[at]
        else:
            bracket -= torch.where(tile.matches, self.offset_at_match[at], self.offset[at])
        return gradient.mul_(bracket).mul_(self.factor[at])


class _DirectionGradient:
    """Sums up the gradient of one modality's vectors, in sorted order.

    Along a vector itself only the direction from its modality counts, which has its length as a factor; the other one
    projects onto it, and what that direction contributes along it is taken off again.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.units = torch.zeros_like(vectors)
        self.radial = vectors.new_zeros(len(vectors), 1)

    def add(self, at: slice, units: Tensor, radial: Tensor) -> None:
        """Gradient of the rows `at` of the unit vectors, and what each of its products with a unit vector is."""
        self.units[at] += units
        self.radial[at] += radial.sum(1, keepdim=True)

    def of(self, vectors: Tensor, order: Tensor) -> Tensor:
        """With respect to `vectors`, in their own order."""
        lengths = _lengths(vectors)
        projected = vectors.square().sum(1, keepdim=True) >= SQUARED_LENGTH_FLOOR  # a shorter one is only scaled
        radial = torch.empty_like(self.radial).index_copy_(0, order, self.radial) * projected
        gradient = torch.empty_like(vectors).index_copy_(0, order, self.units).div_(lengths)
        return gradient.addcmul_(vectors, -radial / lengths.square())


def _lengths(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1, keepdim=True).clamp(min=SQUARED_LENGTH_FLOOR).sqrt()
