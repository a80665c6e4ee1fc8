"""crosspair report from the command line: embeddings with and without pictures, a second model, what is refused."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.storage.files import write_text
from crosspair.training.loop import train
from crosspair.training.origin import describe_origin
from crosspair.training.record import NAME


def arrays(data: Path, seed: int) -> dict[str, np.ndarray]:
    """Embeddings of the split val, by a poor model of that seed."""
    split = open_data(data).split("val")
    rows = np.repeat(np.arange(len(split)), [len(captions) for captions in split.captions])
    centres = np.random.default_rng(9).normal(size=(len(split), 6))
    random = np.random.default_rng(seed)
    return {
        "image_embeddings": centres + random.normal(size=centres.shape),
        "text_embeddings": centres[rows] + random.normal(size=(len(rows), 6)),
        "image_labels": split.labels,
        "text_labels": split.labels[rows],
    }


@pytest.fixture
def files(toy_directory, tmp_path) -> list[Path]:
    """Two models' embeddings of val."""
    found = [tmp_path / name for name in ("one.npz", "other.npz")]
    for seed, path in enumerate(found):
        np.savez(path, **arrays(toy_directory, seed))
    return found


@pytest.fixture
def report(tmp_path, capsys):
    """Make a report, and return its HTML."""

    def make(*arguments: object) -> str:
        page = tmp_path / "page.html"
        assert main(["report", *map(str, arguments), "--output", str(page), "--device", "cpu"]) == 0
        assert f"report: {page}" in capsys.readouterr().out
        return page.read_text(encoding="utf-8")

    return make


@pytest.fixture
def refused(capsys, tmp_path):
    """The sentence of a report that can't be made, which leaves nothing behind."""

    def ask(*arguments: object) -> str:
        page = tmp_path / "refused.html"
        assert main(["report", *map(str, arguments), "--output", str(page), "--device", "cpu"]) == 2
        assert not page.exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return ask


def listed(page: str) -> dict:
    return json.loads(re.search(r'id="queries-data">(.*?)</script>', page, re.DOTALL)[1])


def origin(page: str) -> str:
    return page[page.index('<section id="origin">') :]


def test_embeddings_alone_are_told_of_by_rows(report, files):
    page = report("--embeddings", files[0])
    found = listed(page)
    assert set(found["images"]["name"]) == {f"image-{row}" for row in range(12)}
    assert found["sheet"] is None
    assert "data:image" not in page
    assert str(files[0]) in origin(page)


def test_with_their_data_they_have_pictures_and_captions(report, files, toy_directory):
    page = report("--embeddings", files[0], "--data", toy_directory)
    found, split = listed(page), open_data(toy_directory).split("val")
    assert sorted(found["images"]["name"]) == sorted(split.image_ids)
    assert sorted(found["texts"]["caption"]) == sorted(caption for of_image in split.captions for caption in of_image)
    assert "data:image" in page
    assert split.checksum in origin(page)


def test_a_report_lies_beside_its_embeddings(files, capsys):
    assert main(["report", "--embeddings", str(files[0])]) == 0
    assert files[0].with_suffix(".html").is_file()


def test_embeddings_of_other_data_are_refused(refused, files, toy_directory, tmp_path):
    fewer = arrays(toy_directory, 0)
    fewer["image_embeddings"], fewer["image_labels"] = fewer["image_embeddings"][:-1], fewer["image_labels"][:-1]
    kept = np.isin(fewer["text_labels"], fewer["image_labels"])
    fewer |= {name: fewer[name][kept] for name in ("text_embeddings", "text_labels")}
    np.savez(tmp_path / "fewer.npz", **fewer)
    error = refused("--embeddings", tmp_path / "fewer.npz", "--data", toy_directory)
    assert "holds 11 pictures" in error
    assert "leave --data out" in error
    turned = arrays(toy_directory, 0)
    turned["image_labels"], turned["image_embeddings"] = turned["image_labels"][::-1], turned["image_embeddings"][::-1]
    np.savez(tmp_path / "turned.npz", **turned)
    assert "match other pictures and texts" in refused("--embeddings", tmp_path / "turned.npz", "--data", toy_directory)


def test_a_second_model_stands_beside_the_first(report, files, toy_directory):
    page = report("--embeddings", files[0], "--data", toy_directory, "--against", files[1])
    assert "<title>one.npz and other.npz on val</title>" in page
    found = listed(page)
    assert found["models"] == ["one.npz", "other.npz"]
    for direction in found["directions"]:
        assert len(direction["ranks"]) == len(direction["items"]) == 2
        assert direction["ranks"][0] != direction["ranks"][1]
    alone = listed(report("--embeddings", files[1], "--data", toy_directory))
    assert [each["ranks"][1] for each in found["directions"]] == [each["ranks"][0] for each in alone["directions"]]


def test_a_stored_result_brings_its_ranks(report, files, tmp_path, capsys):
    stored = tmp_path / "other.json"
    assert main(["evaluate", "--embeddings", str(files[1]), "--output", str(stored)]) == 0
    capsys.readouterr()
    found = listed(report("--embeddings", files[0], "--against", stored))
    other = listed(report("--embeddings", files[0], "--against", files[1]))
    for ranks, both in zip(found["directions"], other["directions"], strict=True):
        assert ranks["ranks"] == both["ranks"]
        assert ranks["items"][1] == []


def test_what_has_other_queries_is_refused(refused, files, toy_directory, tmp_path, capsys):
    fewer = {name: each[:4] for name, each in arrays(toy_directory, 1).items()}
    fewer["text_labels"] = fewer["image_labels"]
    np.savez(tmp_path / "fewer.npz", **fewer)
    assert "on other pictures or captions" in refused("--embeddings", files[0], "--against", tmp_path / "fewer.npz")
    assert (
        main(["evaluate", "--embeddings", str(files[1]), "--metric", "euclidean", "--output", f"{tmp_path}/e.json"])
        == 0
    )
    capsys.readouterr()
    assert "evaluate both alike" in refused("--embeddings", files[0], "--against", tmp_path / "e.json")
    assert "name the DATA of --embeddings" in refused("--embeddings", files[0], "--against", tmp_path / "nowhere")
    assert "is given twice" in refused("--embeddings", tmp_path, "--against", tmp_path)


def test_one_direction_and_distractors_are_a_page_too(report, files, toy_directory, tmp_path):
    page = report("--embeddings", files[0], "--direction", "text-to-image", "--metric", "euclidean")
    assert [each["name"] for each in listed(page)["directions"]] == ["text_to_image"]
    assert "Image to text" not in page[: page.index('<section id="origin">')]
    more = arrays(toy_directory, 0)
    more["image_labels"] = np.append(more["image_labels"][:-1], -5)
    more |= {
        name: more[name][more["text_labels"] != arrays(toy_directory, 0)["image_labels"][-1]]
        for name in ("text_embeddings", "text_labels")
    }
    np.savez(tmp_path / "more.npz", **more)
    page = report("--embeddings", tmp_path / "more.npz", "--distractors")
    assert "1 picture matches nothing" in page
    found = listed(page)
    assert {each["name"]: len(each["queries"]) for each in found["directions"]}["image_to_text"] == 11


@pytest.fixture(scope="module")
def run(toy_directory, toy_recipe, tmp_path_factory) -> Path:
    """A run of the toy recipe, from a program of the user's own."""
    path = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSPAIR_CACHE", str(path.parent / "cache"))
        patch.setattr(sys, "argv", ["mine.py", "--seed", "3"])
        train(toy_recipe(seed=3), toy_directory, path, progress=False)
    return path


def test_a_run_s_report_says_where_it_comes_from(report, run, toy_directory):
    text = origin(report(run))
    checksum = open_data(toy_directory).split("val").checksum
    for said in ("python mine.py --seed 3", str(toy_directory), checksum, "stage1.epochs: 2 (0)", "seed: 3 (0)"):
        assert said in text
    assert re.search(r"Model checksum</th><td>[0-9a-f]{64}", text)
    assert "not recorded" not in text


def test_a_run_that_kept_no_command_line_opens_and_says_so(report, run, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(run, older)
    (older / NAME).unlink()
    assert "not recorded" in origin(report(older))
    write_text(older / NAME, "{")
    assert main(["report", str(older), "--output", str(tmp_path / "no.html")]) == 2


def test_two_seeds_of_a_recipe_are_two_models(report, run, toy_directory, toy_recipe, tmp_path, own_cache):
    second = tmp_path / "second"
    train(toy_recipe(seed=4), toy_directory, second, progress=False)
    page = report(run, "--against", second)
    assert len(listed(page)["models"]) == 2
    assert "Side by side" in page


def test_a_model_is_reported_on_data(report, run, toy_directory):
    assert str(run / "model") in origin(report(run / "model", "--data", toy_directory))


def test_facts_that_are_not_known_are_left_out():
    found = describe_origin({"model": "m", "seed": None, "data_format": ""})
    assert list(found) == ["Model", "Report made by"]
