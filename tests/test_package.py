import subprocess
import sys

import pytest

import crosspair

HEAVY = ["torch", "torchvision", "timm", "transformers", "datasets", "lightning_fabric", "numpy", "PIL", "faiss"]


def heavy_modules_after(code: str) -> str:
    """The heavy modules that a fresh interpreter has loaded after `code`."""
    check = f"import sys; print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def run(*arguments: str) -> str:
    return f"""
from crosspair.cli import main
try:
    main({list(arguments)})
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import crosspair; dir(crosspair); crosspair.__version__",
        run("--help"),
        run("train", "--help"),
        run("--version"),
        run("recipes"),
    ],
    ids=["import", "help", "help of a command", "version", "recipes"],
)
def test_what_computes_nothing_loads_nothing_heavy(code: str):
    assert heavy_modules_after(code) == "LOADED []"


@pytest.mark.parametrize("name", crosspair.__all__)
def test_public_names_exist(name: str):
    assert getattr(crosspair, name) is not None
    assert name in dir(crosspair)


def test_public_names_come_from_where_they_live():
    from crosspair.encode.model import DualEncoder
    from crosspair.losses import CMPMLoss

    assert crosspair.CMPMLoss is CMPMLoss
    assert crosspair.DualEncoder is DualEncoder
    assert crosspair.losses.cmpm_terms


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'crosspair' has no attribute 'CMPNLoss'"):
        _ = crosspair.CMPNLoss
    assert not hasattr(crosspair, "torch")
