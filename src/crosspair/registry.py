"""Names of things that users can add to: losses, encoders, data formats, protocols, samplers, optimizers, engines.

A built-in thing registers as a user's own does, by the decorator of its kind:

    @register_loss("half")
    def half(image_embeddings, text_embeddings, image_labels, text_labels, *, share: float = 0.5): ...

Own things come from an installed package's entry points (groups `crosspair.losses` and so on), from plugins named on
the command line (`--plugin FILE.py` or a module) and from those in the environment variable CROSSPAIR_PLUGINS.
"""

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from crosspair.errors import UserError

Thing = TypeVar("Thing")
Registered = TypeVar("Registered")

_ENVIRONMENT = "CROSSPAIR_PLUGINS"


@dataclass(frozen=True)
class Plugin:
    """A file or module that was loaded for what it registers. checksum: SHA-256 of its source, "" without one."""

    name: str
    checksum: str


@dataclass(frozen=True)
class Entry(Generic[Thing]):
    """A registered thing and where it comes from."""

    name: str
    thing: Thing
    plugin: Plugin | None = None  # None: built in, or registered by the caller's own code

    @property
    def summary(self) -> str:
        """Its attribute `summary`, or else the first line of its docstring."""
        summary = getattr(self.thing, "summary", None)
        text = summary if isinstance(summary, str) else getattr(self.thing, "__doc__", None) or ""
        return text.strip().partition("\n")[0]


class Registry(Generic[Thing]):
    """Names of one kind of things.

    kind: a word for one of them, as messages use it; plural also names the group of entry points.
    built_in: the module that registers each built-in name, imported when the name is first asked for.
    """

    def __init__(self, kind: str, plural: str, built_in: Mapping[str, str]) -> None:
        self.kind = kind
        self.plural = plural
        self._built_in = dict(built_in)
        self._entries: dict[str, Entry[Thing]] = {}
        self._from_packages: dict[str, EntryPoint] | None = None
        REGISTRIES[plural] = self

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator that gives a function, class or object its name; it returns the thing as it is.

        Raises UserError when the name is taken by something that was defined elsewhere.
        """

        # An object's own module is that of its class; what registers it is the module that calls.
        module = str(sys._getframe(1).f_globals.get("__name__"))

        def add(thing: Registered) -> Registered:
            known = self._entries.get(name)
            if known is not None and _home(known.thing) != _home(thing):
                raise UserError(
                    f"the {self.kind} '{name}' is registered twice, by {_home(known.thing)} and {_home(thing)}; "
                    "rename one of them"
                )
            if name in self._built_in and module != self._built_in[name]:
                raise UserError(f"'{name}' is a built-in {self.kind}; give your own another name")
            # A plugin's imports may be the first to load the module of something built in, which isn't the plugin's.
            plugin = _loading[-1] if _loading and name not in self._built_in else None
            self._entries[name] = Entry(name, thing, plugin)  # type: ignore[arg-type]
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
            raise UserError(
                f"there is no {self.kind} '{name}'{hint}; expected one of {', '.join(self.names())}, "
                "or a plugin named with --plugin that registers it"
            )
        return self._entries[name]

    def get(self, name: str) -> Thing:
        """The thing of that name. Raises UserError for an unknown name."""
        return self.entry(name).thing

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _load(self, name: str) -> None:
        if name in self._built_in:
            importlib.import_module(self._built_in[name])
        elif name in self._packages():
            point = self._packages()[name]
            plugin = Plugin(f"{point.dist.name} {point.dist.version}" if point.dist else point.value, "")
            _loading.append(plugin)
            try:
                thing = point.load()
                if name not in self._entries:  # else the module has registered it itself
                    self.register(name)(thing)
            finally:
                _loading.pop()

    def _packages(self) -> dict[str, EntryPoint]:
        if self._from_packages is None:
            self._from_packages = {point.name: point for point in entry_points(group=f"crosspair.{self.plural}")}
        return self._from_packages


REGISTRIES: dict[str, Registry[Any]] = {}  # by plural, in the order of their definition

_loading: list[Plugin] = []  # whose code is running now, the innermost one last
_plugins: dict[str, Plugin] = {}  # what was loaded, by resolved path or module name


def load_plugin(name: str) -> Plugin:
    """Run a plugin, FILE.py or an importable module, for what it registers; once in a process.

    Raises UserError where there is none of that name, or when it fails.
    """
    is_file = name.endswith(".py")
    path = Path(name).resolve()
    key = str(path) if is_file else name
    if key in _plugins:
        return _plugins[key]
    if is_file and not path.is_file():
        raise UserError(f"there is no plugin {name}; expected a Python file, or the name of a module")
    spec = _spec(path if is_file else None, name)
    origin = Path(spec.origin) if spec.origin else None
    checksum = hashlib.sha256(origin.read_bytes()).hexdigest() if origin and origin.suffix == ".py" else ""
    plugin = Plugin(path.name if is_file else name, checksum)
    _loading.append(plugin)
    try:
        if is_file:
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and worker processes look their module up
            assert spec.loader is not None
            spec.loader.exec_module(module)
        else:
            importlib.import_module(name)
    except UserError:
        sys.modules.pop(spec.name, None)
        raise
    except Exception as error:  # a stranger's code raises anything
        sys.modules.pop(spec.name, None)
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the plugin {name} fails with {reason}; mend it, or leave it out") from error
    finally:
        _loading.pop()
    _plugins[key] = plugin
    return plugin


def load_plugins_of_environment() -> None:
    """Load what CROSSPAIR_PLUGINS names, separated as in PATH."""
    for name in filter(None, os.environ.get(_ENVIRONMENT, "").split(os.pathsep)):
        if not any(plugin is not None and plugin.name == name for plugin in _loading):
            load_plugin(name)


def loaded_plugins() -> list[Plugin]:
    """The plugins of this process, in the order of their loading."""
    return list(_plugins.values())


def plugin_module(name: str) -> str:
    """The name of the module that a plugin's file FILE.py becomes."""
    return f"crosspair_plugin_{Path(name).stem}"


def _spec(path: Path | None, name: str) -> Any:
    if path is not None:
        return importlib.util.spec_from_file_location(plugin_module(path.name), path)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"there is no plugin {name}; expected the name of a module that can be imported, or FILE.py")
    return spec


def _home(thing: object) -> str:
    """Where a thing was defined, in words that stay the same when its file is loaded again."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _in(package: str, *names: str) -> dict[str, str]:
    """Built-in names whose modules are called as they are."""
    return {name: f"crosspair.{package}.{name}" for name in names}


LOSSES: Registry[Any] = Registry("loss", "losses", _in("losses", "cmpm", "cmpc", "infonce", "sdm", "triplet", "siglip"))
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
    {"bilstm": "crosspair.models.text", "transformers": "crosspair.encode.pretrained"},
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
SAMPLERS: Registry[Any] = Registry("sampler", "samplers", {})
OPTIMIZERS: Registry[Any] = Registry("optimizer", "optimizers", {})
SCHEDULES: Registry[Any] = Registry("schedule", "schedules", {})
ENGINES: Registry[Any] = Registry(
    "search engine",
    "engines",
    {**_in("gallery.engines", "exact", "hnsw", "milvus"), "auto": "crosspair.gallery.engines.hnsw"},
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
