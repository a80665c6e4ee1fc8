"""Runs killed with SIGKILL, again and again until they are through, end as the undisturbed one."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from crosspair.training.recipe_files import save_recipe
from crosspair.training.run import finished

# Forks from a process that has imported everything but computed nothing, so that a kill costs little.
SCRIPT = """
import os, random, signal, sys, time
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

RANDOM_KILLS = 20
recipe, data, folder = load_recipe(sys.argv[1]), open_data(sys.argv[2]), Path(sys.argv[3])

# Where to die: the function, the call of it that is the last, and whether that call is done first.
MOMENTS = {
    "before the first step": (loop, "_run_epoch", 1, False),
    "between the stages": (loop, "build_stage", 2, False),
    "while features are computed": (DualEncoder, "image_features", 2, False),
    "in the middle of an epoch": (TrainingStep, "__call__", 5, True),
    "between a validation and its checkpoint": (loop, "_validate", 3, True),
    "while a checkpoint is written": (safetensors.torch, "save_file", 33, True),
    "while a checkpoint gets its name": (Path, "rename", 5, False),
    "after the last step": (TrainingStep, "__call__", 12, True),
}


def die_at(owner, name, number, after):
    act, calls = getattr(owner, name), []

    def counting(*arguments, **options):
        calls.append(None)
        result = act(*arguments, **options) if after or len(calls) < number else None
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counting)


def start(run, moment=None):
    child = os.fork()
    if child:
        return child
    os.environ["CROSSPAIR_CACHE"] = f"{run}.cache"
    if moment:
        die_at(*MOMENTS[moment])
    if finished(run):  # the kill came between the last row and the end of the process
        os._exit(0)
    try:
        loop.train(recipe, data, run, resume=(run / "recipe.yaml").exists(), progress=False)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def end(child):
    "Whether it went through; False when it was killed."
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"a run failed with {code}")
    return code == 0


end(start(folder / "warm"))
began = time.monotonic()
end(start(folder / "undisturbed"))
duration = time.monotonic() - began

for number, moment in enumerate(MOMENTS):
    run = folder / f"moment {number}"
    if end(start(run, moment)):
        sys.exit(f"nothing happened {moment}")
    end(start(run))

random.seed(7)
kills = runs = 0
while kills < RANDOM_KILLS:
    run, through = folder / f"random {runs}", False
    runs += 1
    while not through:
        child = start(run)
        if kills < RANDOM_KILLS:
            time.sleep(random.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
        through = end(child)
        kills += not through
print(kills, runs)
"""


def weights(run: Path) -> dict[str, bytes]:
    files = [*max((run / "checkpoints").glob("step-*")).glob("*.safetensors"), run / "model" / "model.safetensors"]
    return {f"{file.name} {name}": value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


def test_runs_killed_at_twenty_random_and_eight_chosen_moments_end_as_the_undisturbed_one(
    toy_recipe, toy_directory, tmp_path, metrics
):
    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe(checkpoint_minutes=0.0)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "toy.yaml"), str(toy_directory), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    kills, runs = map(int, done.stdout.splitlines()[-1].split())
    assert kills == 20
    disturbed = [tmp_path / f"moment {number}" for number in range(8)]
    disturbed += [tmp_path / f"random {number}" for number in range(runs)]
    for run in disturbed:
        assert finished(run)
        assert weights(run) == weights(tmp_path / "undisturbed"), run
        assert metrics(run) == metrics(tmp_path / "undisturbed"), run
