import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from crosspair.models.text import lstm_states, max_over_time

NAMES = ("inputs", "weight", "hidden", "cell")


def packed(lengths: list[int], width: int) -> PackedSequence:
    torch.manual_seed(0)
    words = torch.randn(len(lengths), max(lengths), width, dtype=torch.float64)
    return pack_padded_sequence(words, torch.tensor(lengths), batch_first=True, enforce_sorted=False)


def tensors(rows: int, size: int) -> list[Tensor]:
    torch.manual_seed(1)
    shapes = [(rows, 4 * size), (4 * size, size), (size,), (size,)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("lengths", [[4, 1, 3, 3], [2, 2], [1], [5, 1, 1, 1]])
def test_both_directions_are_those_of_pytorchs_lstm(lengths: list[int]):
    words = packed(lengths, width=3)
    torch.manual_seed(2)
    lstm = nn.LSTM(3, 5, bidirectional=True).double()
    hidden, cell = torch.randn(2, 5).double(), torch.randn(2, 5).double()
    expected = lstm(words, tuple(state[:, None].repeat(1, len(lengths), 1) for state in (hidden, cell)))[0].data
    for direction, suffix in enumerate(("l0", "l0_reverse")):
        bias = getattr(lstm, f"bias_ih_{suffix}") + getattr(lstm, f"bias_hh_{suffix}")
        inputs = words.data @ getattr(lstm, f"weight_ih_{suffix}").T + bias
        weight = getattr(lstm, f"weight_hh_{suffix}")
        seen = lstm_states(
            inputs, weight, hidden[direction], cell[direction], words.batch_sizes, reverse=direction == 1
        )
        torch.testing.assert_close(seen, expected[:, 5 * direction : 5 * (direction + 1)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_gradient_is_the_derivative(reverse: bool):
    sizes = packed([4, 1, 3, 3], width=1).batch_sizes
    arguments = tensors(int(sizes.sum()), size=3)
    assert torch.autograd.gradcheck(lambda *values: lstm_states(*values, sizes, reverse=reverse), arguments)


@pytest.mark.parametrize("reverse", [False, True])
def test_under_autocast_products_are_rounded_and_states_are_not(reverse: bool):
    sizes = packed([6, 2, 3], width=1).batch_sizes
    exact = [value.detach().float().requires_grad_() for value in tensors(int(sizes.sum()), size=16)]
    rounded = [value.detach().clone().requires_grad_() for value in exact]
    expected = lstm_states(*exact, sizes, reverse=reverse)
    with torch.autocast("cpu", torch.bfloat16):
        seen = lstm_states(*rounded, sizes, reverse=reverse)
    assert seen.dtype == torch.float32
    assert not torch.equal(seen, expected)
    torch.testing.assert_close(seen, expected, rtol=0, atol=0.03)
    expected.square().sum().backward()
    seen.square().sum().backward()
    for name, one, other in zip(NAMES, exact, rounded, strict=True):
        difference = (one.grad - other.grad).norm() / one.grad.norm()
        assert difference < 0.03, name


@pytest.mark.parametrize("lengths", [[4, 1, 3, 3], [2, 2], [1], [5, 1, 1, 1]])
def test_the_maximum_over_time_is_that_of_the_padded_captions(lengths: list[int]):
    words = packed(lengths, width=3)
    padded, _ = pad_packed_sequence(words, batch_first=True, padding_value=-torch.inf)
    assert torch.equal(max_over_time(words.data, words.batch_sizes)[words.unsorted_indices], padded.amax(dim=1))
    states = words.data.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: max_over_time(values, words.batch_sizes), [states])


def test_the_maximum_of_a_caption_with_nan_is_nan():
    states = torch.tensor([[1.0], [2.0], [torch.nan], [0.0]])
    assert max_over_time(states, torch.tensor([2, 2])).isnan().tolist() == [[True], [False]]
