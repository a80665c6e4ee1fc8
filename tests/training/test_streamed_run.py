"""Runs on a stream: through the command line, killed and resumed, and refused where the command makes no sense."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crosspair.cli import main
from crosspair.encode.model import DualEncoder
from crosspair.training.recipe import StreamConfig
from crosspair.training.recipe_files import save_recipe


@pytest.fixture
def stream(toy_data, tmp_path) -> str:
    """The toy's training pictures in three shards, with their labels."""
    train = toy_data.split("train")
    for shard in range(3):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as file:
            for row in range(shard * 4, shard * 4 + 4):
                fields = {"captions": train.captions[row], "label": int(train.labels[row])}
                for kind, content in {"png": train.image(row), "json": json.dumps(fields).encode()}.items():
                    member = tarfile.TarInfo(f"{row}.{kind}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return str(tmp_path / "train-{0..2}.tar")


@pytest.fixture
def command(toy_recipe, toy_directory, stream, tmp_path):
    """Arguments of a run on the stream; every step leaves a checkpoint."""
    recipe = toy_recipe(checkpoint_minutes=0.0, stream=StreamConfig(shuffle_buffer=5))
    (tmp_path / "toy.yaml").write_text(save_recipe(recipe))
    what = ["train", str(tmp_path / "toy.yaml"), "--data", stream, "--val", str(toy_directory)]
    return lambda run: [*what, "--output", str(tmp_path / run)]


def weights(run: Path) -> dict[str, bytes]:
    files = max((run / "checkpoints").glob("step-*")).glob("*.safetensors")
    return {f"{file.name} {name}": value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


# Ends as SIGKILL ends a process, in the middle of a step of each epoch.
KILLED = """
import os, signal, sys
from crosspair.cli import main
from crosspair.training.step import TrainingStep
train, left = TrainingStep.__call__, [int(sys.argv[1])]
def step(*arguments, **options):
    left[0] -= 1
    return train(*arguments, **options) if left[0] else os.kill(os.getpid(), signal.SIGKILL)
TrainingStep.__call__ = step
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_run_on_a_stream_ends_as_the_undisturbed_one(command, tmp_path, metrics):
    assert main(command("whole")) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    killed = subprocess.run([sys.executable, "-c", KILLED, "9", *command("killed")], env=environment, check=False)
    assert killed.returncode == -9
    assert main([*command("killed"), "--resume"]) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    rows = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "killed") == rows
    assert (rows[0]["images"], rows[0]["skipped"]) == (12, 0)
    assert rows[0]["stream"].endswith("train-{0..2}.tar")
    assert sum(row["kind"] == "train" for row in rows) == 12  # two stages of two epochs with three batches


def test_a_run_on_a_stream_reads_captions_as_the_original_does(command, tmp_path):
    assert main([*command("run"), "--stage2.epochs", "0", "--model.text.tokenizer", "original"]) == 0
    model = DualEncoder.from_pretrained(tmp_path / "run" / "model")
    assert model.config.text.tokenizer == "original"
    assert model.tokenize("a r-e'd") == model.tokenize("A RED")


def test_another_stream_is_no_continuation(command, tmp_path, capsys):
    assert main([*command("run"), "--stage2.epochs", "0"]) == 0
    more = [str(tmp_path / "train-{0..1}.tar") if "{0..2}" in part else part for part in command("run")]
    assert main([*more, "--stage2.epochs", "0", "--resume"]) == 2
    assert "trained on other data than" in capsys.readouterr().err


def test_a_stream_and_a_directory_are_told_apart(command, toy_directory, tmp_path, capsys):
    arguments = command("run")
    assert main([part for part in arguments if part not in ("--val", str(toy_directory))]) == 2
    assert "name a DATA directory whose split val to use with --val" in capsys.readouterr().err
    assert main([str(toy_directory) if "{0..2}" in part else part for part in arguments]) == 2
    assert "leave --val out" in capsys.readouterr().err


def test_what_needs_prepared_data_is_refused(command, tmp_path, capsys):
    assert main([*command("run"), "--stage1.sampler", "labels", "--stage1.sampler.images_per_label", "2"]) == 2
    assert "stage1.sampler is labels, which needs prepared data" in capsys.readouterr().err


def test_a_stream_that_is_not_validated_needs_no_other_data(command, stream, tmp_path, capsys):
    arguments = [part for part in command("run") if part != "--val"]
    arguments.pop(arguments.index(stream) + 1)
    assert main([*arguments, "--stage2.epochs", "0"]) == 2
    assert "is a stream; name a DATA directory whose split val to use with --val" in capsys.readouterr().err
    assert main([*arguments, "--stage2.epochs", "0", "--validation", "none"]) == 0
    assert "trained on train, not validated" in capsys.readouterr().out
    assert main([*command("other"), "--validation", "none"]) == 2
    assert "--val names the data to validate on, and validation is none" in capsys.readouterr().err
    assert main([*arguments, "--validation", "none", "--train_splits", "train,val"]) == 2
    assert "the data has no split 'val'; it has train" in capsys.readouterr().err
