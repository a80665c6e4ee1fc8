"""Registries of losses, encoders, data formats, protocols, samplers, optimizers, schedules and engines, and plugins.

A built-in thing registers as a user's own does, by the decorator of its kind:

    @register_loss("half")
    def half(image_embeddings, text_embeddings, image_labels, text_labels, *, share: float = 0.5): ...

What others add comes from an installed package's entry points (groups `crosspair.losses` and so on), from plugins named
on the command line (`--plugin FILE.py` or a module) and from those in the environment variable CROSSPAIR_PLUGINS.
"""

import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from crosspair.errors import UserError
from crosspair.settings import Setting, settings_of

Thing = TypeVar("Thing")
Registered = TypeVar("Registered")

_ENVIRONMENT = "CROSSPAIR_PLUGINS"


@dataclass(frozen=True)
class Plugin:
    """A file, module or installed package that registers things.

    name: my_loss.py, a module, or a package with its version (crosspair-half==0.3). checksum: SHA-256 of the source
    file, "" where there is none to read. source: what `load_plugin` takes in another process, "" for a package.
    """

    name: str
    checksum: str = ""
    source: str = ""


@dataclass(frozen=True)
class Entry(Generic[Thing]):
    """A registered thing and where it comes from."""

    name: str
    thing: Thing
    plugin: Plugin | None = None  # None: built in, or registered by the caller's own code
    given: Collection[str] = ()  # parameters that are no settings of it
    home: str = ""  # the module that registered it, and its name there

    @property
    def summary(self) -> str:
        """Its attribute `summary`, or else the first line of its docstring."""
        summary = getattr(self.thing, "summary", None)
        text = summary if isinstance(summary, str) else getattr(self.thing, "__doc__", None) or ""
        return text.strip().partition("\n")[0]

    @property
    def settings(self) -> dict[str, Setting]:
        """Its settings by name."""
        return settings_of(self.thing, self.given)


class Registry(Generic[Thing]):
    """A registry of one kind of things, by name.

    kind: a word for one of them, as messages use it; plural also names the group of entry points.
    built_in: the module that registers each built-in name, imported when the name is first asked for.
    given: names of parameters that a thing can ask for by having them, which are then no settings.
    refused: known names that are left out on purpose, with the reason.
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        built_in: Mapping[str, str],
        given: Collection[str] = (),
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self.refused = refused or {}
        self.kind = kind
        self.plural = plural
        self.given = given
        self._built_in = dict(built_in)
        self._entries: dict[str, Entry[Thing]] = {}
        self._from_packages: dict[str, list[EntryPoint]] | None = None
        REGISTRIES[plural] = self

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator that gives a function, class or object its name; it returns the thing as it is.

        Raises UserError for a name that can't be written in a recipe, and for one that is taken by something that was
        defined elsewhere.
        """
        if not isinstance(name, str):  # the decorator without brackets
            raise UserError(f'a {self.kind} needs a name; write @register_{self.kind.replace(" ", "_")}("name")')
        if not re.fullmatch(r"\w[\w-]*", name):
            raise UserError(f"the {self.kind} '{name}' can't be called so; expected letters, digits, - and _ alone")

        # An object's own module is that of its class; what registers it is the module that calls.
        module = str(sys._getframe(1).f_globals.get("__name__"))

        def add(thing: Registered) -> Registered:
            home = f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
            if name in self._built_in and module != self._built_in[name]:
                raise UserError(f"'{name}' is a built-in {self.kind}; give your own another name")
            known = self._entries.get(name)
            if known is not None and known.home != home:  # what is run again, as in a notebook, may replace itself
                raise UserError(
                    f"the {self.kind} '{name}' is registered twice, by {known.home} and {home}; rename one of them"
                )
            # A plugin's imports may be the first to load the module of something built in, which isn't the plugin's.
            plugin = _loading[-1] if _loading and name not in self._built_in else None
            self._entries[name] = Entry(name, thing, plugin, self.given, home)  # type: ignore[arg-type]
            return thing

        return add

    def names(self) -> list[str]:
        """All names, sorted. Nothing is imported for it but the plugins of the environment."""
        load_plugins_of_environment()
        return sorted({*self._built_in, *self._entries, *self._packages()})

    def entry(self, name: str) -> Entry[Thing]:
        """The thing of that name with its plugin. Raises UserError for an unknown name, with the nearest known one."""
        load_plugins_of_environment()
        if name not in self._entries:
            self._load(name)
        if name not in self._entries:
            near = difflib.get_close_matches(name, self.names(), 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            hint = f" ({self.refused[name]})" if name in self.refused else hint
            raise UserError(
                f"there is no {self.kind} '{name}'{hint}; expected one of {', '.join(self.names())}, "
                "or a plugin named with --plugin that registers it"
            )
        return self._entries[name]

    def get(self, name: str) -> Thing:
        """The thing of that name. Raises UserError for an unknown name."""
        return self.entry(name).thing

    def entries(self) -> list[Entry[Thing]]:
        """All things by name. Those whose packages are not installed here are left out."""
        found = []
        for name in self.names():
            try:
                found.append(self.entry(name))
            except ImportError:
                continue
        return found

    def forget(self, plugin: Plugin) -> None:
        """Remove what a plugin has registered."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.plugin != plugin}

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _load(self, name: str) -> None:
        found = self._packages().get(name, [])
        homes = [_distribution(point) for point in found]
        if name in self._built_in and found:
            raise UserError(f"{homes[0]} adds a {self.kind} '{name}', which is a built-in name; uninstall {homes[0]}")
        if len(found) > 1:
            raise UserError(f"{' and '.join(homes)} both add a {self.kind} '{name}'; uninstall one of them")
        if name in self._built_in:
            importlib.import_module(self._built_in[name])
        for point in found:
            with _loaded_as(Plugin(homes[0])):
                thing = point.load()
                if name not in self._entries:  # else its module has registered it
                    self.register(name)(thing)

    def _packages(self) -> dict[str, list[EntryPoint]]:
        """Entry points of installed packages, by name."""
        if self._from_packages is None:
            self._from_packages = {}
            for point in entry_points(group=f"crosspair.{self.plural}"):
                self._from_packages.setdefault(point.name, []).append(point)
        return self._from_packages


REGISTRIES: dict[str, Registry[Any]] = {}  # by plural, in the order of their definition

_loading: list[Plugin] = []  # whose code is running now, the innermost one last
_plugins: dict[str, Plugin] = {}  # what was loaded, by resolved path or module name


def load_plugin(name: str) -> Plugin:
    """Run a plugin, FILE.py or an importable module, for what it registers; once in a process.

    Raises UserError where there is none of that name, or when it fails.
    """
    path = Path(name).resolve() if name.endswith(".py") else None
    source = name if path is None else str(path)
    if source in _plugins:
        return _plugins[source]
    spec = _spec(name) if path is None else _file_spec(path, name)
    origin = Path(spec.origin) if spec.origin else None
    checksum = hashlib.sha256(origin.read_bytes()).hexdigest() if origin and origin.suffix == ".py" else ""
    plugin = _plugins[source] = Plugin(path.name if path else name, checksum, source)
    try:
        with _loaded_as(plugin):
            if path is None:
                importlib.import_module(name)
            else:
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module  # dataclasses look their module up
                spec.loader.exec_module(module)
    except BaseException:
        del _plugins[source]
        for registry in REGISTRIES.values():
            registry.forget(plugin)
        sys.modules.pop(spec.name, None)
        raise
    return plugin


def load_plugins_of_environment() -> None:
    """Load what CROSSPAIR_PLUGINS names, separated as in PATH."""
    for name in filter(None, os.environ.get(_ENVIRONMENT, "").split(os.pathsep)):
        load_plugin(name)


def list_registered(kind: str) -> list[Entry[Any]]:
    """The registered things of a kind, with summary and origin: ("losses"), ("image_encoders") and so on.

    Raises UserError for another kind, naming those there are.
    """
    kinds = {plural.replace("_", "-"): registry for plural, registry in REGISTRIES.items()}
    name = kind.replace("_", "-")
    if name not in kinds:
        raise UserError(f"there are no registered {kind}; expected one of {', '.join(kinds)}")
    return kinds[name].entries()


def loaded_plugins() -> list[Plugin]:
    """The plugins of this process, in the order of their loading, without installed packages."""
    return list(_plugins.values())


@contextmanager
def _loaded_as(plugin: Plugin) -> Iterator[None]:
    """What is registered meanwhile belongs to a plugin, whose failures are one sentence."""
    _loading.append(plugin)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a stranger's code raises anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the plugin {plugin.name} fails with {reason}; mend it, or leave it out") from error
    finally:
        _loading.pop()


def _spec(name: str) -> Any:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"there is no plugin {name}; expected the name of a module that can be imported, or FILE.py")
    return spec


def _file_spec(path: Path, name: str) -> Any:
    if not path.is_file():
        raise UserError(f"there is no plugin {name}; expected a Python file, or the name of a module")
    return importlib.util.spec_from_file_location(plugin_module(str(path)), path)


def plugin_module(source: str) -> str:
    """The name of the module that a plugin becomes; files of one name in different folders are different ones."""
    path = Path(source)
    if path.suffix != ".py":
        return source
    return f"crosspair_plugin_{path.stem}_{hashlib.sha256(str(path.parent).encode()).hexdigest()[:8]}"


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name}=={point.dist.version}" if point.dist else point.value


def _in(package: str, *names: str) -> dict[str, str]:
    """Built-in names whose modules are called as they are."""
    return {name: f"crosspair.{package}.{name}" for name in names}


LOSSES: Registry[Any] = Registry(
    "loss",
    "losses",
    _in("losses", "cmpm", "cmpc", "infonce", "sdm", "triplet", "siglip", "identity"),
    given=("num_classes", "embedding_dim"),
)
_SLIM = [f"slim_mobilenet_v1{depth}" for depth in ("", "_075", "_050", "_025")]
_SLIM += [f"slim_resnet_v1_{layers}" for layers in (50, 101, 152)]
IMAGE_ENCODERS: Registry[Any] = Registry(
    "image encoder",
    "image_encoders",
    {"timm": "crosspair.encode.pretrained", **dict.fromkeys(_SLIM, "crosspair.models.slim.encoders")},
)
TEXT_ENCODERS: Registry[Any] = Registry(
    "text encoder",
    "text_encoders",
    {"bilstm": "crosspair.models.text", "transformers": "crosspair.encode.pretrained_text"},
)
READERS: Registry[Any] = Registry(
    "data format",
    "readers",
    dict.fromkeys(("flickr8k", "flickr30k", "coco"), "crosspair.data.readers.karpathy")
    | dict.fromkeys(("cuhk-pedes", "icfg-pedes", "rstpreid"), "crosspair.data.readers.pedes")
    | dict.fromkeys(("cub", "flowers"), "crosspair.data.readers.fine_grained")
    | _in("data.readers", "table", "folder", "huggingface", "webdataset", "tfrecord"),
)
_PUBLISHED = ("flickr30k-1k", "coco-5k", "coco-1k-5fold", "cuhk-pedes", "icfg-pedes", "rstpreid", "cub", "flowers")
PROTOCOLS: Registry[Any] = Registry(
    "protocol",
    "protocols",
    {
        "plain": "crosspair.evaluation.protocols",
        **dict.fromkeys(_PUBLISHED, "crosspair.evaluation.published"),
        "eccv-caption": "crosspair.evaluation.eccv",
    },
)
SAMPLERS: Registry[Any] = Registry(
    "sampler", "samplers", dict.fromkeys(("shuffled", "labels"), "crosspair.data.samplers"), given=("images",)
)
_OPTIMIZERS = ["adam", "adamw", "tensorflow-adam", "sgd", "momentum", "rmsprop", "tensorflow-rmsprop"]
_OPTIMIZERS += ["adagrad", "adadelta"]
OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    "optimizers",
    dict.fromkeys(_OPTIMIZERS, "crosspair.training.optimizers"),
    given=("params", "lr", "weight_decay"),  # torch's own names: every group of parameters has them
    refused={
        "ftrl": "its weights are computed from sums of gradients that start at 0, so that its first step throws "
        "pretrained weights away; for large sums of squares adagrad does the same scaling"
    },
)
SCHEDULES: Registry[Any] = Registry(
    "schedule",
    "schedules",
    dict.fromkeys(("constant", "cosine", "polynomial", "exponential"), "crosspair.training.schedules"),
)
ENGINES: Registry[Any] = Registry(
    "search engine",
    "engines",
    {**_in("gallery.engines", "exact", "hnsw", "milvus"), "auto": "crosspair.gallery.engines.hnsw"},
)
BACKENDS: Registry[Any] = Registry(
    "backend",
    "backends",
    {
        "torch": "crosspair.encode.backends",
        "openvino": "crosspair.encode.openvino",
        "onnxruntime": "crosspair.encode.onnx",
    },
    given=("network", "precision"),
)

register_loss = LOSSES.register
register_image_encoder = IMAGE_ENCODERS.register
register_text_encoder = TEXT_ENCODERS.register
register_reader = READERS.register
register_protocol = PROTOCOLS.register
register_sampler = SAMPLERS.register
register_optimizer = OPTIMIZERS.register
register_schedule = SCHEDULES.register
register_engine = ENGINES.register
register_backend = BACKENDS.register
