"""Two processes that share a run. What they do is in two_processes.py, which runs once for all tests here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from crosspair.data.plans import plan_epoch
from crosspair.training.loop import train
from crosspair.training.recipe_files import save_recipe
from crosspair.training.run import finished

pytestmark = pytest.mark.slow  # processes that import torch, again and again

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(run: Path) -> dict[str, bytes]:
    files = [*max((run / "checkpoints").glob("step-*")).glob("*.safetensors"), run / "model" / "model.safetensors"]
    return {f"{file.name} {name}": value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def folder(toy_directory, tmp_path_factory, toy_recipe) -> Path:
    path = tmp_path_factory.mktemp("processes")
    (path / "toy.yaml").write_text(save_recipe(toy_recipe()))
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), str(toy_directory), str(path), str(path / "toy.yaml")]
    environment = {**ENVIRONMENT, "CROSSPAIR_CACHE": str(path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def found(folder):
    """What both processes left of a scenario."""

    def read(scenario: str) -> list:
        return [json.loads((folder / f"{scenario}-{rank}.json").read_text()) for rank in range(2)]

    return read


@pytest.mark.parametrize("scenario", ["even", "uneven", "heads"])
def test_shares_of_every_loss_and_their_gradients_add_up_to_one_process(found, scenario):
    for differences in found(scenario):
        assert len(differences) > 20
        learned = "own-module_loss.1.proxies" if scenario == "heads" else "own-module_loss.proxies"
        assert {"own-function", "own-module", f"{learned} gradient", "cmpm_scale"} <= differences.keys()
        assert max(differences.values()) < 1e-12, differences


def test_shares_of_the_papers_cmpm_add_up(found):
    for differences in found("cmpm"):
        assert max(differences.values()) < 1e-12, differences


def test_a_step_moves_the_model_as_one_process_would_with_synchronised_batch_norm(found):
    for differences in found("step"):
        assert {name.split(".")[0] for name in differences} >= {"loss", "image_encoder", "text_encoder", "losses"}
        assert max(differences.values()) < 1e-10, differences


def test_a_step_in_mini_batches_has_the_gradients_of_one_process_and_the_whole_batch(found):
    for differences in found("parts"):
        assert len(differences) > 20
        assert max(differences.values()) < 1e-10, differences


def test_a_signal_to_one_process_stops_both_and_a_resumed_run_is_the_same_to_the_bit(found, folder, metrics):
    assert found("stopped") == [{"error": "stopped by SIGTERM", "checkpoint": "step-00000002"}] * 2
    assert found("resumed") == [None, None]
    assert weights(folder / "stopped") == weights(folder / "plain")
    assert metrics(folder / "stopped") == metrics(folder / "plain")
    assert finished(folder / "plain")


def test_rows_and_files_are_written_once(folder, metrics):
    rows = metrics(folder / "plain")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(12))
    assert [row["kind"] for row in rows].count("val") == 8
    assert len(list((folder / "plain" / "tensorboard").iterdir())) == 1
    assert not list(folder.rglob(".*"))


def test_checkpoints_have_the_names_of_one_process(folder, toy_data, toy_recipe, tmp_path):
    train(toy_recipe(), toy_data, tmp_path / "alone", progress=False)
    assert weights(folder / "plain").keys() ^ weights(tmp_path / "alone").keys() == {
        "random.safetensors cpu of process 1"
    }


@pytest.mark.parametrize(
    ("scenario", "sentence"),
    [("again", "is finished already"), ("few", "stage1 has 3 pictures in a batch for 2 processes"), ("full", "full")],
)
def test_what_stops_one_process_stops_both_with_its_sentence(found, scenario, sentence):
    for outcome in found(scenario):
        assert sentence in outcome["error"]


def test_shards_hold_every_picture_of_a_batch_once():
    for batch in plan_epoch([3] * 50, batch_size=16, captions_per_image=2, covers="captions", hflip=True, seed=(0,)):
        shards = [batch.shard(rank, 3) for rank in range(3)]
        assert [len(shard.images) for shard in shards] == [5, 5, 6]
        for name in ("images", "captions", "hflipped", "crops", "changes"):
            joined = [
                list(row) if name in {"captions", "crops", "changes"} else row
                for s in shards
                for row in getattr(s, name)
            ]
            assert joined == [
                list(row) if name in {"captions", "crops", "changes"} else row for row in getattr(batch, name)
            ]


def test_the_command_starts_its_processes_and_only_the_first_one_speaks(toy_directory, tmp_path, toy_recipe):
    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe()))
    command = [sys.executable, "-m", "crosspair", "train", str(tmp_path / "toy.yaml"), "--data", str(toy_directory)]
    options = ["--output", str(tmp_path / "run"), "--devices", "2", "--stage1.epochs", "1", "--stage2.epochs", "0"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    said = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert said == ["stage 1 epoch 1", "best on val", "model", "report"]
    assert finished(tmp_path / "run")
