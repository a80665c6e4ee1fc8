"""Runs killed with SIGKILL at random moments, again and again until they are through."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from cmpl.training.recipe import save_recipe
from cmpl.training.run import finished

# Forks from a process that has imported everything but computed nothing, so that a kill costs little.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path

import timm
import lightning_fabric
import torch.utils.tensorboard
from cmpl.data.dataset import open_data
from cmpl.training.loop import train
from cmpl.training.recipe import load_recipe

KILLS = 4
recipe, data, folder = load_recipe(sys.argv[1]), open_data(sys.argv[2]), Path(sys.argv[3])


def start(run):
    child = os.fork()
    if child:
        return child
    try:
        train(recipe, data, run, resume=(run / "recipe.yaml").exists(), progress=False)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


began = time.monotonic()
os.waitpid(start(folder / "undisturbed"), 0)
duration = time.monotonic() - began
random.seed(7)
for kill in range(KILLS + 1):
    child = start(folder / "killed")
    if kill < KILLS:
        time.sleep(random.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
print(kill)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def weights(run: Path) -> dict[str, bytes]:
    files = [*max((run / "checkpoints").glob("step-*")).glob("*.safetensors"), run / "model" / "model.safetensors"]
    return {f"{file.name} {name}": value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(toy_recipe, toy_directory, tmp_path, metrics):
    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe(checkpoint_minutes=0.0)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "toy.yaml"), str(toy_directory), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 1
    assert finished(tmp_path / "killed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "undisturbed")
