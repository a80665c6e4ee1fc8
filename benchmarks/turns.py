"""Training steps of several ways, each way in a process of its own, timed in turns."""

import multiprocessing
import resource
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from crosspair.data.dataset import PreparedSplit
from crosspair.training.recipe import Recipe
from trainers import trainer


@dataclass(frozen=True)
class Way:
    """How to train. keeps_memory: the process keeps the memory that it frees, as `crosspair train` has it on a CPU."""

    recipe: Recipe
    keeps_memory: bool = True


@dataclass
class Took:
    """What the steps of a way took, those to warm up left out of the seconds."""

    seconds: list[float]
    in_system: float = 0.0  # seconds of all steps, of all threads
    peak: float = 0.0  # GB

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_steps(ways: dict[str, Way], split: PreparedSplit, stage: int, steps: int, warm: int) -> dict[str, Took]:
    """Train on the same batches in every way; `warm` steps of each come before those that count."""
    spawn = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for name, way in ways.items():
        connections[name], other = spawn.Pipe()
        spawn.Process(target=_train_when_asked, args=(other, way, split, stage), daemon=True).start()
    found = {name: Took([]) for name in ways}
    for step in range(warm + steps):
        for name, connection in connections.items():
            connection.send(True)
            seconds = connection.recv()
            if step >= warm:
                found[name].seconds.append(seconds)
    for name, connection in connections.items():
        connection.send(False)
        found[name].in_system, found[name].peak = connection.recv()
    return found


def _train_when_asked(asked: Connection, way: Way, split: PreparedSplit, stage: int) -> None:
    """A step for each True that comes, answered with its seconds."""
    training = trainer(way.recipe, split, stage, keeps_memory=way.keeps_memory)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    while asked.recv():
        start = time.perf_counter()
        training.advance()
        asked.send(time.perf_counter() - start)
    used = resource.getrusage(resource.RUSAGE_SELF)
    asked.send((used.ru_stime - before, used.ru_maxrss / 1e6))
