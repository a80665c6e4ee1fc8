"""The text encoder's training step on a CPU against the same one through torch.nn.LSTM, in one run, alternating.

    python benchmarks/text_encoder.py [--threads 2] [--rounds 5]

640 captions of 11 words on average, 512 units a direction, forward and backward, in float32 and under bf16 autocast.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from crosspair.models.text import BiLSTMEncoder

CAPTIONS, LONGEST, WORDS = 640, 24, 2500


def through_pytorch(encoder: BiLSTMEncoder, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The same features by torch.nn.LSTM on padded captions."""
    words = encoder.dropout(encoder.embedding(tokens))
    packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
    initial = [state[:, None].repeat(1, len(tokens), 1) for state in (encoder.initial_hidden, encoder.initial_cell)]
    states, _ = pad_packed_sequence(encoder.lstm(packed, (initial[0], initial[1]))[0], batch_first=True)
    padding = torch.arange(states.shape[1]) >= lengths[:, None]
    return encoder.dropout(states).masked_fill(padding[..., None], -torch.inf).amax(dim=1)


def seconds(features: Callable[[], Tensor], bf16: bool) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        value = features().float().sum()
    value.backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lengths = (torch.randn(CAPTIONS) * 3.5 + 10.8).round().clamp(3, LONGEST).long()
    tokens = torch.randint(2, WORDS, (CAPTIONS, int(lengths.max())))
    encoder = BiLSTMEncoder(WORDS).train()
    ways: dict[str, Callable[[], Tensor]] = {
        "torch.nn.LSTM": lambda: through_pytorch(encoder, tokens, lengths),
        "crosspair": lambda: encoder(tokens, lengths),
    }
    for bf16 in (False, True):
        for features in ways.values():
            seconds(features, bf16)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, features in ways.items():
                times[name].append(seconds(features, bf16))
        theirs, ours = times["torch.nn.LSTM"], times["crosspair"]
        ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
        name = "bf16" if bf16 else "float32"
        print(
            f"{name}, {options.threads} threads: torch.nn.LSTM {statistics.median(theirs):.2f} s, crosspair "
            f"{statistics.median(ours):.2f} s, ratio {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
