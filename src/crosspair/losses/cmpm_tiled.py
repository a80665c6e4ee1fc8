"""CMPM of large batches, by tiles: both directions from one product, and no matrix of all pairs.

With c_ij the cosine of image i and text j, both directions are softmaxes of the same numbers: x_i . z_j / |z_j| is
|x_i| c_ij, and z_j . x_i / |x_i| is |z_j| c_ij. The forward computes the cosines a tile at a time, keeps the softmax
statistics of their rows and of their columns, and drops them. The backward computes each tile again, adds the two
directions' gradients with respect to the cosines, and multiplies the sum by the texts and by the images: 4 products of
n m d where autograd makes 6 of the formula as written, and memory for a few tiles beside a few times (n + m) d.

Images and texts are sorted by label first. The matches then lie along a staircase, and masks are made only of the
blocks that it passes. All passes over a tile are in place or into memory that all tiles share.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from crosspair.losses.base import SQUARED_LENGTH_FLOOR

MatmulPrecision = Literal["float32", "bf16"]

# On a CPU a few times 4 MB stay in the cache between the passes over a tile; elsewhere a tile must occupy the device.
_TILE_SIDE = {"cpu": 1024}
_TILE_SIDE_ELSEWHERE = 4096
_BLOCK_ROWS = 128  # of a tile that are compared with the labels of its columns at a time
_SHORTEST = SQUARED_LENGTH_FLOOR**0.5
_BITS = math.log2(math.e)  # exp2 has vector instructions where exp calls a library, three times as long


def tile_side(device: torch.device) -> int:
    """Side of the square tiles on a device. A batch that fits into one tile has no use for them."""
    return _TILE_SIDE.get(device.type, _TILE_SIDE_ELSEWHERE)


def tiled_divergences(
    images: Tensor,
    texts: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    epsilon: float,
    matmul_precision: MatmulPrecision,
) -> tuple[Tensor, Tensor]:
    """Both terms of `cmpm_terms`, computed by tiles. They can be differentiated once.

    images [n, d], texts [m, d]: one type, float32 or float64. image_labels [n], text_labels [m]: int64, on the same
    device, each with a match. matmul_precision: "bf16" multiplies matrices in bfloat16; all else stays in the images'
    type.
    """
    settings = _Settings(
        epsilon, torch.bfloat16 if matmul_precision == "bf16" else images.dtype, tile_side(images.device)
    )
    divergences: tuple[Tensor, Tensor] = _TiledDivergences.apply(
        images, texts, *image_labels.sort(stable=True), *text_labels.sort(stable=True), settings
    )
    return divergences


class _Settings(NamedTuple):
    epsilon: float
    product_dtype: torch.dtype
    side: int


class _TiledDivergences(torch.autograd.Function):
    """Takes vectors in their own order, labels sorted, and that order. Saves unit vectors, no tile."""

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
        over_texts, over_images = _RunningSoftmax(rows.lengths, 1), _RunningSoftmax(columns.lengths, 0)
        middle = _middle_cosine(rows, columns)
        work = _Workspace(images, settings)
        for tile in _tiles(rows, columns, middle, work, settings):
            over_texts.add(tile, work)
            over_images.add(tile, work)
        image_to_text, row_state = over_texts.divergences(_matches_of(rows, columns), settings.epsilon)
        text_to_image, column_state = over_images.divergences(_matches_of(columns, rows), settings.epsilon)
        ctx.save_for_backward(images, texts, *rows, *columns, middle, image_order, text_order, row_state, column_state)
        ctx.settings = settings
        return image_to_text.mean(), text_to_image.mean()

    @staticmethod
    def backward(ctx: Any, image_to_text: Tensor, text_to_image: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable takes the gradient for a constant where upstream is one, and raises nothing.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("CMPM by tiles can be differentiated once; smaller batches can be twice")
        images, texts, *saved = ctx.saved_tensors
        rows, columns = _Sorted(*saved[:3]), _Sorted(*saved[3:6])
        middle, image_order, text_order, row_state, column_state = saved[6:]
        over_texts = _SoftmaxGradient(row_state, rows.lengths, 1, image_to_text / len(images))
        over_images = _SoftmaxGradient(column_state, columns.lengths, 0, text_to_image / len(texts))
        row_gradient = _DirectionGradient(images) if ctx.needs_input_grad[0] else None
        column_gradient = _DirectionGradient(texts) if ctx.needs_input_grad[1] else None
        work = _Workspace(images, ctx.settings)
        with torch.autocast(images.device.type, enabled=False):
            for tile in _tiles(rows, columns, middle, work, ctx.settings):
                by_row, by_column = over_texts.of(tile, work, work.by_row), over_images.of(tile, work, work.by_column)
                both = work.sum_to_multiply(by_row, by_column)
                if row_gradient is not None:
                    radial = by_column.mul_(tile.cosines).sum(1)
                    row_gradient.add(tile.rows, both @ columns.units[tile.columns], radial)
                if column_gradient is not None:
                    radial = by_row.mul_(tile.cosines).sum(0)
                    column_gradient.add(tile.columns, both.T @ rows.units[tile.rows], radial)
        return (
            None if row_gradient is None else row_gradient.of(images, rows.lengths, image_order),
            None if column_gradient is None else column_gradient.of(texts, columns.lengths, text_order),
            *(None,) * 5,
        )


class _Sorted(NamedTuple):
    """One modality in the order of its labels."""

    units: Tensor  # [n, d], of length 1, in the type of the products
    lengths: Tensor  # [n]
    labels: Tensor  # [n]

    @classmethod
    def of(cls, vectors: Tensor, labels: Tensor, order: Tensor, settings: _Settings) -> "_Sorted":
        units = vectors.index_select(0, order)
        lengths = torch.linalg.vector_norm(units, dim=1).clamp_(min=_SHORTEST)
        return cls(units.div_(lengths[:, None]).to(settings.product_dtype), lengths, labels)


class _Block(NamedTuple):
    """A part of a tile that may hold matches. Slices count from the tile's own corner."""

    where: tuple[slice, slice]
    matches: Tensor


class _Tile(NamedTuple):
    cosines: Tensor
    blocks: list[_Block]  # all matches lie in these
    rows: slice
    columns: slice

    def along(self, dim: int) -> slice:
        """Which of the vectors that tell the rows apart (for dim 1; for 0 the columns) belong to this tile."""
        return self.rows if dim == 1 else self.columns


class _Workspace:
    """Memory for the passes over a tile, named by what it holds. Fresh memory would take longer to come by than a pass.

    Four tiles are enough: what shares memory here is never needed at the same time.
    """

    def __init__(self, like: Tensor, settings: _Settings) -> None:
        self.cosines, first, second, third = like.new_empty(4, settings.side**2).unbind()
        self.logits = self.by_row = first  # of the forward pass; the gradient over texts
        self.by_column = second  # the gradient over images
        self.exponentials = self.both = third  # of logits; the sum of both gradients
        self.product = like.new_empty(settings.side**2, dtype=settings.product_dtype)

    def sum_to_multiply(self, by_row: Tensor, by_column: Tensor) -> Tensor:
        """Of two tiles, in the type of the products."""
        both = torch.add(by_row, by_column, out=_shaped(self.both, by_row))
        return both if both.dtype == self.product.dtype else _shaped(self.product, both).copy_(both)


def _shaped(memory: Tensor, like: Tensor) -> Tensor:
    return memory[: like.numel()].view_as(like)


def _tiles(
    rows: _Sorted, columns: _Sorted, middle: Tensor | None, work: _Workspace, settings: _Settings
) -> Iterator[_Tile]:
    """All tiles of the cosines of `rows` and `columns`, row by row."""
    tile_columns = min(len(columns.units), settings.side)
    tile_rows = min(len(rows.units), settings.side**2 // tile_columns)
    tile_columns = min(len(columns.units), settings.side**2 // tile_rows)
    band = _Band(rows.labels, columns.labels)
    for row_slice in _slices(0, len(rows.units), tile_rows):
        for column_slice in _slices(0, len(columns.units), tile_columns):
            left, right = rows.units[row_slice], columns.units[column_slice].T
            shape = (left.shape[0], right.shape[1])
            cosines, product = (memory[: math.prod(shape)].view(shape) for memory in (work.cosines, work.product))
            if middle is None:
                torch.mm(left, right, out=cosines)
            else:
                cosines.copy_(product.fill_(-middle).addmm_(left, right)).add_(middle)
            yield _Tile(cosines, band.blocks(row_slice, column_slice), row_slice, column_slice)


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]


class _Band:
    """The band of a tile matrix in which the matches of sorted rows and sorted columns lie.

    It may be the whole matrix, where looking at values would break torch.compile's graph or wait for the device.
    """

    def __init__(self, row_labels: Tensor, column_labels: Tensor) -> None:
        self.row_labels, self.column_labels = row_labels, column_labels
        self.known = row_labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.known:
            self.first = torch.searchsorted(column_labels, row_labels).tolist()
            self.past_last = torch.searchsorted(column_labels, row_labels, right=True).tolist()

    def blocks(self, rows: slice, columns: slice) -> list[_Block]:
        blocks = []
        for part in _slices(rows.start, rows.stop, _BLOCK_ROWS) if self.known else [rows]:
            start, stop = columns.start, columns.stop
            if self.known:
                start, stop = max(start, self.first[part.start]), min(stop, self.past_last[part.stop - 1])
            if start < stop:
                matches = self.row_labels[part, None] == self.column_labels[start:stop]
                inside = slice(part.start - rows.start, part.stop - rows.start)
                blocks.append(_Block((inside, slice(start - columns.start, stop - columns.start)), matches))
        return blocks


def _middle_cosine(rows: _Sorted, columns: _Sorted) -> Tensor | None:
    """The mean cosine of matches, one for each row, as a bfloat16 number. None where products aren't bfloat16.

    A product of bfloat16 matrices is rounded to bfloat16 at the end. Taken off before that, this number moves the small
    rounding errors from where the cosine is near 0 to where it is near that of a match, and the softmax is large.
    """
    if rows.units.dtype != torch.bfloat16:
        return None
    partners = torch.searchsorted(columns.labels, rows.labels).clamp(max=len(columns.labels) - 1)
    cosines = (rows.units * columns.units[partners]).sum(1, dtype=rows.lengths.dtype)
    return cosines.mean().bfloat16()


def _matches_of(rows: _Sorted, columns: _Sorted) -> Tensor:
    """The number of columns that match each row, [n]."""
    past_last = torch.searchsorted(columns.labels, rows.labels, right=True)
    return past_last - torch.searchsorted(columns.labels, rows.labels)


class _RunningSoftmax:
    """Statistics, over the tiles seen so far, of p: softmax along rows (dim 1) or columns (dim 0) of lengths x cosines.

    top: the largest cosine. With a logit counted from the one that it gives: total, the sum of exp(logit); weighted,
    that sum with each summand times its logit; astray, that sum without the matches. Each [n]. Logits are in bits, that
    is times log2(e).
    """

    def __init__(self, lengths: Tensor, dim: int) -> None:
        self.lengths, self.dim = lengths * _BITS, dim
        self.top = torch.full_like(lengths, -2.0)  # below all
        self.total, self.weighted, self.astray = (torch.zeros_like(lengths) for _ in range(3))

    def add(self, tile: _Tile, work: _Workspace) -> None:
        at, dim = tile.along(self.dim), self.dim
        top = torch.maximum(self.top[at], tile.cosines.amax(dim))
        logits = _logits(tile, top, self.lengths[at], dim, work.logits)
        exponentials = torch.exp2(logits, out=_shaped(work.exponentials, logits))
        total = exponentials.sum(dim)
        weighted = logits.mul_(exponentials).sum(dim)  # the last use of the logits
        for block in tile.blocks:
            exponentials[block.where].masked_fill_(block.matches, 0)
        astray = exponentials.sum(dim) if tile.blocks else total
        shift = (self.top[at] - top) * self.lengths[at]  # what the sums so far were counted from, from here on
        shrink = shift.exp2()
        self.weighted[at] = shrink * (self.weighted[at] + shift * self.total[at]) + weighted
        self.total[at] = shrink * self.total[at] + total
        self.astray[at] = shrink * self.astray[at] + astray
        self.top[at] = top

    def divergences(self, matches: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """KL(p || q) of each row [n] for its number of matches [n], and what the gradient needs [4, n].

        The gradient with respect to a logit is p (log p - log(q + epsilon) - divergence). The state holds top, total,
        and what makes that bracket of a logit: the first for a pair that doesn't match, the second for a match.
        """
        log_total, log_epsilon = self.total.log(), math.log(epsilon)
        log_q_at_match = (1 / matches.to(self.total.dtype) + epsilon).log()
        divergences = self.weighted / self.total / _BITS - log_total - log_q_at_match
        divergences += self.astray / self.total * (log_q_at_match - log_epsilon)
        offset = log_total + divergences
        offsets = ((offset + log_epsilon) * _BITS, (offset + log_q_at_match) * _BITS)
        return divergences, torch.stack((self.top, self.total, *offsets))


class _SoftmaxGradient:
    """Gradient of one direction, times `upstream`, with respect to the cosines."""

    def __init__(self, state: Tensor, lengths: Tensor, dim: int, upstream: Tensor) -> None:
        self.lengths, self.dim = lengths * _BITS, dim
        self.top, total, self.offset, self.offset_at_match = state
        self.factor = lengths * upstream / total / _BITS

    def of(self, tile: _Tile, work: _Workspace, memory: Tensor) -> Tensor:
        """Written to `memory`."""
        at, dim = tile.along(self.dim), self.dim
        gradient = _logits(tile, self.top[at], self.lengths[at], dim, memory)
        exponentials = torch.exp2(gradient, out=_shaped(work.exponentials, gradient))
        offset_at_match = self.offset_at_match[at].unsqueeze(dim).expand_as(gradient)
        brackets_at_match = [gradient[block.where] - offset_at_match[block.where] for block in tile.blocks]
        gradient.sub_(self.offset[at].unsqueeze(dim))
        for block, bracket in zip(tile.blocks, brackets_at_match, strict=True):
            gradient[block.where] = torch.where(block.matches, bracket, gradient[block.where])
        return gradient.mul_(exponentials).mul_(self.factor[at].unsqueeze(dim))


def _logits(tile: _Tile, top: Tensor, lengths: Tensor, dim: int, memory: Tensor) -> Tensor:
    """Cosines less `top`, times `lengths`: in this order the large ones, whose exponentials count, are exact."""
    logits = torch.sub(tile.cosines, top.unsqueeze(dim), out=_shaped(memory, tile.cosines))
    return logits.mul_(lengths.unsqueeze(dim))


class _DirectionGradient:
    """Sums up the gradient of one modality's vectors, in sorted order.

    Along a vector itself only the direction from its modality counts, which has its length as a factor; the other one
    projects onto it, and what that direction contributes along it is taken off again.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.units = torch.zeros_like(vectors)
        self.radial = vectors.new_zeros(len(vectors))

    def add(self, at: slice, units: Tensor, radial: Tensor) -> None:
        """Gradient of the unit vectors `at`, and the sum of the other direction's gradient times the cosines."""
        self.units[at].add_(units)  # += would copy the sum onto itself
        self.radial[at].add_(radial)

    def of(self, vectors: Tensor, lengths: Tensor, order: Tensor) -> Tensor:
        """With respect to `vectors`, in their own order; their lengths are sorted."""
        gradient = torch.empty_like(vectors).index_copy_(0, order, self.units.div_(lengths[:, None]))
        radial = torch.empty_like(lengths).index_copy_(0, order, self.radial / lengths.square())
        projected = torch.empty_like(lengths).index_copy_(0, order, lengths) > _SHORTEST  # a shorter one is only scaled
        return gradient.addcmul_(vectors, -(radial * projected)[:, None])
