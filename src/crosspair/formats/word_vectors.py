"""Word vectors as text: a word and its numbers a line, as GloVe, word2vec (with a header line) and fastText have them.

    the 0.418 0.24968 -0.41242
    at name@domain.com 0.023778 -0.16 -0.26

Lines end at a newline alone and numbers are counted from the end, as published files have words that are or hold
spaces, other characters of space (GloVe's Twitter vectors one that is U+0085), and words that are not UTF-8.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from crosspair.errors import UserError
from crosspair.progress import progress_bar

_EXPECTED = "expected text with a word and its numbers a line, as GloVe's .txt"
_LINES_AT_ONCE = 1000  # between two updates of the bar


def read_word_vectors(path: Path, words: Collection[str], *, dim: int, progress: bool = False) -> dict[str, np.ndarray]:
    """The vectors float32 [dim] of those words that a file has, by word; the first where a word stands twice.

    words: as the file spells them, upper and lower case are different. Nothing of others is kept. progress: show a bar.
    Raises UserError for a file that can't be read or is none of word vectors, for another dimension than dim, and
    naming the line for one that is cut short or holds what is no finite number.
    """
    wanted = {word.encode(): word for word in words}
    found: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file, _bar(path, progress) as bar:
            for number, raw in enumerate(file, 1):
                if number % _LINES_AT_ONCE == 0:
                    bar.update(file.tell() - bar.n)
                line = raw.rstrip(b" \r\n")
                if number == 1:
                    _check_first(line, path, dim)
                    if _is_header(line):
                        continue
                spaces = line.count(b" ")
                if spaces < dim:
                    if line:
                        raise UserError(_cut_short(path, number, spaces, dim))
                    continue
                key = line[: line.index(b" ")] if spaces == dim else line.rsplit(b" ", dim)[0]
                word = wanted.get(key)
                if word is not None and word not in found:
                    found[word] = _numbers(line[len(key) + 1 :], path, number)
            bar.update(file.tell() - bar.n)
    except OSError as error:
        raise UserError(f"can't read the word vectors {path} ({error.strerror}); name a readable file") from error
    return found


def _bar(path: Path, progress: bool) -> Any:
    total = path.stat().st_size
    return progress_bar(total=total, desc="word vectors", unit="B", unit_scale=True, disable=not progress, leave=False)


def _check_first(line: bytes, path: Path, dim: int) -> None:
    """Raise UserError unless the first line, a header or a word's, is one of vectors of that dimension."""
    if line.startswith(b"PK\x03\x04"):
        raise UserError(f"{path} is a ZIP archive; unpack it and name the .txt file that it holds")
    parts = line.split(b" ")
    if _is_header(line):
        width = int(parts[1])
    elif len(parts) > 2 and all(map(_is_number, parts[-2:])):
        width = len(parts) - 1
    else:
        raise UserError(f"{path} holds no word vectors (line 1 is {line[:40]!r}); {_EXPECTED}")
    if width != dim:
        raise UserError(
            f"{path} has vectors of {width} numbers, and the word embedding has {dim}; set model.text.word_dim to "
            f"{width}"
        )


def _is_header(line: bytes) -> bool:
    """Whether it is word2vec's first line, the number of words and that of dimensions."""
    parts = line.split(b" ")
    return len(parts) == 2 and all(part.isdigit() for part in parts)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cut_short(path: Path, number: int, spaces: int, dim: int) -> str:
    return (
        f"line {number:,} of {path} has {spaces} numbers, expected a word and {dim}; the file is cut short or damaged, "
        "get it again"
    )


def _numbers(text: bytes, path: Path, number: int) -> np.ndarray:
    try:
        values = np.array([float(part) for part in text.split(b" ")], dtype=np.float32)
    except ValueError as error:
        raise UserError(f"line {number:,} of {path} holds what is no number ({error}); {_EXPECTED}") from error
    if not np.isfinite(values).all():
        raise UserError(f"line {number:,} of {path} holds a number that is not finite; get the file again")
    return values
