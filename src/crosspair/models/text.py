"""The published text encoder: word embedding, bidirectional LSTM, max pooling over the words."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from crosspair.data.tokens import PADDING
from crosspair.models.packed import lstm_states, max_over_time


class BiLSTMEncoder(nn.Module):
    """Word embedding, one bidirectional LSTM with learned initial states, maximum over time (paper, section 3).

    vocabulary_size: rows of the embedding table, padding and unknown word included.
    dropout: share of word embedding values and of LSTM outputs dropped in training (published: 0.3).
    pool_padding: let the zeros behind a caption's end take part in the maximum, as the original did; features then
        depend on the longest caption of the batch.
    """

    def __init__(
        self,
        vocabulary_size: int,
        word_dim: int = 512,
        hidden_dim: int = 512,
        *,
        dropout: float = 0.3,
        pool_padding: bool = False,
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
        self.reset_parameters()

    def fix_second_biases(self) -> None:
        """PyTorch's LSTM adds two biases; training both would move their sum twice as far as one bias."""
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.lstm.bias_hh_l0_reverse.requires_grad_(False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Xavier for all weights, zero for all biases but the forget gate's, which is 1 (as the original starts)."""
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
        nn.init.xavier_uniform_(self.initial_hidden)
        nn.init.xavier_uniform_(self.initial_cell)

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
