"""Runs killed with SIGKILL, again and again until they are through, end as the undisturbed one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from crosspair.training.recipe_files import save_recipe
from crosspair.training.run import finished
from tests.fixtures.paths import REPOSITORY

# Forks from a process that has imported everything but computed nothing, so that a kill costs little.
SCRIPT = """
import os, sys
from pathlib import Path

import timm
import lightning_fabric
import safetensors.torch
import torch.utils.tensorboard
from crosspair.data.dataset import open_data
from crosspair.encode.model import DualEncoder
from crosspair.training import loop
from crosspair.training.recipe_files import load_recipe
from crosspair.training.run import finished
from crosspair.training.step import TrainingStep
from tests.fixtures import killing

RANDOM_KILLS = 20
recipe, data, folder = load_recipe(sys.argv[1]), open_data(sys.argv[2]), Path(sys.argv[3])

# Where to die: the function, the call of it that is the last, and whether that call is done first.
MOMENTS = {
    "before the first step": (loop, "_run_epoch", 1, False),
    "between the stages": (loop, "build_stage", 2, False),
    "while features are computed": (DualEncoder, "image_features", 2, False),
    "in the middle of an epoch": (TrainingStep, "__call__", 5, True),
    "between a validation and its checkpoint": (loop, "_end_epoch", 3, True),
    "while a checkpoint is written": (safetensors.torch, "save_file", 33, True),
    "while a checkpoint gets its name": (Path, "rename", 5, False),
    "after the last step": (TrainingStep, "__call__", 12, True),
}


def train(run, moment=None):
    os.environ["CROSSPAIR_CACHE"] = f"{run}.cache"
    if moment:
        killing.die_at(*MOMENTS[moment])
    if not finished(run):  # else the kill came between the last row and the end of the process
        loop.train(recipe, data, run, resume=(run / "recipe.yaml").exists(), progress=False)


killing.duration(lambda: train(folder / "warm"))
duration = killing.duration(lambda: train(folder / "undisturbed"))

for number, moment in enumerate(MOMENTS):
    run = folder / f"moment {number}"
    if killing.end(killing.start(lambda: train(run, moment))):
        sys.exit(f"nothing happened {moment}")
    assert killing.end(killing.start(lambda: train(run)))

through = []
runs = killing.killed_at_random(
    lambda: train(folder / f"random {len(through)}"),
    duration,
    kills=RANDOM_KILLS,
    seed=7,
    through=lambda: through.append(None),
)
print(runs)
"""


def weights(run: Path) -> dict[str, bytes]:
    files = [*max((run / "checkpoints").glob("step-*")).glob("*.safetensors"), run / "model" / "model.safetensors"]
    return {f"{file.name} {name}": value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


@pytest.mark.slow
def test_runs_killed_at_twenty_random_and_eight_chosen_moments_end_as_the_undisturbed_one(
    toy_recipe, toy_directory, tmp_path, metrics
):
    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe(checkpoint_minutes=0.0)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "toy.yaml"), str(toy_directory), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    runs = int(done.stdout.splitlines()[-1])
    disturbed = [tmp_path / f"moment {number}" for number in range(8)]
    disturbed += [tmp_path / f"random {number}" for number in range(runs)]
    for run in disturbed:
        assert finished(run)
        assert weights(run) == weights(tmp_path / "undisturbed"), run
        assert metrics(run) == metrics(tmp_path / "undisturbed"), run
