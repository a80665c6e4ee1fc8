"""A plain dataset of (image, captions, label) trains to the end, and a resumed run ends as the undisturbed one."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset

import crosspair
from crosspair.cli import main
from crosspair.errors import UserError
from crosspair.training.interruption import Interrupted

COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "grey", "white", "navy"]


class Squares(Dataset):
    """Images as PIL has them, or as arrays."""

    def __init__(self, array: bool = False) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(COLOURS)

    def __getitem__(self, index: int):
        image = Image.new("RGB", (32, 32), "black")
        image.paste(COLOURS[index], (0, 0, 8 + index, 32))
        return (np.array(image) if self.array else image), [f"a {COLOURS[index]} square", COLOURS[index]], index


def weights(run: Path) -> dict[str, bytes]:
    files = [*max((run / "checkpoints").glob("step-*")).glob("*.safetensors"), run / "model" / "model.safetensors"]
    return {f"{file.name} {name}": value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


@pytest.fixture
def go(toy_recipe, tmp_path):
    def start(name: str, data=None, **options):
        data = data or {"train": Squares(), "val": Squares(array=True)}
        return crosspair.train(toy_recipe(), data, tmp_path / name, progress=False, **options)

    return start


def test_it_trains_to_the_end_with_validation_and_a_model(go):
    result = go("run")
    assert [row["kind"] for row in result.history].count("val") == 8
    assert result.history[-1]["kind"] == "end"
    assert result.history[0]["data"] is None
    assert (result.history[0]["dataset"], result.history[0]["images"]) == ("Squares", 12)
    model = crosspair.DualEncoder.from_pretrained(result.model_path)
    assert model.encode_image([Squares()[0][0]]).shape == (1, 8)


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_resumed_run_ends_as_the_undisturbed_one(go, tmp_path, metrics, step):
    def stop(progress, _):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    best = go("undisturbed").best
    with pytest.raises(Interrupted):
        go("run", callbacks=[crosspair.Callback(on_step=stop)])
    assert go("run", resume=True).best == best
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "undisturbed")


def test_another_dataset_is_no_continuation(go, toy_directory):
    def stop(progress, _):
        raise LookupError

    with pytest.raises(LookupError):
        go("run", callbacks=[crosspair.Callback(on_step=stop)])
    with pytest.raises(UserError, match=r"trained on other data than .*; resume with the Squares that it started with"):
        go("run", data=toy_directory, resume=True)


def test_a_dataset_can_be_validated_on_a_directory(go, toy_directory):
    result = go("run", data={"train": Squares(), "val": toy_directory})
    assert result.history[0]["data"] == str(toy_directory)


def test_paths_and_names_do_as_well_as_objects(toy_recipe, toy_directory, tmp_path):
    from crosspair.training.recipe_files import save_recipe

    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe()))
    result = crosspair.train(tmp_path / "toy.yaml", str(toy_directory), str(tmp_path / "run"), progress=False)
    assert result.run == tmp_path / "run"
    with pytest.raises(UserError, match="unknown recipe 'flickr8k-light0'"):
        crosspair.train("flickr8k-light0", toy_directory, tmp_path / "other")


def test_its_run_is_compared_on_a_directory_that_is_named(go, toy_directory):
    own, other = go("own"), go("other", data=toy_directory)
    with pytest.raises(UserError, match=r"own was trained on Squares, no DATA directory; name one with --data DATA"):
        crosspair.compare(own, other, split="val")
    comparison = crosspair.compare(own, other, data=toy_directory, split="val")
    assert sum(len(row.seeds) for row in comparison.rows) == 2


def test_commands_tell_what_its_run_was_trained_on(go, tmp_path, capsys):
    go("run")
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "data Squares" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "was trained on Squares, no DATA directory; name one with --data DATA" in capsys.readouterr().err
