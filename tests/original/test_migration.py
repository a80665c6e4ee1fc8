"""From the original's files to a DATA directory and a model, through the command line."""

import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.data.tokens import tokenize
from crosspair.encode.model import DualEncoder
from tests.fixtures.paths import REPOSITORY, TFRECORDS

Arrays = dict[str, np.ndarray]

# The pictures and annotations that the original's converter made the shards of.
SOURCE, PEDES_SOURCE = TFRECORDS / "flickr_source", TFRECORDS / "pedes_source"
WORD_COUNTS = TFRECORDS / "flickr" / "word_counts.txt"


def prepare(format_name: str, annotations: Path, output: Path, *options: str) -> int:
    arguments = ["prepare", format_name, "--annotations", str(annotations), "--output", str(output), "--processes", "1"]
    return main([*arguments, *options])


def tokenized(caption: str) -> str:
    return " ".join(tokenize(caption))


def letters(caption: str) -> str:
    return "".join(character for character in caption.lower() if character.isalnum())


@pytest.mark.parametrize(
    ("shards", "format_name", "annotations", "images"),
    [
        ("flickr", "flickr30k", SOURCE / "dataset_flickr30k.json", SOURCE / "images"),
        ("pedes", "cuhk-pedes", PEDES_SOURCE / "reid_raw.json", PEDES_SOURCE / "imgs"),
    ],
)
def test_preparing_tfrecords_gives_what_preparing_their_source_gives(
    shards: str, format_name: str, annotations: Path, images: Path, tmp_path: Path
) -> None:
    assert prepare("tfrecord", TFRECORDS / shards, tmp_path / "tfrecord") == 0
    assert prepare(format_name, annotations, tmp_path / "direct", "--images", str(images)) == 0
    found, expected = open_data(tmp_path / "tfrecord"), open_data(tmp_path / "direct")
    assert found.split_names == expected.split_names == ["train", "val", "test"]
    # The converter for CUHK-PEDES makes "tshirt" of "t-shirt", the tokenizer "t shirt".
    words = letters if shards == "pedes" else tokenized
    for name in found.split_names:
        split, direct = found.split(name), expected.split(name)
        order = [split.image_ids.index(image_id) for image_id in direct.image_ids]  # pictures come by label and name
        assert len(order) == len(split)
        assert split.labels[order].tolist() == direct.labels.tolist()
        for place, originals in zip(order, direct.captions, strict=True):
            captions = split.captions[place]
            # Records keep words only, in a shuffled order: case, punctuation and the captions' order are gone.
            assert all(caption == " ".join(tokenize(caption)) for caption in captions)
            assert Counter(map(words, captions)) == Counter(map(words, originals))


def documented_commands() -> list[tuple[list[str], str]]:
    """(arguments, output) of the commands that docs/fidelity.md moves from the original with, in their order."""
    section = (REPOSITORY / "docs" / "fidelity.md").read_text().partition("\n## Moving from the original\n")[2]
    blocks = re.findall(r"^```\n(.*?)^```", section.replace("\\\n", " "), re.MULTILINE | re.DOTALL)
    commands = [re.split("^[$] crosspair ", block, flags=re.MULTILINE) for block in blocks]
    lines = [command.partition("\n") for block in commands for command in block[1:]]
    return [(shlex.split(line), output) for line, _, output in lines]


def test_the_documented_commands_run_in_a_checkout_and_print_what_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(REPOSITORY / "tests")
    commands = documented_commands()
    assert [arguments[0] for arguments, _ in commands] == ["prepare", "import", "evaluate", "train"]
    for arguments, documented in commands:
        assert main(arguments) == 0
        pattern = re.escape(documented.strip()).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, capsys.readouterr().out.strip(), re.DOTALL), arguments


def test_tfrecords_need_no_folder_of_pictures_and_other_formats_say_that_they_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare("flickr30k", SOURCE / "dataset_flickr30k.json", tmp_path / "DATA") == 2
    assert capsys.readouterr().err == (
        "crosspair: the annotations of flickr30k hold no pictures; give --images DIR, the folder they lie in\n"
    )
    assert not (tmp_path / "DATA").exists()


def import_arguments(checkpoint: Path, output: Path) -> list[str]:
    return ["import", str(checkpoint), "--word-counts", str(WORD_COUNTS), "--output", str(output)]


@pytest.fixture
def imported(tmp_path: Path, trained: Arrays, write_v2: Callable[[Path, Arrays], None]) -> Path:
    write_v2(tmp_path / "model.ckpt-39", trained)
    assert main(import_arguments(tmp_path / "model.ckpt-39", tmp_path / "MODEL")) == 0
    return tmp_path / "MODEL"


def test_an_imported_checkpoint_is_a_model_with_the_original_embeddings(
    imported: Path, oracle: Callable[[str], Arrays]
) -> None:
    expected = oracle("checkpoint/embeddings")
    embeddings = expected["ema_one_at_a_time_image_embeddings"]
    found = DualEncoder.from_pretrained(imported).encode_image([expected[f"image{row}_uint8"] for row in range(4)])
    np.testing.assert_allclose(found, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), atol=1e-4)


def test_an_imported_model_is_evaluated_by_both_definitions_of_average_precision(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare("tfrecord", TFRECORDS / "flickr", tmp_path / "DATA") == 0
    capsys.readouterr()
    arguments = ["evaluate", str(imported), "--data", str(tmp_path / "DATA")]
    assert main(arguments) == 0
    assert "mAP_original" not in capsys.readouterr().out
    assert main([*arguments, "--metric-definition", "original"]) == 0
    header = capsys.readouterr().out.splitlines()[1].split()
    assert header == ["R@1", "R@5", "R@10", "mAP", "mAP_original", "median_rank", "mean_rank"]


def test_a_model_is_not_imported_over_another(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(import_arguments(imported.with_name("model.ckpt-39"), imported)) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(import_arguments(tmp_path / "model", tmp_path / "MODEL")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"crosspair: no checkpoint at {tmp_path / 'model'}; expected ")
    assert error.count("\n") == 1
    assert not (tmp_path / "MODEL").exists()
