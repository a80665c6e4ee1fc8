"""What `crosspair train --fields` prints: every field of a recipe, with its default and what it means."""

from dataclasses import fields, is_dataclass
from typing import Any

from crosspair.registry import LOSSES, OPTIMIZERS, Registry
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_checks import CHOSEN


def field_help() -> str:
    """Every field with its default and what it means, a line each; losses and the like by their registries."""
    return "\n".join(_describe(Recipe(), ""))


def _describe(value: Any, prefix: str) -> list[str]:
    from docstring_parser import parse_from_object

    meaning = {param.arg_name: param.description or "" for param in parse_from_object(type(value)).params}
    lines = []
    for item in fields(value):
        child, dotted = getattr(value, item.name), prefix + item.name
        text = " ".join(meaning.get(item.name, "").split())
        if is_dataclass(child):
            lines += _describe(child, f"{dotted}.")
        elif dotted == "loss":
            for name in LOSSES.names():
                lines += _line(f"loss.{name}", child.get(name, 0.0), f"Weight. {LOSSES.entry(name).summary}")
                lines += _settings_lines(LOSSES, name, f"loss.{name}.")
        elif dotted == "optimizer.settings":
            for name in OPTIMIZERS.names():
                lines += _settings_lines(OPTIMIZERS, name, "optimizer.", f"Of {name}. ")
        elif item.name in CHOSEN:
            lines += _line(dotted, child, text)
            for name in CHOSEN[item.name].names():
                lines += _settings_lines(CHOSEN[item.name], name, f"{dotted}.", f"Of {name}. ")
        elif dotted != "plugins":  # which a run writes
            lines += _line(dotted, child, text)
    return lines


def _settings_lines(registry: Registry[Any], name: str, prefix: str, text: str = "") -> list[str]:
    lines = []
    for setting in registry.entry(name).settings.values():
        limits = f" ({setting.range})" if setting.range else ""
        lines += _line(prefix + setting.name, setting.default, f"{text}{setting.meaning}{limits}".strip())
    return lines


def _line(dotted: str, default: Any, text: str) -> list[str]:
    return [f"  --{dotted} {default!r}", *([f"      {text}"] if text else [])]
