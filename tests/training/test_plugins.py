"""A run with what a user brings: trained, logged, resumed to the bit, and asked for where it is missing."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from crosspair import registry
from crosspair.errors import UserError
from crosspair.registry import LOSSES, OPTIMIZERS, SAMPLERS, SCHEDULES, load_plugin
from crosspair.training.interruption import Interrupted
from crosspair.training.loop import train
from crosspair.training.plugins import check_plugins
from crosspair.training.recipe import OptimizerConfig, Recipe
from crosspair.training.recipe_files import differences, load_recipe, read_run_recipe, save_recipe
from crosspair.training.step import TrainingStep

OWN = '''
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import nn

import crosspair
from crosspair.settings import Range


class Terms(NamedTuple):
    near: torch.Tensor
    far: torch.Tensor


@crosspair.register_loss("half")
def half(image_embeddings, text_embeddings, image_labels, text_labels, *, share: Annotated[float, Range(0)] = 0.5):
    """Both directions of CMPM, weighted."""
    terms = crosspair.losses.cmpm_terms(image_embeddings, text_embeddings, image_labels, text_labels)
    return Terms(share * terms.image_to_text, (1 - share) * terms.text_to_image)


@crosspair.register_loss("proxies")
class Proxies(nn.Module):
    """Learns a vector for each label."""

    def __init__(self, num_classes, embedding_dim, start: float = 0.1):
        super().__init__()
        self.proxies = nn.Parameter(start * torch.randn(num_classes, embedding_dim))

    def forward(self, image_embeddings, text_embeddings, image_labels, text_labels):
        return nn.functional.cross_entropy(image_embeddings @ self.proxies.T, image_labels)


@crosspair.register_sampler("neighbours")
def neighbours(labels, batch_size, random, *, reverse: bool = False):
    """Neighbouring labels share a batch."""
    order = np.argsort(labels, kind="stable")[:: -1 if reverse else 1]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[number].tolist() for number in random.permutation(len(batches))]


@crosspair.register_optimizer("heavy-ball")
def heavy_ball(groups, *, share: float = 0.9):
    """Gradient descent with momentum."""
    return torch.optim.SGD(groups, momentum=share)


crosspair.register_optimizer("own-adagrad")(torch.optim.Adagrad)


@crosspair.register_schedule("power")
def power(step, total_steps, *, exponent: float = 1.0):
    """Falls to 0."""
    return (1 - step / total_steps) ** exponent
'''


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (LOSSES, SAMPLERS, OPTIMIZERS, SCHEDULES):
        kind.entries()  # built-in modules register only once
        monkeypatch.setattr(kind, "_entries", dict(kind._entries))
    monkeypatch.setattr(registry, "_plugins", {})


@pytest.fixture
def plugin(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def forget() -> None:
    """As another process, in which no plugin is loaded."""
    registry._plugins.clear()
    for kind in (LOSSES, SAMPLERS, OPTIMIZERS, SCHEDULES):
        for name in [name for name, entry in kind._entries.items() if entry.plugin is not None]:
            del kind._entries[name]


@pytest.fixture
def recipe(plugin, toy_recipe) -> Recipe:
    load_plugin(str(plugin))
    toy = toy_recipe(loss={"half": {"weight": 2.0, "share": 0.2}, "proxies": 0.5})
    toy.optimizer = OptimizerConfig("heavy-ball", grad_clip_norm=5.0, settings={"share": 0.8})
    toy.stage1.sampler = {"name": "neighbours", "reverse": True}
    toy.stage1.schedule = {"name": "power", "exponent": 2.0}
    return toy


def weights(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").glob("step-*"))
    return {
        f"{file.name} {name}": value.numpy().tobytes()
        for file in newest.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def test_a_run_with_everything_of_ones_own_is_logged_and_says_so(recipe, toy_data, tmp_path):
    train(recipe, toy_data, tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    for row in steps:
        assert row["half"] == pytest.approx(row["half_near"] + row["half_far"])
        assert row["loss"] == pytest.approx(2 * row["half"] + 0.5 * row["proxies"], rel=1e-5)
    rates = [row["learning_rate"] for row in steps if row["stage"] == 1]
    assert rates[3:] == pytest.approx([1e-2 * (1 - step / 4) ** 2 for step in (1, 2, 3)])  # after two steps of warm-up
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["loss"] == {"half": {"weight": 2.0, "share": 0.2}, "proxies": {"weight": 0.5, "start": 0.1}}
    assert written["stage1"]["sampler"] == {"name": "neighbours", "reverse": True}
    assert written["stage2"]["schedule"] == "constant"
    assert written["optimizer"]["share"] == 0.8
    [kept] = written["plugins"]
    assert (kept["name"], len(kept["checksum"])) == ("mine.py", 64)
    assert kept["registers"] == [
        *("losses half", "losses proxies", "optimizers heavy-ball", "samplers neighbours", "schedules power"),
    ]


def test_it_resumes_to_the_bit(recipe, toy_data, tmp_path, monkeypatch):
    train(recipe, toy_data, tmp_path / "whole", progress=False)
    call, calls = TrainingStep.__call__, []

    def stop(self, *arguments, **options):
        calls.append(None)
        if len(calls) == 11:  # in the second epoch of stage 2, whose optimizer has a state
            raise KeyboardInterrupt
        return call(self, *arguments, **options)

    monkeypatch.setattr(TrainingStep, "__call__", stop)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(recipe, toy_data, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(TrainingStep, "__call__", call)
    train(recipe, toy_data, tmp_path / "stopped", progress=False, resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.fixture
def run(recipe, toy_data, tmp_path) -> Path:
    recipe.stage1.epochs, recipe.stage2.epochs = 1, 0
    train(recipe, toy_data, tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_a_missing_plugin_is_named_where_it_is_needed_and_the_run_is_read_without_it(run):
    forget()
    with pytest.raises(UserError, match=r"plugin mine.py, which is not loaded; name it with --plugin mine.py"):
        check_plugins(run)
    recipe = read_run_recipe(run)
    assert recipe.loss_weights == {"half": 2.0, "proxies": 0.5}
    with pytest.raises(UserError, match="there is no loss 'half'"):
        load_recipe(str(run / "recipe.yaml"))


def test_a_plugin_that_has_changed_is_warned_of(run, plugin, caplog):
    check_plugins(run)
    assert not caplog.records
    forget()
    plugin.write_text(OWN + "\n# changed\n")
    load_plugin(str(plugin))
    with caplog.at_level(logging.WARNING):
        check_plugins(run)
    [record] = caplog.records
    assert record.getMessage() == f"{run} was trained with the plugin mine.py, which has changed since"


def test_the_command_line_takes_settings_of_ones_own_and_refuses_wrong_ones(plugin, tmp_path, toy_recipe):
    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe()))
    load_plugin(str(plugin))

    def load(*overrides: str) -> Recipe:
        return load_recipe(str(tmp_path / "toy.yaml"), overrides)

    changed = load("--loss.half", "1", "--loss.half.share=0.2", "--loss.cmpc=0", "--stage2.sampler", "neighbours")
    assert changed.loss["half"] == {"weight": 1.0, "share": 0.2}
    assert list(changed.loss) == ["cmpm", "half"]
    assert changed.stage2.sampler == {"name": "neighbours", "reverse": False}
    own = ["loss.half.weight", "loss.half.share"]
    assert set(own) < set(differences(load(), changed))
    assert load("--stage1.schedule.exponent", "3", "--stage1.schedule", "power").stage1.schedule["exponent"] == 3.0
    sgd = load("--optimizer.name", "heavy-ball", "--optimizer.share", "0.5").optimizer
    assert sgd.settings == {"share": 0.5}
    assert load("--optimizer.name", "own-adagrad").optimizer.settings["lr_decay"] == 0
    for overrides, message in (
        (["--loss.half", "1", "--loss.half.share", "-1"], "loss.half.share is -1.0; expected at least 0"),
        (
            ["--loss.half", "1", "--loss.half.shar", "1"],
            "'loss.half.shar', did you mean 'loss.half.share'",
        ),
        (["--loss.hlf", "1"], r"there is no loss 'hlf' \(did you mean half\?\)"),
        (["--stage1.sampler", "neighbors"], r"there is no sampler 'neighbors' \(did you mean neighbours\?\)"),
        (["--optimizer.name", "heavy-ball", "--optimizer.beta1", "1"], "unknown field 'optimizer.beta1'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load(*overrides)
        assert "\n" not in str(caught.value)


def test_the_command_trains_with_a_plugin_and_says_where_it_is_missing(tmp_path, toy_directory, toy_recipe):
    """From an empty folder, outside of the package, each command in a process of its own."""
    (tmp_path / "my_loss.py").write_text(
        """
import crosspair


@crosspair.register_loss("half")
def half(image_embeddings, text_embeddings, image_labels, text_labels, *, share: float = 0.5):
    terms = crosspair.losses.cmpm_terms(image_embeddings, text_embeddings, image_labels, text_labels)
    return share * terms.image_to_text + (1 - share) * terms.text_to_image
"""
    )
    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe()))

    def crosspair(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "crosspair", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CROSSPAIR_PLUGINS": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    train = ["train", "toy.yaml", "--data", str(toy_directory), "--output", "run"]
    own = ["--loss.half", "1", "--loss.half.share=0.2", "--loss.cmpm", "0", "--loss.cmpc", "0"]
    fewer = ["--stage1.epochs", "1", "--stage2.epochs", "0"]
    assert "there is no loss 'half'" in crosspair(*train, *own, *fewer, code=2)
    assert not (tmp_path / "run").exists()
    crosspair(*train, *own, *fewer, "--plugin", "my_loss.py")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["half"] > 0 for row in rows if row["kind"] == "train")
    missing = "run was trained with the plugin my_loss.py, which is not loaded; name it with --plugin my_loss.py\n"
    assert crosspair(*train, *own, *fewer, "--resume", code=2) == f"crosspair: {missing}"
    assert "is finished already" in crosspair(*train, *own, *fewer, "--resume", "--plugin", "my_loss.py", code=2)
    assert "losses half x 1\nplugins my_loss.py\n" in crosspair("inspect", "run")
    crosspair("evaluate", "run", "--data", str(toy_directory), "--split", "val")
    crosspair("report", "run", "--data", str(toy_directory))
