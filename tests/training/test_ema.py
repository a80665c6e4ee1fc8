import torch
from torch import nn

from crosspair.training.ema import WeightEMA


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()


def test_averages_follow_the_formula_with_its_warm_up():
    net = model()
    ema = WeightEMA(net, decay=0.3)
    expected = net[0].weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            net[0].weight.add_(torch.randn_like(net[0].weight))
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
        ema.update(step)
        torch.testing.assert_close(ema.averages["0.weight"], expected, rtol=1e-12, atol=1e-12)


def test_batch_norm_statistics_are_averaged_and_counters_are_not():
    ema = WeightEMA(model(), decay=0.9)
    assert {"1.running_mean", "1.running_var"} <= set(ema.averages)
    assert "1.num_batches_tracked" not in ema.averages


def test_what_is_frozen_or_left_out_has_no_average():
    net = model()
    net[0].bias.requires_grad_(False)
    ema = WeightEMA(net, decay=0.9, leave_out=("1.",))
    assert set(ema.averages) == {"0.weight"}


def test_the_model_holds_the_averages_inside_the_block_only():
    net = model()
    ema = WeightEMA(net, decay=0.9)
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.zero_()
    with ema.applied():
        torch.testing.assert_close(net[0].weight.detach(), before)
    assert not net[0].weight.any()
    torch.testing.assert_close(ema.averages["0.weight"], before)
