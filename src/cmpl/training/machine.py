"""What a recipe leaves to the machine: which precision its device is fastest in."""

from dataclasses import replace

import torch

from cmpl.training.recipe import Recipe


def settled(recipe: Recipe) -> Recipe:
    """The recipe with what `auto` stands for here, so that recipe.yaml tells what was run.

    `precision: auto` is bf16-mixed where the device multiplies in bfloat16 itself (benchmarks/machine.py measures what
    it brings), and 32-true elsewhere.
    """
    if recipe.precision != "auto":
        return recipe
    return replace(recipe, precision="bf16-mixed" if _multiplies_in_bf16(recipe.device) else "32-true")


def _multiplies_in_bf16(device: str) -> bool:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False
