import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from crosspair.data.tokens import PADDING, pad
from crosspair.models.text import BiLSTMEncoder, lstm_states, max_over_time

CAPTIONS = [[2, 3, 4, 5], [6], [7, 3]]


def encoder(**options) -> BiLSTMEncoder:
    torch.manual_seed(1)
    return BiLSTMEncoder(10, word_dim=5, hidden_dim=4, **{"dropout": 0.0, **options}).double()


def one_direction(net: BiLSTMEncoder, words: Tensor, suffix: str, direction: int) -> list[Tensor]:
    """Hidden states [hidden] of one caption's words [t, word], step by step from the textbook's equations."""
    kernels = dict(net.lstm.named_parameters())
    hidden, cell = net.initial_hidden[direction], net.initial_cell[direction]
    states = []
    for word in words:
        gates = (
            kernels[f"weight_ih_l0{suffix}"] @ word
            + kernels[f"weight_hh_l0{suffix}"] @ hidden
            + kernels[f"bias_ih_l0{suffix}"]
        )
        entering, forget, candidate, leaving = gates.chunk(4)
        cell = forget.sigmoid() * cell + entering.sigmoid() * candidate.tanh()
        hidden = leaving.sigmoid() * cell.tanh()
        states.append(hidden)
    return states


def naive_features(net: BiLSTMEncoder, caption: list[int]) -> Tensor:
    words = net.embedding.weight[torch.tensor(caption)]
    forward = one_direction(net, words, "", 0)
    backward = one_direction(net, words.flip(0), "_reverse", 1)[::-1]
    return torch.stack([torch.cat(pair) for pair in zip(forward, backward, strict=True)]).amax(0)


def test_features_are_the_maximum_of_a_step_by_step_lstm_over_the_words():
    net = encoder()
    with torch.no_grad():  # away from the start, where biases are alike
        for parameter in (net.lstm.bias_ih_l0, net.lstm.bias_ih_l0_reverse):
            parameter.normal_()
    expected = torch.stack([naive_features(net, caption) for caption in CAPTIONS])
    torch.testing.assert_close(net(*pad(CAPTIONS)), expected, rtol=1e-12, atol=1e-12)


def test_features_of_a_caption_do_not_depend_on_its_batch():
    net = encoder()
    together = net(*pad(CAPTIONS))
    for caption, features in zip(CAPTIONS, together, strict=True):
        torch.testing.assert_close(net(*pad([caption]))[0], features, rtol=1e-12, atol=1e-12)


def test_with_pool_padding_the_zeros_behind_a_caption_take_part():
    net = encoder(pool_padding=True)
    alone, together = net(*pad([[6]]))[0], net(*pad(CAPTIONS))[1]
    torch.testing.assert_close(together, alone.clamp(min=0), rtol=1e-12, atol=1e-12)
    assert (alone < 0).any()


def test_the_padding_number_is_never_looked_at():
    net = encoder()
    tokens, lengths = pad(CAPTIONS)
    changed = tokens.where(tokens != PADDING, torch.tensor(9))
    assert torch.equal(net(tokens, lengths), net(changed, lengths))


def test_gradients_are_those_of_finite_differences():
    net = encoder()
    names, values = zip(*[(n, v) for n, v in net.named_parameters() if v.requires_grad], strict=True)
    tokens, lengths = pad(CAPTIONS)

    def features(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (tokens, lengths))

    assert torch.autograd.gradcheck(features, tuple(value.detach().requires_grad_() for value in values))


def test_initial_states_learn_and_the_second_bias_does_not():
    net = encoder()
    net(*pad(CAPTIONS)).sum().backward()
    for learned in (net.initial_hidden, net.initial_cell, net.lstm.bias_ih_l0, net.lstm.bias_ih_l0_reverse):
        assert learned.grad.abs().sum() > 0
    for second in (net.lstm.bias_hh_l0, net.lstm.bias_hh_l0_reverse):
        assert second.grad is None
        assert not second.any()


def test_the_start_is_xavier_with_an_open_forget_gate():
    net = BiLSTMEncoder(10, word_dim=30, hidden_dim=20)
    for suffix in ("", "_reverse"):
        bias = getattr(net.lstm, f"bias_ih_l0{suffix}").view(4, 20)
        assert bias[1].eq(1).all()
        assert not bias[[0, 2, 3]].any()
        for kernel in (getattr(net.lstm, f"weight_{kind}_l0{suffix}") for kind in ("ih", "hh")):
            bound = (6 / (30 + 20 + 80)) ** 0.5  # the original's one kernel [word + hidden, 4 hidden]
            assert bound * 0.95 < kernel.abs().max() <= bound
    assert not net.embedding.weight[PADDING].any()


def test_the_originals_start_has_the_bounds_of_its_tables():
    torch.manual_seed(0)
    net = BiLSTMEncoder(3000, word_dim=512, hidden_dim=512, initializer="original")
    assert net.embedding.weight.abs().max().item() == pytest.approx((6 / 12_512) ** 0.5, rel=0.001)
    for state in (net.initial_hidden, net.initial_cell):
        assert state.abs().max().item() == pytest.approx((3 / 512) ** 0.5, rel=0.02)
    assert not net.embedding.weight[PADDING].any()


def test_dropout_acts_in_training_only():
    net = encoder(dropout=0.5)
    batch = pad(CAPTIONS)
    assert not torch.equal(net(*batch), net(*batch))
    net.eval()
    assert torch.equal(net(*batch), net(*batch))
    torch.testing.assert_close(net(*batch), encoder().eval()(*batch))


def test_dropout_acts_on_words_and_on_states():
    net = encoder(dropout=0.5)
    shares = {}

    def note(module, inputs, output):
        shares[len(shares)] = (output == 0).double().mean().item()

    net.dropout.register_forward_hook(note)
    net(torch.full((200, 6), 3), torch.full((200,), 6))
    assert [pytest.approx(0.5, abs=0.05)] * 2 == list(shares.values())


def test_a_caption_without_a_word_is_refused():
    with pytest.raises(RuntimeError, match="greater than 0"):
        encoder()(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0]))


def test_features_keep_the_precision_of_the_weights_and_run_under_autocast():
    net = encoder().float()
    plain = net(*pad(CAPTIONS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(*pad(CAPTIONS))
    assert plain.dtype == torch.float32
    assert rough.isfinite().all()
    torch.testing.assert_close(rough.float(), plain, atol=0.03, rtol=0.1)


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
