"""What docs/extending.md shows works as it stands there, from outside of the package."""

import json
from pathlib import Path

import pytest

from crosspair import registry
from crosspair.cli import main
from tests.fixtures.galleries import COLOURS, save_image
from tests.fixtures.plugins import page_plugin

RECIPE = """
summary: a run of seconds
device: cpu
workers: 0
precision: 32-true
feature_backend: torch
loss: {cmpm: 1}
model:
  image: {name: test_resnet, weights: none, size: [32, 32]}
  text: {word_dim: 8, hidden_dim: 8, min_count: 1}
  projection: {dim: 8}
stage1: {epochs: 1, batch_size: 4}
"""


@pytest.fixture
def crosspair_with(tmp_path, monkeypatch):
    """Runs a command with plugins of the page, whose names are forgotten after the test."""
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))

    def run(plugins: list[str], *arguments: str) -> None:
        for name in plugins:
            (tmp_path / name).write_text(page_plugin(name))
        flags = [part for name in plugins for part in ("--plugin", str(tmp_path / name))]
        assert main([*arguments, *flags]) == 0

    yield run
    for each in registry.REGISTRIES.values():
        for name in [name for name, entry in each._entries.items() if entry.plugin]:
            del each._entries[name]


@pytest.fixture
def data(tmp_path, crosspair_with) -> Path:
    """Eight coloured squares in a format of the page's own, the same to train and to validate on."""
    entries = {}
    for split in ("train", "val"):
        for colour in COLOURS:
            save_image(tmp_path / "images" / f"{split}-{colour}.png", colour)
            captions = {"en": [f"a {colour} square", f"{colour} it is"], "de": ["ein Quadrat"]}
            entries[f"{split}-{colour}.png"] = {"split": split, "captions": captions}
    (tmp_path / "captions.json").write_text(json.dumps(entries))
    paths = ["--annotations", str(tmp_path / "captions.json"), "--images", str(tmp_path / "images")]
    output = tmp_path / "data"
    crosspair_with(
        ["my_format.py"], "prepare", "mine", *paths, "--output", str(output), "--processes", "1", "--language", "en"
    )
    return output


@pytest.fixture
def train(tmp_path, data, crosspair_with):
    """Trains the tiny recipe with plugins and options; gives the rows of its log."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(plugins: list[str], *options: str) -> list[dict]:
        output = tmp_path / "run"
        crosspair_with(
            plugins, "train", str(tmp_path / "recipe.yaml"), "--data", str(data), "--output", str(output), *options
        )
        return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]

    return run


def test_a_loss_trains_with_its_settings_and_is_logged(train):
    rows = train(["my_loss.py"], "--loss.half", "1", "--loss.half.share", "0.2")
    assert any("half" in row for row in rows if row["kind"] == "train")


def test_a_loss_that_learns_trains(train):
    rows = train(["my_learned_loss.py"], "--loss.distance", "1", "--loss.distance.start", "0.5")
    assert any("distance" in row for row in rows if row["kind"] == "train")


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("my_image_encoder.py", ["--model.image.name", "two-convolutions"]),
        ("my_timm_model.py", ["--model.image.name", "my_resnet"]),
        ("my_text_encoder.py", ["--model.text.name", "bag"]),
        ("my_sampler.py", ["--stage1.sampler", "by-label"]),
        ("my_backend.py", ["--feature_backend", "autocast"]),
        ("my_optimizer.py", ["--optimizer.name", "nesterov", "--stage1.schedule", "linear"]),
    ],
)
def test_what_a_run_is_made_of_can_be_the_users_own(train, plugin, options):
    rows = train([plugin], *options)
    assert rows[-1]["kind"] == "end" or any(row["kind"] == "val" for row in rows)
