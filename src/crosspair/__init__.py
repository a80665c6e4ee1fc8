"""Image-text matching with cross-modal projection losses (Zhang and Lu, ECCV 2018).

The public names load on first use, so that `import crosspair` and `crosspair --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crosspair.version import __version__

if TYPE_CHECKING:
    from crosspair.data.records import Record
    from crosspair.encode.model import DualEncoder
    from crosspair.errors import UserError
    from crosspair.evaluation.metrics import RetrievalResult, evaluate_retrieval
    from crosspair.losses import CMPCLoss, CMPMLoss
    from crosspair.registry import register_reader

_HOMES = {
    "CMPCLoss": "crosspair.losses",
    "CMPMLoss": "crosspair.losses",
    "DualEncoder": "crosspair.encode.model",
    "Record": "crosspair.data.records",
    "RetrievalResult": "crosspair.evaluation.metrics",
    "UserError": "crosspair.errors",
    "evaluate_retrieval": "crosspair.evaluation.metrics",
    "register_reader": "crosspair.registry",
}

__all__ = [
    "CMPCLoss",
    "CMPMLoss",
    "DualEncoder",
    "Record",
    "RetrievalResult",
    "UserError",
    "__version__",
    "evaluate_retrieval",
    "register_reader",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in {"data", "evaluation", "gallery", "losses", "models", "training"}:
        return import_module(f"crosspair.{name}")
    raise AttributeError(f"module 'crosspair' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
