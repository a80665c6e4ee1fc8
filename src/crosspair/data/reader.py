"""Declarations of a data format's reader: the paths and options it takes, and the counts its authors published.

A reader is a function that gives a Record for each image. Its parameters say what it takes from the command line:

    @register_reader("mine")
    def mine(annotations: Path, images: Path, *, language: str = "en") -> Iterable[Record]: ...

`annotations` and `images` are the paths of --annotations and --images, required unless they have a default; a reader
without one of them takes no such path. Parameters behind the * are its options: `language` is --language.

A reader checks the whole annotation file before its first record, so that a wrong file fails in seconds, not in hours;
one of a format that holds its images checks as it goes. What it returns has a length when the records can be gone
through again, and then most of it is on disk if there can be many.
"""

import argparse
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from crosspair.data.layout import SplitFacts
from crosspair.data.records import Record
from crosspair.errors import UserError
from crosspair.registry import READERS

Function = TypeVar("Function", bound=Callable[..., Iterable[Record]])

ALL_SPLITS = "all splits"  # the name under which published counts of the splits together stand


class Reader:
    """A registered reader by its name, with what it declares."""

    def __init__(self, name: str) -> None:
        """Raises UserError when there is none of that name."""
        self.name = name
        self.function: Callable[..., Iterable[Record]] = READERS.get(name)
        self._parameters = inspect.signature(self.function).parameters

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The reader's own options."""
        return {name: one for name, one in self._parameters.items() if one.kind is one.KEYWORD_ONLY}

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The reader's options from the command line: those that are given. Raises UserError for any other.

        An option is read as what its default is: a whole or a decimal number, a flag for a truth value, else text.
        """
        parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for name, parameter in self.options.items():
            kind = type(parameter.default)
            if kind is bool:
                parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction)
            else:
                parser.add_argument(_flag(name), type=kind if kind in (int, float) else str)
        given, rest = parser.parse_known_args(arguments)
        if rest:
            self._refuse(rest[0])
        return vars(given)

    def bind(
        self, annotations: Path | None, images: Path | None, options: Mapping[str, Any]
    ) -> Callable[[], Iterable[Record]]:
        """The reader with its paths and options: each call begins to read. Raises UserError for others."""
        paths = {"annotations": annotations, "images": images}
        for name, path in paths.items():
            parameter = self._parameters.get(name)
            if path is not None and parameter is None:
                raise UserError(f"{self.name} has no {name} apart from its {_other(name)}; leave --{name} out")
            if path is None and parameter is not None and parameter.default is parameter.empty:
                raise UserError(self._missing(name))
        for name in options:
            if name not in self.options:
                self._refuse(_flag(name))
        for name, parameter in self.options.items():
            if parameter.default is parameter.empty and name not in options:
                raise UserError(f"{self.name} needs its option {_flag(name)}; give it a value")
        return partial(self.function, **{name: path for name, path in paths.items() if path is not None}, **options)

    def differences(self, splits: Mapping[str, SplitFacts], options: Mapping[str, Any]) -> list[str]:
        """Differences to the counts that the format's authors published, a sentence each; none where there are none.

        options: those that the data were read with.
        """
        published = getattr(self.function, "published", {})
        published = dict(published(**options) if callable(published) else published)
        found = {split: Counts(facts.images, facts.captions, facts.labels) for split, facts in splits.items()}
        if ALL_SPLITS in published:
            found[ALL_SPLITS] = _sum(list(found.values()))
        lines = [_difference(split, found.get(split, Counts(0, 0, 0)), counts) for split, counts in published.items()]
        if published:
            lines += [f"{split} is no published split of {self.name}" for split in found if split not in published]
        return [line for line in lines if line]

    def _missing(self, path: str) -> str:
        if path == "images" and "annotations" in self._parameters:
            return f"the annotations of {self.name} hold no pictures; give --images DIR, the folder they lie in"
        return f"{self.name} needs its {path}; name them with --{path}"

    def _refuse(self, option: str) -> NoReturn:
        taken = ", ".join(map(_flag, self.options))
        known = f"its own options are {taken}" if taken else "it has no options of its own"
        option = option.partition("=")[0]
        raise UserError(f"{self.name} takes no {option}; {known} (crosspair prepare --help lists those of all formats)")


@dataclass(frozen=True)
class Counts:
    """Published counts of a split; None is not published."""

    images: int | None = None
    captions: int | None = None
    labels: int | None = None


def published(counts: Mapping[str, Counts] | Callable[..., Mapping[str, Counts]]) -> Callable[[Function], Function]:
    """A decorator that gives a reader its format's published counts by split; a function gets the reader's options."""

    def add(function: Function) -> Function:
        function.published = counts  # type: ignore[attr-defined]
        return function

    return add


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"the format's options can't be read: {message}")


def _other(name: str) -> str:
    return "images" if name == "annotations" else "annotations"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _sum(counts: list[Counts]) -> Counts:
    def total(values: list[int | None]) -> int | None:
        return None if None in values else sum(value or 0 for value in values)

    return Counts(*(total([getattr(one, name) for one in counts]) for name in ("images", "captions", "labels")))


def _difference(split: str, found: Counts, published: Counts) -> str:
    parts = []
    for name in ("images", "captions", "labels"):
        here, there = getattr(found, name), getattr(published, name)
        if there is not None and here != there:
            parts.append(f"{here:,} {name} ({there:,} published)")
    return f"{split} has {', '.join(parts)}" if parts else ""
