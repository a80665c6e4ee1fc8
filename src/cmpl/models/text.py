"""The published text encoder: word embedding, bidirectional LSTM, max pooling over the words."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cmpl.data.text import PADDING


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
        # PyTorch's LSTM adds two biases; training both would move their sum twice as far as one bias.
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.lstm.bias_hh_l0_reverse.requires_grad_(False)
        self.initial_hidden = nn.Parameter(torch.empty(2, hidden_dim))
        self.initial_cell = nn.Parameter(torch.empty(2, hidden_dim))
        self.dropout = nn.Dropout(dropout)
        self.pool_padding = pool_padding
        self.num_features = 2 * hidden_dim
        self.reset_parameters()

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
        words = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        shape = (2, len(tokens), self.lstm.hidden_size)
        hidden = self.initial_hidden[:, None].expand(shape).to(words.dtype).contiguous()
        cell = self.initial_cell[:, None].expand(shape).to(words.dtype).contiguous()
        packed_states, _ = self.lstm(packed, (hidden, cell))
        states, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=tokens.shape[1])
        states = self.dropout(states)
        if not self.pool_padding:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            padding = positions >= lengths.to(tokens.device, non_blocking=True)[:, None]
            states = states.masked_fill(padding[..., None], -torch.inf)
        features: Tensor = states.amax(dim=1)
        return features
