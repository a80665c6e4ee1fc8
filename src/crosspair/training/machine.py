"""Settings chosen for the machine: the precision that the device is fastest in, and the malloc trimming policy."""

import ctypes
import sys
from dataclasses import replace

import torch

from crosspair.training.recipe import Recipe

# Of glibc's malloc.h: blocks that may be the system's own, and from how much free memory on some is given back.
_M_MMAP_MAX = -4
_M_TRIM_THRESHOLD = -1


def settled(recipe: Recipe) -> Recipe:
    """The recipe with `auto` resolved for this machine, so that recipe.yaml records what was run.

    `precision: auto` is bf16-mixed where the device multiplies in bfloat16 itself (benchmarks/machine.py measures what
    it brings), and 32-true elsewhere.
    """
    if recipe.precision != "auto":
        return recipe
    return replace(recipe, precision="bf16-mixed" if _multiplies_in_bf16(recipe.device) else "32-true")


def _multiplies_in_bf16(device: str) -> bool:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False


def keep_memory() -> None:
    """Turn malloc trimming off: this process keeps the memory that it frees for the next step.

    glibc gives every block above 32 MB back to the system at once, which must clear its pages again for the next step:
    with images that can take longer than the arithmetic (benchmarks/memory.py). In return the process stays as large
    as it has ever been, which is larger by a fifth, as blocks fit less well. Another C library is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
