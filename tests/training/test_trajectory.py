"""Thirty training steps of the original graph, against the loop's own step (see src/crosspair/verify/trajectory.py)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crosspair.original.verify.trajectory import Replayed, packaged_recording, read_recording, replay
from crosspair.training import optimizers
from crosspair.training.ema import WeightEMA

TOWERS = ("mobilenet_v1_025", "resnet_v1_tiny")
# What float32 runs of the original's graph and of an independent one differed by, in nats.
FLOAT32_BOUNDS = {"mobilenet_v1_025": 9e-5, "resnet_v1_tiny": 2e-5}


def assert_equal_in_float64(found: Replayed, moments: set[str]) -> None:
    assert max(found.losses) <= 1e-9
    assert max(found.totals) <= 1e-9
    assert set(found.weights) == moments
    assert all(difference <= 2e-7 for difference in found.weights.values()), found.weights


def test_thirty_recorded_steps_in_float64_are_the_originals():
    assert_equal_in_float64(replay(packaged_recording(), torch.float64), {"after1", "after30", "ema30"})


def test_thirty_recorded_steps_in_float32_stay_close_to_the_originals():
    assert max(replay(packaged_recording(), torch.float32).totals) <= FLOAT32_BOUNDS["resnet_v1_tiny"]


@pytest.mark.parametrize("variant", ["trainable", "frozen"])
@pytest.mark.parametrize("tower", TOWERS)
def test_both_towers_trainable_and_frozen_are_the_originals_in_float64(shared_oracle: Path, tower: str, variant: str):
    recording = read_recording(shared_oracle / "training", tower, variant)
    moments = {"after1", "after10", "after30", "ema1", "ema30"} | ({"ema10"} if variant == "frozen" else set())
    assert_equal_in_float64(replay(recording, torch.float64), moments)


@pytest.mark.parametrize("tower", TOWERS)
def test_with_a_frozen_tower_float32_stays_within_the_measured_bounds(shared_oracle: Path, tower: str):
    recording = read_recording(shared_oracle / "training", tower, "frozen")
    assert max(replay(recording, torch.float32).totals) <= FLOAT32_BOUNDS[tower]


def test_a_recording_without_a_variable_is_refused_rather_than_half_compared():
    recording = packaged_recording()
    values = {name: value for name, value in recording.values.items() if name != "after30:Wfc"}
    with pytest.raises(KeyError, match="Wfc"):
        replay(replace(recording, values=values), torch.float64)


def test_torchs_adam_and_averages_after_the_update_are_told_from_the_originals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizers, "TensorFlowAdam", torch.optim.Adam)
    found = replay(packaged_recording(), torch.float64)
    assert max(found.losses) > 1e-7
    assert found.weights["after1"] > 1e-5
    monkeypatch.undo()
    original = WeightEMA.update
    monkeypatch.setattr(WeightEMA, "update", lambda self, step: original(self, step + 1))
    found = replay(packaged_recording(), torch.float64)
    assert max(found.losses) <= 1e-9
    assert found.weights["ema30"] > 1e-5
    assert np.isfinite(found.weights["ema30"])
