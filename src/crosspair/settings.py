"""Settings of registered things: read from their signatures, and checked before they are used.

    def half(image_embeddings, text_embeddings, image_labels, text_labels, *,
             share: Annotated[float, Range(at_least=0), "of the first direction"] = 0.5): ...

has the setting `share`, a float of at least 0, by default 0.5. Range and meaning may be left out.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from crosspair.errors import UserError


@dataclass(frozen=True)
class Range:
    """Finite numbers that a setting takes. None and other values that its type allows are not looked at."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        words = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}
        bounds = [f"{word} {vars(self)[name]:g}" for name, word in words.items() if math.isfinite(vars(self)[name])]
        return " and ".join(bounds) or "a finite number"


@dataclass(frozen=True)
class Setting:
    """A setting's name, type, default, and what its annotations say of it."""

    name: str
    type: Any
    default: Any
    meaning: str = ""
    range: Range | None = None


def settings_of(thing: Any, given: Collection[str] = ()) -> dict[str, Setting]:
    """The settings of a registered thing by name, in the order of its signature.

    Those of a function are its keyword-only parameters, of a class all parameters of its __init__ that have a default.
    given: names of parameters that are not settings, as the caller gives them where a thing asks for them.

    Raises UserError for a keyword-only parameter without a default that nobody gives.
    """
    call = thing.__init__ if inspect.isclass(thing) else thing
    if inspect.isclass(thing) and call is object.__init__:
        return {}
    hints = _hints(call)
    found = {}
    for parameter in inspect.signature(call).parameters.values():
        optional = parameter.default is not inspect.Parameter.empty
        keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if parameter.name in given or not (keyword or (optional and inspect.isclass(thing))):
            continue
        if not optional:
            raise UserError(
                f"the parameter {parameter.name} of {thing.__qualname__} has no default; a setting needs one"
            )
        found[parameter.name] = _setting(parameter.name, parameter.default, hints.get(parameter.name))
    return found


def asks_for(thing: Any, name: str) -> bool:
    """Whether a function, or a class's __init__, has a parameter of that name."""
    try:
        return name in inspect.signature(thing).parameters
    except ValueError:  # Python can't tell, of some things that are written in C
        return False


def apply_settings(thing: Callable[..., Any], settings: Mapping[str, Any], **given: Any) -> Callable[..., Any]:
    """A function or class with its settings filled in, and with what it asks for of `given` by naming it."""
    return partial(thing, **settings, **{name: value for name, value in given.items() if asks_for(thing, name)})


def check_settings(
    known: Mapping[str, Setting], values: Mapping[str, Any], prefix: str, also: Collection[str] = ()
) -> dict[str, Any]:
    """All settings: those given, checked against their declared types, and the defaults of the others.

    values: from Python or YAML, or as text from the command line. prefix: of a setting's name in messages. also: names
    to suggest beside the known ones.

    Raises UserError for an unknown setting, with the nearest name, for a wrong type and for a number out of range.
    """
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *also], n=1, cutoff=0.5)
            expected = f"expected one of {', '.join(known)}" if known else "nothing has settings there"
            hint = f", did you mean '{prefix}{near[0]}'?" if near else f"; {expected}"
            raise UserError(f"unknown field '{prefix}{name}'{hint}")
    checked = {}
    for name, setting in known.items():
        value = _typed(setting, values[name], prefix + name) if name in values else setting.default
        checked[name] = list(value) if isinstance(value, tuple) else value  # as YAML reads it back
    return checked


def _typed(setting: Setting, value: Any, where: str) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False)
    try:
        parser.add_argument("--value", type=setting.type)
    except ValueError:  # a stranger's annotation that nothing can be parsed by
        parser.add_argument("--value", type=Any)
    try:
        text = isinstance(value, str)
        found = parser.parse_args([f"--value={value}"]) if text else parser.parse_object({"value": value})
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(f"{where} is {value!r}; expected {_type_name(setting.type)}") from error
    if setting.range is not None and found.value not in setting.range:
        otherwise = "null, or " if type(None) in get_args(setting.type) else ""
        raise UserError(f"{where} is {found.value}; expected {otherwise}{setting.range}")
    return found.value


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_type_name, get_args(kind)))
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(kind) or str(kind)


def _setting(name: str, default: Any, hint: Any) -> Setting:
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        notes = tuple(rest)
    if hint is None:
        hint = Any if default is None else type(default)
    meaning = next((note for note in notes if isinstance(note, str)), "")
    allowed = next((note for note in notes if isinstance(note, Range)), None)
    return Setting(name, hint, default, meaning, allowed)


def _hints(call: Any) -> dict[str, Any]:
    try:
        return get_type_hints(call, include_extras=True)
    except Exception:  # a stranger's annotation that can't be evaluated says nothing
        return {}
