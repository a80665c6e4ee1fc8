"""Schedules against TensorFlow 1's published formulas of learning rates."""

import math

import pytest

from crosspair.training.optimizer import learning_rate_share
from crosspair.training.recipe import StageConfig


def shares(schedule, steps=10, **stage):
    return [learning_rate_share(step, steps, StageConfig(schedule=schedule, **stage)) for step in range(steps + 3)]


def tensorflow_polynomial(step, *, start, end, decay_steps, power):
    return (start - end) * (1 - min(step, decay_steps) / decay_steps) ** power + end


@pytest.mark.parametrize(("power", "end", "decay_steps"), [(1.0, 0.0, 10), (2.0, 0.1, 10), (0.5, 0.25, 4)])
def test_polynomial_decay_is_tensorflows(power, end, decay_steps):
    rate = 0.003
    settings = {"power": power, "end": end, "decay_steps": decay_steps}
    expected = [
        tensorflow_polynomial(step, start=rate, end=end * rate, decay_steps=decay_steps, power=power)
        for step in range(13)
    ]
    found = [rate * share for share in shares({"name": "polynomial", **settings})]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("staircase", [False, True])
def test_exponential_decay_is_tensorflows(staircase):
    found = shares({"name": "exponential", "rate": 0.94, "decay_steps": 3, "staircase": staircase})
    times = [math.floor(step / 3) if staircase else step / 3 for step in range(13)]
    assert found == pytest.approx([0.94**each for each in times], rel=1e-12)


def test_without_a_number_of_steps_the_decay_takes_the_stage_after_its_warm_up():
    assert shares("polynomial", warmup_steps=2)[2:] == pytest.approx([1 - k / 8 for k in range(9)] + [0, 0])
    assert shares("exponential", warmup_steps=2)[10] == pytest.approx(0.1)
