import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.data.tokens import PADDING, UNKNOWN, Vocabulary, pad, tokenize
from crosspair.errors import UserError
from tests.fixtures.paths import REPOSITORY, TFRECORDS


def test_words_are_lower_case_without_punctuation():
    assert tokenize('A man , in a "Blue" shirt .') == ["a", "man", "in", "a", "blue", "shirt"]


@pytest.mark.parametrize("caption", ["a dog's lead", "a dog 's lead", "a dog\u2019s lead"])
def test_a_possessive_reads_the_same_however_it_was_written(caption: str):
    assert tokenize(caption) == ["a", "dog", "'s", "lead"]


def test_words_below_the_count_are_unknown():
    vocabulary = Vocabulary.from_captions(["dog dog dog cat cat"], min_count=3)
    assert vocabulary.words == ["dog"]
    assert vocabulary.encode("dog cat") == [2, UNKNOWN]


def test_no_word_has_the_number_of_padding():
    vocabulary = Vocabulary.from_captions(["a b c"], min_count=1)
    assert PADDING not in vocabulary.encode("a b c d")
    assert max(vocabulary.encode("a b c")) == len(vocabulary) - 1


def test_captions_are_cut_at_the_limit():
    vocabulary = Vocabulary(["a"])
    assert vocabulary.encode("a a a a", max_words=2) == [2, 2]


def test_a_caption_without_words_is_one_unknown_word():
    assert Vocabulary(["a"]).encode("...") == [UNKNOWN]


def test_markers_are_words_around_the_caption():
    vocabulary = Vocabulary.from_captions(["dog"], min_count=1, special_tokens="both")
    assert vocabulary.words == ["<start>", "<end>", "dog"]
    assert vocabulary.encode("dog dog", max_words=1, special_tokens="both") == [2, 4, 3]
    assert vocabulary.encode("dog dog", max_words=1, special_tokens="start") == [2, 4]


@given(st.lists(st.text(), max_size=20))
def test_a_saved_vocabulary_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, captions: list[str]):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    vocabulary = Vocabulary.from_captions(captions, min_count=1)
    vocabulary.save(path)
    assert Vocabulary.load(path).words == vocabulary.words


def test_a_vocabulary_with_a_word_twice_is_refused(tmp_path):
    (tmp_path / "vocabulary.txt").write_text("dog\ndog\n")
    with pytest.raises(UserError, match="twice"):
        Vocabulary.load(tmp_path / "vocabulary.txt")


def test_padding_stands_behind_the_words():
    tokens, lengths = pad([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [8, PADDING, PADDING]]
    assert lengths.tolist() == [3, 1]
    assert tokens.dtype == lengths.dtype == torch.int64


class TestTheOriginalsWords:
    def test_have_ascii_punctuation_deleted(self):
        assert tokenize("A man's red-colored T-shirt; it's dark.", "original") == [
            *("a", "mans", "redcolored", "tshirt", "its", "dark")
        ]

    def test_are_those_of_its_converters_records(self):
        shards = json.loads((TFRECORDS / "pedes.json").read_text())
        theirs = Counter(
            (record["filename"].removeprefix("imgs/"), *record["caption"][1:-1])
            for records in shards.values()
            for record in records
        )
        source = json.loads((TFRECORDS / "pedes_source" / "reid_raw.json").read_text())
        ours = [(entry["file_path"], *tokenize(text, "original")) for entry in source for text in entry["captions"]]
        assert theirs == Counter(ours)

    @pytest.mark.parametrize(
        ("caption", "words"),
        [  # as people write them in CUHK-PEDES' and Flickr's way
            ("The man's wearing a t-shirt, knee-length shorts.", "the mans wearing a tshirt kneelength shorts"),
            ("She has on a black/white V-neck (and jeans) .", "she has on a blackwhite vneck and jeans"),
            ("A BLACK-AND-WHITE dog jumps; it isn't wet!", "a blackandwhite dog jumps it isnt wet"),
            ("shoes.He carries 2 bags", "shoeshe carries 2 bags"),
        ],
    )
    def test_of_real_sentences(self, caption: str, words: str):
        assert tokenize(caption, "original") == words.split()

    def test_of_karpathys_annotations_are_those_of_the_tokenizer_words(self):
        path = REPOSITORY.parent / "shared" / "data" / "flickr8k" / "dataset_flickr8k.json"
        if not path.is_file():
            pytest.skip("Flickr8k's annotations (../shared/data/flickr8k) are not here")
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        sentences = [sentence for image in images for sentence in image["sentences"]]
        alike = {
            name: sum(tokenize(sentence["raw"], name) == sentence["tokens"] for sentence in sentences) / len(sentences)
            for name in ("words", "stored", "original")
        }
        assert alike["words"] == alike["stored"] > 0.999
        assert alike["original"] < 0.98

    def test_are_encoded_as_they_are_where_they_are_given(self):
        vocabulary = Vocabulary(["t-shirt", "tshirt", "t", "shirt"])
        assert vocabulary.encode(["t-shirt"], tokenizer="stored") == [2]
        assert vocabulary.encode("t-shirt", tokenizer="original") == [3]
        assert vocabulary.encode("t-shirt", tokenizer="stored") == [4, 5]
        assert vocabulary.encode("t-shirt") == [4, 5]
