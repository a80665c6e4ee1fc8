"""A toy data set of coloured squares, and the recipe of a run over it that takes half a second."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crosspair.data.dataset import Data, open_data
from crosspair.data.prepare import prepare
from crosspair.data.records import Record
from crosspair.training.recipe import EMAConfig, OptimizerConfig, Recipe, StageConfig
from tests.fixtures.models import tiny_config

COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "grey", "white", "navy"]


def _record(number: int, split: str) -> Record:
    file = io.BytesIO()
    name = COLOURS[number]
    image = Image.new("RGB", (32, 32), "black")
    image.paste(name, (0, 0, 8 + number, 32))  # not its own mirror image
    image.save(file, "PNG")
    captions = (f"a {name} square", f"{name} {name} on black", f"the colour {name}")[: 1 + number % 3]
    return Record(f"{split} {name}", file.getvalue(), 2**40 + number, captions, split)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def toy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures with 24 captions to train on, the same 12 to validate on."""
    path = tmp_path_factory.mktemp("toy") / "data"
    records = [_record(number, split) for split in ("train", "val") for number in range(len(COLOURS))]
    prepare(records, path, source={}, size=0, processes=1, progress=False)
    return path


@pytest.fixture(scope="session")
def toy_data(toy_directory: Path) -> Data:
    return open_data(toy_directory)


@pytest.fixture(scope="session")
def toy_recipe() -> Callable[..., Recipe]:
    """Two stages of two epochs with three steps each, dropout and crops on. Settings by name replace it."""

    def create(**changes: Any) -> Recipe:
        settings: dict[str, Any] = {
            "device": "cpu",
            "feature_backend": "torch",  # a compiled encoder pays with more than 12 pictures
            "workers": 0,
            "precision": "32-true",
            "log_every": 1,
            "model": tiny_config(image={"feature_dropout": 0.1}, text={"min_count": 1}),
            "optimizer": OptimizerConfig(grad_clip_norm=5.0),
            "ema": EMAConfig(decay=0.9),
            "stage1": StageConfig(
                2,
                freeze_image_encoder=True,
                batch_size=4,
                captions_per_image=2,
                epoch_covers="images",
                learning_rate=1e-2,
                schedule="cosine",
                warmup_steps=2,
            ),
            "stage2": StageConfig(
                2,
                batch_size=4,
                captions_per_image=2,
                epoch_covers="images",
                learning_rate=1e-3,
                image_learning_rate=1e-4,
                smallest_crop=0.6,
            ),
        }
        return Recipe(**{"name": "toy", **settings, **changes})

    return create


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows of a run without what depends on the clock, the machine and the folder."""

    def read(run: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in {"pairs_per_second", "memory_mb"}} for row in rows]

    return read
