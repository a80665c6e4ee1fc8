"""The published text encoder: word embedding, bidirectional LSTM, max pooling over the words.

On a CPU the LSTM and the maximum over time run on packed captions with their gradients written out. PyTorch's own way
sums the recurrent weight's gradient step by step, casts all weights anew at each step under autocast, and pads before
the maximum. Here a step is one product with the captions still going on, the weight's gradient is one product at the
end, and nothing is padded.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from crosspair.data.tokens import PADDING
from crosspair.registry import register_text_encoder

_ORIGINAL_ROWS = 12_000  # of the original's word embedding, whatever the vocabulary


@register_text_encoder("bilstm")
class BiLSTMEncoder(nn.Module):
    """Word embedding, one bidirectional LSTM with learned initial states, maximum over time (paper, section 3).

    vocabulary_size: rows of the embedding table, padding and unknown word included.
    dropout: share of word embedding values and of LSTM outputs dropped in training (published: 0.3).
    pool_padding: let the zeros behind a caption's end take part in the maximum, as the original did; features then
        depend on the longest caption of the batch.
    initializer: of the word embedding and the initial states, see `TextEncoderConfig`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        word_dim: int = 512,
        hidden_dim: int = 512,
        *,
        dropout: float = 0.3,
        pool_padding: bool = False,
        initializer: Literal["xavier", "original"] = "xavier",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, word_dim)
        self.lstm = nn.LSTM(word_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.fix_second_biases()
        self.initial_hidden = nn.Parameter(torch.empty(2, hidden_dim))
        self.initial_cell = nn.Parameter(torch.empty(2, hidden_dim))
        self.dropout = nn.Dropout(dropout)
        self.pool_padding = pool_padding
        self.num_features = 2 * hidden_dim
        self.reset_parameters(initializer)

    def fix_second_biases(self) -> None:
        """Freeze one of the LSTM's two biases: training both would move their sum twice as far as one bias."""
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.lstm.bias_hh_l0_reverse.requires_grad_(False)

    @torch.no_grad()
    def reset_parameters(self, initializer: Literal["xavier", "original"] = "xavier") -> None:
        """Xavier for all weights, zero for all biases but the forget gate's, which is 1 (as the original starts)."""
        if initializer == "original":
            bound = (6 / (_ORIGINAL_ROWS + self.embedding.embedding_dim)) ** 0.5
            nn.init.uniform_(self.embedding.weight, -bound, bound)
        else:
            nn.init.xavier_uniform_(self.embedding.weight)
        self.embedding.weight[PADDING] = 0
        hidden = self.lstm.hidden_size
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                parameter.zero_()
                if name.startswith("bias_ih"):
                    parameter[hidden : 2 * hidden] = 1
        # One kernel [4 hidden, word + hidden] in the original: its Xavier bound counts both inputs.
        bound = (6 / (self.lstm.input_size + hidden + 4 * hidden)) ** 0.5
        for name, parameter in self.lstm.named_parameters():
            if "weight" in name:
                nn.init.uniform_(parameter, -bound, bound)
        for state in (self.initial_hidden, self.initial_cell):
            if initializer == "original":  # a vector a direction, whose Xavier bound counts its length twice
                nn.init.uniform_(state, -((3 / hidden) ** 0.5), (3 / hidden) ** 0.5)
            else:
                nn.init.xavier_uniform_(state)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [m, t] padded at the end, lengths int64 [m], at least 1 -> features [m, 2 * hidden_dim]."""
        packed = pack_padded_sequence(tokens, lengths.cpu(), batch_first=True, enforce_sorted=False)
        words = packed._replace(data=self.dropout(self.embedding(packed.data)))
        features = self._pool(words, self.dropout(self._states(words)))
        if self.pool_padding:
            padded = (lengths < tokens.shape[1]).to(features.device)[:, None]
            features = torch.where(padded, features.clamp(min=0), features)
        return features

    def _states(self, words: PackedSequence) -> Tensor:
        """Hidden states of both directions, [n, 2 * hidden_dim], row by row as the packed words [n, word_dim]."""
        if words.data.device.type != "cpu":
            captions = int(words.batch_sizes[0])
            initial = [state[:, None].repeat(1, captions, 1) for state in (self.initial_hidden, self.initial_cell)]
            states: Tensor = self.lstm(words, (initial[0], initial[1]))[0].data
            return states
        directions = []
        for direction, suffix in enumerate(("l0", "l0_reverse")):
            names = ("weight_ih", "bias_ih", "bias_hh", "weight_hh")
            weight, bias, second_bias, recurrent = (getattr(self.lstm, f"{name}_{suffix}") for name in names)
            inputs = F.linear(words.data, weight, bias + second_bias)
            hidden, cell = self.initial_hidden[direction], self.initial_cell[direction]
            directions.append(lstm_states(inputs, recurrent, hidden, cell, words.batch_sizes, reverse=direction == 1))
        return torch.cat(directions, dim=1)

    def _pool(self, words: PackedSequence, states: Tensor) -> Tensor:
        """Maximum over each caption's words: packed states [n, d] -> [m, d], captions as they were given."""
        if states.device.type == "cpu":
            return max_over_time(states, words.batch_sizes)[words.unsorted_indices]
        padded, _ = pad_packed_sequence(words._replace(data=states), batch_first=True, padding_value=-torch.inf)
        return padded.amax(dim=1)


def lstm_states(
    inputs: Tensor, weight: Tensor, initial_hidden: Tensor, initial_cell: Tensor, batch_sizes: Tensor, *, reverse: bool
) -> Tensor:
    """Hidden states [n, h] of one direction, row by row as the packed `inputs` [n, 4h].

    inputs: what each word adds to the gates (input, forget, candidate, output), biases included. weight [4h, h]: what
    the hidden state before it adds. initial_hidden, initial_cell [h]: where every caption starts. batch_sizes int64
    [t]: of a PackedSequence. Inside autocast the products are in its type, states and sums in that of `weight`.
    """
    device = inputs.device.type
    matmul_precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        states: Tensor = _Recurrence.apply(
            inputs.to(weight.dtype),
            weight,
            initial_hidden,
            initial_cell,
            batch_sizes.tolist(),
            reverse,
            matmul_precision,
        )
    return states


def max_over_time(states: Tensor, batch_sizes: Tensor) -> Tensor:
    """Largest value of each caption's rows: packed states [n, d] -> [m, d], captions in their packed order.

    The gradient goes to the first row that has the largest value.
    """
    best: Tensor = _MaxOverTime.apply(states, batch_sizes.tolist())
    return best


def _steps(batch_sizes: list[int], reverse: bool) -> list[tuple[int, int]]:
    """First row and number of rows of each time step, in the order of computation."""
    starts = [0]
    for size in batch_sizes[:-1]:
        starts.append(starts[-1] + size)
    steps = list(zip(starts, batch_sizes, strict=True))
    return steps[::-1] if reverse else steps


def _before(values: Tensor, initial: Tensor, steps: list[tuple[int, int]]) -> Tensor:
    """The state that each row started from: the row of the same caption one step earlier, or the initial state."""
    before = torch.empty_like(values)
    earlier, rows = 0, 0  # of the step before
    for start, size in steps:
        known = min(size, rows)
        before[start : start + known] = values[earlier : earlier + known]
        before[start + known : start + size] = initial
        earlier, rows = start, size
    return before


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        initial_hidden: Tensor,
        initial_cell: Tensor,
        batch_sizes: list[int],
        reverse: bool,
        matmul_precision: torch.dtype,
    ) -> Tensor:
        steps = _steps(batch_sizes, reverse)
        size = weight.shape[1]
        gates = inputs.clone()  # becomes sigmoid or tanh of the gates, step by step
        cells, squashed, states = (inputs.new_empty(len(inputs), size) for _ in range(3))
        hidden = initial_hidden.repeat(batch_sizes[0], 1)
        cell = initial_cell.repeat(batch_sizes[0], 1)
        recurrent = weight.to(matmul_precision).T
        for start, active in steps:
            rows = slice(start, start + active)
            gate = gates[rows]
            if matmul_precision == weight.dtype:
                gate.addmm_(hidden[:active], recurrent)
            else:
                gate += hidden[:active].to(matmul_precision) @ recurrent
            gate[:, : 2 * size].sigmoid_()
            gate[:, 2 * size : 3 * size].tanh_()
            gate[:, 3 * size :].sigmoid_()
            entrance, forget, candidate, exit_ = gate.chunk(4, dim=1)
            torch.mul(forget, cell[:active], out=cells[rows]).addcmul_(entrance, candidate)
            torch.tanh(cells[rows], out=squashed[rows])
            torch.mul(exit_, squashed[rows], out=states[rows])
            hidden[:active] = states[rows]
            cell[:active] = cells[rows]
        ctx.save_for_backward(weight, initial_hidden, initial_cell, gates, cells, squashed, states)
        ctx.steps, ctx.matmul_precision = steps, matmul_precision
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor | None, ...]:
        weight, initial_hidden, initial_cell, gates, cells, squashed, states = ctx.saved_tensors
        steps, matmul_precision = ctx.steps, ctx.matmul_precision
        size = weight.shape[1]
        cells_before = _before(cells, initial_cell, steps)
        d_gates = torch.empty_like(gates)
        d_hidden, d_cell = (states.new_zeros(max(active for _, active in steps), size) for _ in range(2))
        d_initial_hidden, d_initial_cell = torch.zeros_like(initial_hidden), torch.zeros_like(initial_cell)
        recurrent = weight.to(matmul_precision)
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward.grad_input
        for number in range(len(steps) - 1, -1, -1):
            start, active = steps[number]
            rows = slice(start, start + active)
            entrance, forget, candidate, exit_ = gates[rows].chunk(4, dim=1)
            d_entrance, d_forget, d_candidate, d_exit = d_gates[rows].chunk(4, dim=1)
            d_h, d_c = d_hidden[:active], d_cell[:active]
            d_h += d_states[rows]
            sigmoid_backward(d_h * squashed[rows], exit_, grad_input=d_exit)
            d_c += torch.ops.aten.tanh_backward(d_h * exit_, squashed[rows])
            sigmoid_backward(d_c * candidate, entrance, grad_input=d_entrance)
            tanh_backward(d_c * entrance, candidate, grad_input=d_candidate)
            sigmoid_backward(d_c * cells_before[rows], forget, grad_input=d_forget)
            d_c *= forget
            d_h.copy_(d_gates[rows].to(matmul_precision) @ recurrent)
            known = min(active, steps[number - 1][1]) if number else 0
            d_initial_hidden += d_h[known:].sum(dim=0)
            d_initial_cell += d_c[known:].sum(dim=0)
        hidden_before = _before(states, initial_hidden, steps)
        d_weight = (d_gates.to(matmul_precision).T @ hidden_before.to(matmul_precision)).to(weight.dtype)
        return d_gates, d_weight, d_initial_hidden, d_initial_cell, None, None, None


class _MaxOverTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, batch_sizes: list[int]) -> Tensor:
        ctx.steps = _steps(batch_sizes, reverse=False)
        best = states[: batch_sizes[0]].clone()
        when = torch.zeros(best.shape, dtype=torch.int16)
        for time, (start, active) in enumerate(ctx.steps):
            now, most = states[start : start + active], best[:active]
            when[:active].masked_fill_(now > most, time)
            torch.maximum(now, most, out=most)
        ctx.save_for_backward(when)
        return best

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_best: Tensor) -> tuple[Tensor, None]:
        (when,) = ctx.saved_tensors
        d_states = d_best.new_empty(sum(active for _, active in ctx.steps), d_best.shape[1])
        for time, (start, active) in enumerate(ctx.steps):
            torch.mul(d_best[:active], when[:active] == time, out=d_states[start : start + active])
        return d_states, None
