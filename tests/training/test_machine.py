"""What a run takes from its machine."""

import platform
import subprocess
import sys

import pytest

from crosspair.training import loop

# How many pages, of 4 kB or 2 MB, the system hands out for blocks of 60 MB after as many of 64 MB were freed.
SCRIPT = """
import resource, sys
import torch
from crosspair.training.machine import keep_memory

if sys.argv[1] == "kept":
    keep_memory()
blocks = [torch.ones(16 << 20) for _ in range(6)]
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = [torch.ones(15 << 20) for _ in range(6)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(way: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again():
    assert pages("kept") < pages("given back") / 4


def test_a_run_on_a_cpu_keeps_its_memory(toy_recipe, toy_data, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(loop, "keep_memory", lambda: calls.append(1))
    loop.train(toy_recipe(device="cpu"), toy_data, tmp_path / "run", progress=False)
    assert calls == [1]
