"""Tokenizers: captions to numbers of words of a vocabulary, or of subwords of a pretrained text encoder."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from crosspair.errors import UserError

PADDING = 0
UNKNOWN = 1
_FIRST_WORD = 2
_WORD = re.compile(r"\w+|'\w*")
_BETWEEN_SPACES = re.compile(r"\S+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)

Tokenizer = Literal["words", "original", "stored"]
SpecialTokens = Literal["none", "start", "both"]
_SPECIAL_TOKENS: dict[SpecialTokens, tuple[list[str], list[str]]] = {
    "none": ([], []),
    "start": (["<start>"], []),
    "both": (["<start>"], ["<end>"]),
}


def tokenize(caption: str, tokenizer: Tokenizer = "words") -> list[str]:
    """Lower-case words of a caption, without punctuation.

    words: an apostrophe starts a word of its own ("dog's": dog 's), other punctuation ends one ("t-shirt": t shirt). On
    captions already split in the Penn Treebank way this gives the words of Karpathy's annotations.
    original: ASCII punctuation is deleted ("man's": mans, "t-shirt": tshirt), as by the original's converter for
    CUHK-PEDES. stored: of a caption that came without its words, as `words`.
    """
    if tokenizer == "original":
        return _BETWEEN_SPACES.findall(caption.lower().translate(_PUNCTUATION))
    return _WORD.findall(caption.lower().replace("\u2019", "'"))


def says_side(caption: str) -> bool:
    """Whether a caption has the word left or right, in whatever sense: a flipped image may not be what it says."""
    return _SIDE.search(caption) is not None


def word_rules(tokenizer: Tokenizer, special_tokens: SpecialTokens, max_words: int) -> dict[str, Any]:
    """The steps from a caption to words, in their order, for programs that do without this one."""
    before, behind = _SPECIAL_TOKENS[special_tokens]
    of_words = tokenizer != "original"
    return {
        "lower_case": True,
        "replace": {"\u2019": "'"} if of_words else dict.fromkeys(string.punctuation, ""),
        "words": (_WORD if of_words else _BETWEEN_SPACES).pattern,
        "max_words": max_words,
        "before": before,
        "behind": behind,
    }


class Vocabulary:
    """Words and their numbers: 0 is padding, 1 an unknown word, 2 and up the words by falling count."""

    FILE = "vocabulary.txt"

    def __init__(self, words: Sequence[str]) -> None:
        if len(set(words)) != len(words):
            raise ValueError("a word stands twice in the vocabulary")
        self.words = list(words)
        self._number = {word: number for number, word in enumerate(self.words, start=_FIRST_WORD)}

    @classmethod
    def from_captions(
        cls,
        captions: Iterable[str],
        min_count: int = 3,
        special_tokens: SpecialTokens = "none",
        tokenizer: Tokenizer = "words",
    ) -> "Vocabulary":
        """Words seen at least `min_count` times, after the special tokens; words of equal count in alphabetical order.

        captions: or a Counter of their words.
        """
        if isinstance(captions, Counter):
            counts: Counter[str] = captions
        else:
            counts = Counter(word for caption in captions for word in tokenize(caption, tokenizer))
        kept = [word for word, count in counts.items() if count >= min_count]
        before, behind = _SPECIAL_TOKENS[special_tokens]
        return cls([*before, *behind, *sorted(kept, key=lambda word: (-counts[word], word))])

    def __len__(self) -> int:
        """Rows an embedding table needs: all words, padding and the unknown word."""
        return len(self.words) + _FIRST_WORD

    def encode(
        self,
        caption: str | Sequence[str],
        max_words: int | None = None,
        special_tokens: SpecialTokens = "none",
        tokenizer: Tokenizer = "words",
    ) -> list[int]:
        """Word numbers of a caption or of its words, cut after `max_words`. One without a word is one unknown word."""
        before, behind = _SPECIAL_TOKENS[special_tokens]
        found = tokenize(caption, tokenizer) if isinstance(caption, str) else caption
        words = [*before, *found[:max_words], *behind]
        return [self._number.get(word, UNKNOWN) for word in words] or [UNKNOWN]

    def save(self, path: Path) -> None:
        """One word a line, in the order of their numbers."""
        path.write_text("".join(f"{word}\n" for word in self.words), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        try:
            return cls(path.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a vocabulary of one word a line ({error}); copy the model again") from error


class SubwordTokenizer:
    """A Hugging Face tokenizer (tokenizer.json) with the interface of `Vocabulary`.

    longest: most tokens of a caption, special ones included. fixed_length: fill every caption with padding up to
    `longest`, and let the encoder read it, as SigLIP was trained.
    """

    FILE = "tokenizer.json"

    def __init__(self, definition: str, longest: int, *, fixed_length: bool = False) -> None:
        from tokenizers import Tokenizer

        self.longest = longest
        self.fixed_length = fixed_length
        self._tokenizer = Tokenizer.from_str(definition)
        self._padding = self._tokenizer.padding
        self._tokenizer.no_padding()
        self._cut_after(longest)

    @classmethod
    def load(cls, path: Path, architecture: dict[str, Any]) -> "SubwordTokenizer":
        """Read tokenizer.json for a text encoder of this architecture (its Hugging Face configuration)."""
        longest = int(architecture["max_position_embeddings"])
        if architecture["model_type"] in {"roberta", "xlm-roberta", "camembert", "mpnet"}:
            longest -= 2  # their positions start behind the padding's number
        fixed = architecture["model_type"].startswith("siglip")
        try:
            return cls(path.read_text(encoding="utf-8"), longest, fixed_length=fixed)
        except Exception as error:  # the library raises plain Exception for a file it can't read
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is not a tokenizer ({reason}); copy its tokenizer.json again") from error

    def __len__(self) -> int:
        """Number of subwords."""
        return int(self._tokenizer.get_vocab_size())

    def encode(
        self,
        caption: str | Sequence[str],
        max_words: int | None = None,
        special_tokens: SpecialTokens = "none",
        tokenizer: Tokenizer = "words",
    ) -> list[int]:
        """Subword numbers of a caption with the special tokens around it, `max_words` tokens at most.

        special_tokens, tokenizer: of the vocabulary of words; a pretrained encoder has its own. Words that are given
        are joined by spaces.
        """
        caption = caption if isinstance(caption, str) else " ".join(caption)
        longest = self.longest if max_words is None else min(max_words, self.longest)
        if longest != self._cut:
            self._cut_after(longest)
        numbers: list[int] = self._tokenizer.encode(caption).ids
        if self.fixed_length:
            numbers += [self.filler] * (longest - len(numbers))
        return numbers or [0]

    @property
    def filler(self) -> int:
        """The number that captions of fixed length are filled with."""
        return int(self._padding["pad_id"]) if self._padding else 1

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    def _cut_after(self, tokens: int) -> None:
        self._cut = tokens
        self._tokenizer.enable_truncation(tokens)


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Word numbers of m captions as (tokens int64 [m, longest], lengths int64 [m]), padded at the end."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.full((len(sequences), int(lengths.max())), PADDING)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.as_tensor(sequence)
    return tokens, lengths
