"""Schedules of the learning rate by their names.

A schedule takes a step, counted from 0 after the warm-up, and the number of these steps in its stage, and returns the
share of the full learning rate.
"""

import math
from typing import Annotated

from crosspair.registry import register_schedule
from crosspair.settings import Range

Steps = Annotated[int, Range(at_least=0), "Steps that the decay takes; 0: all of the stage after its warm-up."]


@register_schedule("constant")
def constant(step: int, total_steps: int) -> float:
    """The full learning rate in every step."""
    return 1.0


@register_schedule("cosine")
def cosine(step: int, total_steps: int) -> float:
    """Falls to 0 along half a cosine (Loshchilov and Hutter, SGDR, ICLR 2017, without restarts)."""
    return (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2


@register_schedule("polynomial")
def polynomial(
    step: int,
    total_steps: int,
    *,
    power: Annotated[float, Range(above=0), "1: in a straight line."] = 1.0,
    end: Annotated[float, Range(at_least=0, at_most=1), "Share of the full rate at the end."] = 0.0,
    decay_steps: Steps = 0,
) -> float:
    """Falls to a share of the full rate along a power of the steps left, as TensorFlow's polynomial_decay."""
    done = min(1.0, step / (decay_steps or total_steps))
    return float((1 - end) * (1 - done) ** power + end)


@register_schedule("exponential")
def exponential(
    step: int,
    total_steps: int,
    *,
    rate: Annotated[float, Range(above=0, at_most=1), "What decay_steps steps multiply the rate by."] = 0.1,
    decay_steps: Steps = 0,
    staircase: Annotated[bool, "Fall at once after every decay_steps steps, rather than a little in each."] = False,
) -> float:
    """Falls by the same factor in equal numbers of steps, as TensorFlow's exponential_decay."""
    times = step / (decay_steps or total_steps)
    return float(rate ** (math.floor(times) if staircase else times))
