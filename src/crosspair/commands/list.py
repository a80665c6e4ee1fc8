"""crosspair list: the registered losses, encoders, data formats and other things that recipes and options name."""

import difflib
from argparse import Namespace

from crosspair.errors import UserError
from crosspair.registry import REGISTRIES, Entry, list_registered

_RECIPES = "recipes"
_SEVERAL = {"encoders": ["image_encoders", "text_encoders"], "formats": ["readers"]}  # further words for some kinds


def run(options: Namespace) -> None:
    """Print the names of a kind with their summaries, or the kinds."""
    kinds = [*(plural.replace("_", "-") for plural in REGISTRIES), *_SEVERAL, _RECIPES]
    if options.kind is None:
        print("\n".join(["crosspair list KIND, with one of these kinds:", *(f"  {kind}" for kind in kinds)]))
    elif options.kind == _RECIPES:
        from crosspair.training.recipe_files import describe_recipes

        print(describe_recipes())
    elif options.kind not in kinds:
        near = difflib.get_close_matches(options.kind, kinds, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no list of {options.kind}{hint}; expected one of {', '.join(kinds)}")
    else:
        for plural in _SEVERAL.get(options.kind, [options.kind]):
            print(_table(list_registered(plural)))


def _table(entries: list[Entry[object]]) -> str:
    if not entries:
        return "(none)"
    width = max(len(entry.name) for entry in entries)
    return "\n".join(f"{entry.name:<{width}}  {_about(entry)}".rstrip() for entry in entries)


def _about(entry: Entry[object]) -> str:
    origin = f"[plugin {entry.plugin.name}]" if entry.plugin is not None else ""
    return f"{entry.summary} {origin}".strip()
