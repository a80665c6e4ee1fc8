"""Captions into subword numbers, by the tokenizer that a pretrained text encoder was trained with."""

from pathlib import Path
from typing import Any

from crosspair.data.tokens import SpecialTokens
from crosspair.errors import UserError


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

    def encode(self, caption: str, max_words: int | None = None, special_tokens: SpecialTokens = "none") -> list[int]:
        """Subword numbers of a caption with the special tokens around it, `max_words` tokens at most.

        markers belong to the vocabulary of words; the special tokens of a pretrained encoder are its own.
        """
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
