"""Image-text matching with cross-modal projection losses (Zhang and Lu, ECCV 2018).

    result = crosspair.train("flickr8k-lite0", "DATA", "RUN")
    model = crosspair.DualEncoder.from_pretrained(result.model_path)
    scores = model.encode_text(["a dog runs"]) @ model.encode_image(["dog.jpg"]).T

The public names load on first use, so that `import crosspair` and `crosspair --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crosspair.version import __version__

if TYPE_CHECKING:
    from crosspair import data, evaluation, gallery, losses, models, training
    from crosspair.data.dataset import Data, open_data
    from crosspair.data.records import Record
    from crosspair.encode.model import DualEncoder
    from crosspair.encode.mteb_encoder import mteb_model
    from crosspair.errors import UserError
    from crosspair.evaluation.metrics import RetrievalResult, evaluate_retrieval
    from crosspair.evaluation.similarities import evaluate_similarities
    from crosspair.gallery.gallery import Gallery
    from crosspair.gallery.query import search
    from crosspair.losses import CMPCLoss, CMPMLoss
    from crosspair.registry import (
        list_registered,
        register_backend,
        register_engine,
        register_image_encoder,
        register_loss,
        register_optimizer,
        register_protocol,
        register_reader,
        register_sampler,
        register_schedule,
        register_text_encoder,
    )
    from crosspair.training.callbacks import Callback, Progress, RunResult
    from crosspair.training.loop import train
    from crosspair.training.measure import compare
    from crosspair.training.recipe import Recipe
    from crosspair.training.recipe_files import list_recipes, load_recipe

_HOMES = {
    "CMPCLoss": "crosspair.losses",
    "CMPMLoss": "crosspair.losses",
    "DualEncoder": "crosspair.encode.model",
    "Callback": "crosspair.training.callbacks",
    "Data": "crosspair.data.dataset",
    "Gallery": "crosspair.gallery.gallery",
    "Progress": "crosspair.training.callbacks",
    "Recipe": "crosspair.training.recipe",
    "Record": "crosspair.data.records",
    "RetrievalResult": "crosspair.evaluation.metrics",
    "RunResult": "crosspair.training.callbacks",
    "UserError": "crosspair.errors",
    "compare": "crosspair.training.measure",
    "evaluate_retrieval": "crosspair.evaluation.metrics",
    "evaluate_similarities": "crosspair.evaluation.similarities",
    "list_recipes": "crosspair.training.recipe_files",
    "list_registered": "crosspair.registry",
    "load_recipe": "crosspair.training.recipe_files",
    "mteb_model": "crosspair.encode.mteb_encoder",
    "open_data": "crosspair.data.dataset",
    "register_backend": "crosspair.registry",
    "register_engine": "crosspair.registry",
    "register_image_encoder": "crosspair.registry",
    "register_loss": "crosspair.registry",
    "register_optimizer": "crosspair.registry",
    "register_protocol": "crosspair.registry",
    "register_reader": "crosspair.registry",
    "register_sampler": "crosspair.registry",
    "register_schedule": "crosspair.registry",
    "register_text_encoder": "crosspair.registry",
    "search": "crosspair.gallery.query",
    "train": "crosspair.training.loop",
}

__all__ = [
    "CMPCLoss",
    "CMPMLoss",
    "Callback",
    "Data",
    "DualEncoder",
    "Gallery",
    "Progress",
    "Recipe",
    "Record",
    "RetrievalResult",
    "RunResult",
    "UserError",
    "__version__",
    "compare",
    "data",
    "evaluate_retrieval",
    "evaluate_similarities",
    "evaluation",
    "gallery",
    "list_recipes",
    "list_registered",
    "load_recipe",
    "losses",
    "models",
    "mteb_model",
    "open_data",
    "register_backend",
    "register_engine",
    "register_image_encoder",
    "register_loss",
    "register_optimizer",
    "register_protocol",
    "register_reader",
    "register_sampler",
    "register_schedule",
    "register_text_encoder",
    "search",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"crosspair.{name}")
    raise AttributeError(f"module 'crosspair' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
