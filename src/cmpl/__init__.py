"""Image-text matching with cross-modal projection losses (Zhang and Lu, ECCV 2018).

The public names load on first use, so that `import cmpl` and `cmpl --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmpl.errors import UserError
    from cmpl.evaluation.metrics import RetrievalResult, evaluate_retrieval
    from cmpl.losses import CMPCLoss, CMPMLoss
    from cmpl.models.dual_encoder import DualEncoder

__version__ = "0.1.0"

_HOMES = {
    "CMPCLoss": "cmpl.losses",
    "CMPMLoss": "cmpl.losses",
    "DualEncoder": "cmpl.models.dual_encoder",
    "RetrievalResult": "cmpl.evaluation.metrics",
    "UserError": "cmpl.errors",
    "evaluate_retrieval": "cmpl.evaluation.metrics",
}

__all__ = [
    "CMPCLoss",
    "CMPMLoss",
    "DualEncoder",
    "RetrievalResult",
    "UserError",
    "__version__",
    "evaluate_retrieval",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in {"data", "evaluation", "legacy", "losses", "models", "training"}:
        return import_module(f"cmpl.{name}")
    raise AttributeError(f"module 'cmpl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
