"""Optimizers against TensorFlow 1's published update rules (its ApplyMomentum, ApplyRMSProp and so on), in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from crosspair.registry import OPTIMIZERS
from crosspair.settings import apply_settings

RATES = [0.1, 0.1, 0.05, 0.02, 0.02]  # falls between steps, which tells where a formula has it


def momentum(w, gradients, *, momentum, nesterov=False):
    total = np.zeros_like(w)
    for rate, g in zip(RATES, gradients, strict=True):
        total = momentum * total + g
        w = w - rate * (g + momentum * total if nesterov else total)
    return w


def rmsprop(w, gradients, *, momentum, decay_rate, epsilon):
    mean_square, update = np.ones_like(w), np.zeros_like(w)
    for rate, g in zip(RATES, gradients, strict=True):
        mean_square = decay_rate * mean_square + (1 - decay_rate) * g**2
        update = momentum * update + rate * g / np.sqrt(mean_square + epsilon)
        w = w - update
    return w


def torch_rmsprop(w, gradients, *, momentum, decay_rate, epsilon):
    mean_square, update = np.zeros_like(w), np.zeros_like(w)
    for rate, g in zip(RATES, gradients, strict=True):
        mean_square = decay_rate * mean_square + (1 - decay_rate) * g**2
        update = momentum * update + g / (np.sqrt(mean_square) + epsilon)
        w = w - rate * update
    return w


def adagrad(w, gradients, *, initial_accumulator, epsilon=0.0):
    total = np.full_like(w, initial_accumulator)
    for rate, g in zip(RATES, gradients, strict=True):
        total = total + g**2
        w = w - rate * g / (np.sqrt(total) + epsilon)
    return w


def adadelta(w, gradients, *, decay_rate, epsilon):
    squares, updates = np.zeros_like(w), np.zeros_like(w)
    for rate, g in zip(RATES, gradients, strict=True):
        squares = decay_rate * squares + (1 - decay_rate) * g**2
        update = np.sqrt(updates + epsilon) / np.sqrt(squares + epsilon) * g
        updates = decay_rate * updates + (1 - decay_rate) * update**2
        w = w - rate * update
    return w


@pytest.mark.parametrize(
    ("name", "formula", "settings"),
    [
        ("sgd", lambda w, gradients: momentum(w, gradients, momentum=0), {}),
        ("momentum", momentum, {"momentum": 0.9}),
        ("momentum", momentum, {"momentum": 0.8, "nesterov": True}),
        ("tensorflow-rmsprop", rmsprop, {"momentum": 0.9, "decay_rate": 0.9, "epsilon": 1e-10}),
        ("tensorflow-rmsprop", rmsprop, {"momentum": 0.0, "decay_rate": 0.7, "epsilon": 1.0}),
        ("rmsprop", torch_rmsprop, {"momentum": 0.9, "decay_rate": 0.99, "epsilon": 1e-2}),
        ("adagrad", adagrad, {"initial_accumulator": 0.1, "epsilon": 0.0}),
        ("adagrad", adagrad, {"initial_accumulator": 0.0, "epsilon": 1e-3}),
        ("adadelta", adadelta, {"decay_rate": 0.95, "epsilon": 1e-8}),
    ],
)
def test_updates_follow_the_published_formula(name, formula, settings):
    random = np.random.default_rng(0)
    before, gradients = random.standard_normal(50), random.standard_normal((5, 50))
    weight = nn.Parameter(torch.from_numpy(before.copy()))
    optimizer = apply_settings(OPTIMIZERS.get(name), settings)([{"params": [weight], "lr": 1.0, "weight_decay": 0.0}])
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), formula(before, gradients, **settings), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "tensorflow-rmsprop", "adagrad", "adadelta"])
def test_weight_decay_adds_to_the_gradient(name):
    random = np.random.default_rng(0)
    before, gradient = torch.from_numpy(random.standard_normal(50)), torch.from_numpy(random.standard_normal(50))
    after = []
    for decay in (0.1, 0.0):
        weight = nn.Parameter(before.clone())
        weight.grad = gradient + (0.1 - decay) * before
        OPTIMIZERS.get(name)([{"params": [weight], "lr": 0.1, "weight_decay": decay}]).step()
        after.append(weight.detach())
    torch.testing.assert_close(*after, rtol=1e-12, atol=1e-13)
    assert not torch.equal(after[0], before)


def test_the_defaults_are_those_that_the_documentation_names():
    defaults = {
        name: {s.name: s.default for s in OPTIMIZERS.entry(name).settings.values()} for name in OPTIMIZERS.names()
    }
    assert defaults["momentum"] == {"momentum": 0.9, "nesterov": False}
    assert defaults["tensorflow-rmsprop"] == {"momentum": 0.9, "decay_rate": 0.9, "epsilon": 1e-10}
    assert defaults["adadelta"] == {"decay_rate": 0.95, "epsilon": 1e-6}
