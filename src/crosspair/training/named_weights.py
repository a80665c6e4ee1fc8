"""Weights by patterns of their names: those that a stage freezes, and those that a run takes from another model.

A pattern is a whole name in which * stands for any characters (dots too), ? for one and [ab] for one of these:
`image_encoder.*`, `*.norm.*`. Names are those of checkpoints; a loss's begin with `losses.`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from crosspair.data.tokens import PADDING, UNKNOWN, Vocabulary
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.training.recipe import RestoreConfig
from crosspair.training.run import model_directory

_WORDS = "text_encoder.embedding.weight"


def matching(names: Iterable[str], patterns: Sequence[str], field: str) -> list[str]:
    """The names that match at least one of the patterns, in their order.

    field: that the patterns stand in, for messages. Raises UserError for a pattern that matches none, with near ones.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parents = {name[: dot.start()] + ".*" for name in names for dot in re.finditer(r"\.", name)}
            near = difflib.get_close_matches(pattern, [*sorted(parents), *names], n=3, cutoff=0.4)
            hint = f"near: {', '.join(near)}" if near else f"names begin with {', '.join(_roots(names))}"
            raise UserError(f"{field} has '{pattern}', which matches no name; {hint}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def freeze_matching(model: DualEncoder, losses: nn.Module, patterns: Sequence[str], field: str) -> list[Tensor]:
    """Keep the weights whose names match; those that would have trained. Raises UserError where nothing is left."""
    named = dict([*model.named_parameters(), *losses.named_parameters(prefix="losses")])
    frozen: list[Tensor] = [named[name] for name in matching(named, patterns, field) if named[name].requires_grad]
    for value in frozen:
        value.requires_grad_(False)
    if not any(value.requires_grad for value in named.values()):
        raise UserError(f"{field} leaves no weight to train; take a pattern out of it")
    return frozen


@torch.no_grad()
def restore_weights(
    model: DualEncoder, config: RestoreConfig, tell: Callable[[str], object] = lambda line: None
) -> None:
    """Take the weights and statistics that match from another model, as `config` says; the others stay.

    Of the word embedding the rows of the words that both know. Raises UserError for a model that can't be read or lacks
    one of them, and for one of another shape.
    """
    if config.model is None:
        return
    own = model.state_dict()
    left_out = set(matching(own, config.exclude, "restore.exclude"))
    chosen = [name for name in matching(own, config.include, "restore.include") if name not in left_out]
    source = DualEncoder.from_pretrained(model_directory(config.model), device="cpu")
    found, words = source.state_dict(), _shared_words(model, source)
    for name in chosen:
        if name not in found:
            raise UserError(f"{config.model} has no {name}; name it in restore.exclude")
        if name == _WORDS and words is not None:
            continue
        if found[name].shape != own[name].shape:
            shapes = f"{list(found[name].shape)}, here {list(own[name].shape)}"
            raise UserError(f"{name} of {config.model} has the shape {shapes}; name it in restore.exclude")
    for name in chosen:
        if name == _WORDS and words is not None:
            own[name][words[0]] = found[name][words[1]].to(own[name])
        else:
            own[name].copy_(found[name])
    tell(f"restored {len(chosen):,} of {len(own):,} tensors from {config.model}")
    if _WORDS in chosen and words is not None:
        tell(f"word embedding: {len(words[0]) - 2:,} of {len(own[_WORDS]) - 2:,} words are {config.model}'s")


def _shared_words(model: DualEncoder, source: DualEncoder) -> tuple[list[int], list[int]] | None:
    """Rows of the two tables for padding, the unknown word and the words of both; None where these are no words."""
    one, other = model.vocabulary, source.vocabulary
    widths = [table.shape[1:] for each in (model, source) if (table := each.state_dict().get(_WORDS)) is not None]
    if not isinstance(one, Vocabulary) or not isinstance(other, Vocabulary) or len({*widths}) != 1 or len(widths) != 2:
        return None
    theirs = set(other.words)
    rows = [(one.encode([word])[0], other.encode([word])[0]) for word in one.words if word in theirs]
    return [PADDING, UNKNOWN, *(row for row, _ in rows)], [PADDING, UNKNOWN, *(row for _, row in rows)]


def _roots(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in names))
