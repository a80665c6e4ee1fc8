"""Devices by the names that `--device` takes: auto, cpu, cuda, cuda:1, mps."""

import re
from typing import TYPE_CHECKING

from crosspair.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = "auto, cpu, cuda, cuda:N or mps"


def find_device(name: str = "auto") -> "torch.device":
    """The device of that name; auto is the first GPU where there is one, else the CPU.

    Raises UserError for another name, and for a device that this machine or this build of PyTorch does not have.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps", name):
        raise UserError(f"found device '{name}'; expected {DEVICES}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps is not available here; use --device cpu, or auto for the best there is")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = int(name.partition(":")[2] or 0)
        if number >= count:
            there = f"{count} CUDA device{'s' if count > 1 else ''}" if count else "no CUDA device"
            raise UserError(f"device {name} is not available: found {there}; use --device cpu, or auto for the best")
    return torch.device(name)
