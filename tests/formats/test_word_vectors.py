"""Word vectors as published files have them, spaces in words and all."""

import numpy as np
import pytest

from crosspair.errors import UserError
from crosspair.formats.word_vectors import read_word_vectors

WORDS = ["the", "dog", "at", "email", "0.20785", ".", "unseen"]


@pytest.fixture
def write(tmp_path):
    def to(content: bytes):
        (tmp_path / "vectors.txt").write_bytes(content)
        return tmp_path / "vectors.txt"

    return to


def read(path, words=WORDS, dim=3):
    return {word: vector.tolist() for word, vector in read_word_vectors(path, words, dim=dim).items()}


@pytest.mark.parametrize(
    "content",
    [
        b"the 1 2 3\ndog 0.5 -1e-3 4\n",
        b"2 3\nthe 1 2 3\ndog 0.5 -1e-3 4\n",  # word2vec's header
        b"2 3\nthe 1 2 3 \ndog 0.5 -1e-3 4 \n",  # fastText ends its lines with a space
        b"the 1 2 3\r\ndog 0.5 -1e-3 4\r\n",
        b"the 1 2 3\ndog 0.5 -1e-3 4",  # without a last newline
        b"the 1 2 3\ndog 0.5 -1e-3 4\nthe 9 9 9\n",  # the first counts
        b"the 1 2 3\n\n 7 7 7\ndog 0.5 -1e-3 4\n",  # a word that is a newline
    ],
)
def test_words_have_their_vectors(write, content):
    assert read(write(content)) == {"the": [1, 2, 3], "dog": [0.5, np.float32(-1e-3), 4]}


def test_words_with_spaces_are_other_words(write):
    """As in glove.840B.300d: "at name@domain.com" is no "at", and ". . ." no "."."""
    content = b"the 1 2 3\nat name@domain.com 4 5 6\nat 7 8 9\n. . . 0 0 0\nemail name@domain.com 1 1 1\n"
    assert read(write(content)) == {"the": [1, 2, 3], "at": [7, 8, 9]}


def test_words_that_are_a_space_of_unicode_or_no_utf8_are_no_numbers(write):
    """As in glove.twitter.27B (U+0085) and glove.840B (U+00A0, broken UTF-8), where lines seem a number too short."""
    content = b"the 1 2 3\n\xc2\x85 0.20785 0.2703 4\n\xc2\xa0 0.20785 1 1\n\xff\xfe\xef\xbf\xbd 1 1 1\ndog 4 5 6\n"
    assert read(write(content)) == {"the": [1, 2, 3], "dog": [4, 5, 6]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 1 2\ndog 1 2\n", "has vectors of 2 numbers, and the word embedding has 3; set model.text.word_dim to 2"),
        (b"9 300\nthe 1 2 3\n", "has vectors of 300 numbers, and the word embedding has 3"),
        (b"the 1 2 3\ndog 1 2", r"line 2 of .* has 2 numbers, expected a word and 3; the file is cut short or damaged"),
        (b"the 1 2 3\ndog 1 x 3\n", r"line 2 of .* holds what is no number"),
        (b"the 1 2 3\ndog 1 nan 3\n", r"line 2 of .* holds a number that is not finite"),
        (b"PK\x03\x04zip", "is a ZIP archive; unpack it and name the .txt file"),
        (b"a page of text\n", "holds no word vectors"),
        (b"", ""),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(write, content, message):
    if not content:
        assert read(write(content)) == {}
        return
    with pytest.raises(UserError, match=message) as caught:
        read(write(content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"can't read the word vectors .*glove.txt \(No such file"):
        read(tmp_path / "glove.txt")


def test_large_files_show_a_bar(write, capsys):
    content = b"".join(b"w%d 1 2 3\n" % number for number in range(2500))
    read_word_vectors(write(content), ["w7"], dim=3, progress=True)
    assert "word vectors" in capsys.readouterr().err
