"""`crosspair compare`: what is stored of a run is used as long as it is of the run's model."""

import pytest

from crosspair.cli import main
from crosspair.training import measure as module
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


def test_a_model_whose_vocabulary_was_edited_is_evaluated_anew(runs, data, tmp_path, monkeypatch):
    measured = []
    measure = module.measure_model

    def counting(name, *rest, **options):
        measured.append(name)
        return measure(name, *rest, **options)

    monkeypatch.setattr(module, "measure_model", counting)
    command = ["compare", *runs, "--data", data, "--split", "test"]
    assert main(command) == 0
    assert measured == runs
    assert main(command) == 0
    assert measured == runs
    vocabulary = tmp_path / "one" / "model" / "vocabulary.txt"
    vocabulary.write_text(vocabulary.read_text().replace("red", "green"))
    assert main(command) == 0
    assert measured == [*runs, runs[0]]
