"""Data of drawn squares, and RUNs with models of their own weights."""

import pytest

from crosspair.cli import main
from crosspair.training.recipe_files import load_recipe, save_recipe
from tests.fixtures.models import create_tiny_model


@pytest.fixture
def data(images, tmp_path):
    rows = "".join(f"{path.relative_to(images)},a {path.stem} square\n" for path in sorted(images.rglob("*.png")))
    (images / "metadata.csv").write_text(f"file_name,text\n{rows}")
    command = ["prepare", "folder", "--images", str(images), "--output", str(tmp_path / "data"), "--processes", "1"]
    assert main([*command, "--split-shares", "0.25,0.25,0.5"]) == 0
    return str(tmp_path / "data")


@pytest.fixture
def runs(tmp_path):
    for name in ("one", "two"):
        create_tiny_model(["a", "square", "red", "blue"]).save_pretrained(tmp_path / name / "model")
        (tmp_path / name / "recipe.yaml").write_text(save_recipe(load_recipe("demo")))
        (tmp_path / name / "metrics.jsonl").write_text('{"kind": "end", "step": 1}\n')
    return [str(tmp_path / name) for name in ("one", "two")]
