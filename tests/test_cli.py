"""The commands in this process; what a user gets wrong is one sentence and exit code 2."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from crosspair.cli import main
from crosspair.evaluation.results import read_result

TINY = {
    "summary": "three steps on squares",
    "device": "cpu",
    "model": {
        "image": {"name": "test_resnet", "weights": "none", "size": [32, 32]},
        "text": {"word_dim": 8, "hidden_dim": 8, "min_count": 1},
        "projection": {"dim": 8},
    },
    "stage1": {"epochs": 1, "batch_size": 4, "freeze_image_encoder": True, "epoch_covers": "images"},
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve squares in Karpathy's schema: dataset.json and images."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "images").mkdir()
    rows = []
    for number in range(12):
        name = f"{number}.png"
        Image.new("RGB", (40, 30), (20 * number, 200, 90)).save(folder / "images" / name)
        tokens = ["square", "number", str(number)]
        sentences = [{"raw": " ".join(tokens), "tokens": tokens}]
        split = ("train", "val", "test")[number % 3]
        rows.append({"imgid": number, "filename": name, "split": split, "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"dataset": "flickr8k", "images": rows}))
    return folder


def prepared(source: Path, output: Path, *more: str) -> int:
    places = ["--annotations", str(source / "dataset.json"), "--images", str(source / "images")]
    return main(["prepare", "flickr8k", *places, "--output", str(output), "--processes", "1", *more])


@pytest.fixture(scope="session")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prepared") / "data"
    assert prepared(source, path) == 0
    return str(path)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="session")
def run(data: str, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSPAIR_CACHE", str(path.parent / "cache"))
        assert main(["train", recipe, "--data", data, "--output", str(path)]) == 0
    return str(path)


@pytest.fixture
def half_trained(data: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that SIGTERM stopped in its second epoch."""
    from crosspair.training.step import TrainingStep

    step = TrainingStep.__call__

    def stopping(self, batch, number, **options):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number, **options)

    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", stopping)
        arguments = ["train", recipe, "--data", data, "--output", str(tmp_path / "half"), "--stage1.epochs", "3"]
        assert main(arguments) == 128 + signal.SIGTERM
    return str(tmp_path / "half")


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """A perfect model's embeddings of six pictures with two texts each."""
    path = tmp_path / "embeddings.npz"
    images, labels = np.eye(6, dtype=np.float32), np.arange(6)
    names = ("image_embeddings", "text_embeddings", "image_labels", "text_labels")
    np.savez(path, **dict(zip(names, (images, images.repeat(2, 0), labels, labels.repeat(2)), strict=True)))
    return path


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence that a command with a mistake leaves on stderr."""

    def call(*arguments: str) -> str:
        capfd.readouterr()
        assert main(list(arguments)) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.endswith("\n")
        *progress, sentence = err.splitlines()
        assert sentence.startswith("crosspair: ")
        assert all(not line or "pictures/s" in line for line in progress), err
        return sentence

    return call


class TestTheWholePath:
    def test_training_leaves_a_finished_run(self, run):
        names = {path.name for path in Path(run).iterdir()}
        assert names == {
            "recipe.yaml",
            "run.json",
            "metrics.jsonl",
            "tensorboard",
            "checkpoints",
            "model",
            "report.html",
        }

    def test_evaluate_prints_a_table_and_writes_the_numbers(self, run, data, tmp_path, capsys):
        output = tmp_path / "numbers" / "result.json"
        assert main(["evaluate", run, "--data", data, "--split", "test", "--output", str(output)]) == 0
        printed = capsys.readouterr().out
        assert "test: 4 pictures, 4 captions" in printed
        assert "R@10" in printed
        found = json.loads(output.read_text())
        assert found["split"] == "test"
        assert found["images"] == 4
        assert found["text_to_image"]["R@5"] == 100
        assert set(found["image_to_text"]) >= {"R@1", "R@5", "R@10", "mAP", "median_rank", "mean_rank"}

    def test_evaluate_names_the_protocol_it_chose_or_was_given(self, run, data, tmp_path, capsys):
        assert main(["evaluate", run, "--data", data]) == 0
        assert "protocol plain" in capsys.readouterr().out
        output = tmp_path / "result.json"
        assert main(["evaluate", run, "--data", data, "--protocol", "rstpreid", "--output", str(output)]) == 0
        assert "protocol rstpreid" in capsys.readouterr().out
        found = json.loads(output.read_text())
        assert found["protocol"] == "rstpreid"
        assert 0 < found["text_to_image"]["mINP"] <= 100

    def test_evaluate_takes_embeddings_from_a_file(self, embeddings, tmp_path, capsys):
        output = tmp_path / "result.json"
        assert main(["evaluate", "--embeddings", str(embeddings), "--output", str(output)]) == 0
        printed = capsys.readouterr().out
        assert f"{embeddings}: 6 pictures, 12 captions" in printed
        assert "protocol plain" in printed
        assert json.loads(output.read_text())["rsum"] == 600

    def test_evaluate_prints_intervals_and_keeps_the_ranks_of_every_query(self, run, data, capsys):
        assert main(["evaluate", run, "--data", data]) == 0
        assert "95 % intervals (4 pictures drawn with all of their queries)" in capsys.readouterr().out
        stored = read_result(Path(run) / "evaluation" / "test.json")
        assert len(stored.evaluation.result.text_to_image.ranks.first) == 4
        assert stored.facts["recipe"] == "tiny"
        assert main(["evaluate", run, "--data", data, "--protocol", "plain"]) == 0
        assert (Path(run) / "evaluation" / "test.plain.ranks.npz").is_file()

    def test_evaluate_exports_rankings(self, run, data, tmp_path, capsys):
        assert main(["evaluate", run, "--data", data, "--trec", str(tmp_path / "trec" / "tiny")]) == 0
        directions = ("image_to_text", "text_to_image")
        names = {f"tiny.{direction}.{kind}" for direction in directions for kind in ("run", "qrels")}
        assert {path.name for path in (tmp_path / "trec").iterdir()} == names
        assert f"TREC: {tmp_path / 'trec' / 'tiny.image_to_text.run'}" in capsys.readouterr().out
        first = (tmp_path / "trec" / "tiny.image_to_text.run").read_text().splitlines()[0]
        assert first.startswith("2.png Q0 ")

    def test_compare_takes_runs_models_and_stored_results(self, run, data, recipe, embeddings, tmp_path, capsys):
        result, other = tmp_path / "mine.json", tmp_path / "seed1"
        assert main(["train", recipe, "--data", data, "--output", str(other), "--seed", "1"]) == 0
        assert main(["evaluate", run, "--data", data, "--output", str(result)]) == 0
        shutil.copytree(other / "model", tmp_path / "copy")
        capsys.readouterr()
        output = ["--output", str(tmp_path / "table")]
        assert main(["compare", run, str(other), str(tmp_path / "copy"), "--data", data, *output]) == 0
        printed = capsys.readouterr().out
        assert "tiny: seeds 0, 1" in printed
        assert f"written: {tmp_path / 'table' / 'comparison.md'}" in printed
        assert {path.name for path in (tmp_path / "table").iterdir()} == {
            f"comparison.{kind}" for kind in ("md", "csv", "tex")
        }
        with pytest.MonkeyPatch.context() as patch:  # nothing is encoded again
            patch.setattr("crosspair.encode.split.embed_split", None)
            assert main(["compare", str(result), str(other)]) == 0
            assert main(["compare", run, str(other), "--data", data]) == 0
        assert "protocol plain" in capsys.readouterr().out

    def test_compare_evaluates_again_when_the_model_has_changed(self, run, data, tmp_path, capsys):
        changed = tmp_path / "changed"
        shutil.copytree(run, changed)
        assert main(["evaluate", str(changed), "--data", data]) == 0
        stored = changed / "evaluation" / "test.json"
        facts = json.loads(stored.read_text())
        stored.write_text(json.dumps(facts | {"model_checksum": "of other weights"}))
        assert main(["compare", run, str(changed)]) == 0
        assert json.loads(stored.read_text())["model_checksum"] == facts["model_checksum"]

    def test_evaluate_takes_a_models_directory(self, run, data, capsys):
        assert main(["evaluate", f"{run}/model", "--data", data]) == 0
        assert "test: 4 pictures" in capsys.readouterr().out

    def test_report_writes_one_page_without_addresses_to_load(self, run, data, tmp_path, capsys):
        page = tmp_path / "page.html"
        assert main(["report", run, "--split", "test", "--output", str(page)]) == 0
        assert str(page) in capsys.readouterr().out
        assert "<html" in page.read_text()
        assert 'src="http' not in page.read_text()

    def test_inspect_tells_of_data_and_of_a_run(self, run, data, capsys):
        assert main(["inspect", data]) == 0
        assert "train" in capsys.readouterr().out
        assert main(["inspect", run]) == 0
        printed = capsys.readouterr().out
        assert "finished, 1 steps" in printed
        assert "three steps on squares" in printed

    def test_inspect_tells_of_a_model_its_encoders_vocabulary_and_checksum(self, run, capsys):
        assert main(["inspect", f"{run}/model"]) == 0
        printed = capsys.readouterr().out
        assert f"MODEL {run}/model: 8 dimensions" in printed
        assert "image encoder test_resnet, pictures of 32 x 32 pixels" in printed
        assert "text encoder bilstm" in printed
        assert "model.safetensors" in printed
        assert len(printed.strip().rpartition("checksum ")[2]) == 64

    def test_recipes_and_fields_are_listed(self, capsys):
        assert main(["recipes"]) == 0
        assert "flickr8k-lite0: " in capsys.readouterr().out
        assert main(["train", "--fields"]) == 0
        assert "--stage1.epochs 0" in capsys.readouterr().out

    def test_an_interrupted_run_says_how_to_go_on_and_goes_on(self, half_trained, data, recipe, capsys):
        arguments = ["train", recipe, "--data", data, "--output", half_trained, "--stage1.epochs", "3"]
        assert main([*arguments, "--resume"]) == 0
        assert "best on val" in capsys.readouterr().out
        assert main(["inspect", half_trained]) == 0
        assert "finished, 3 steps" in capsys.readouterr().out

    def test_the_installed_command_runs(self, tmp_path):
        command = [sys.executable, "-m", "crosspair.cli"]
        done = subprocess.run([*command, "train", "flickr8k-lit"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert (
            done.stderr
            == "crosspair: missing data and output; expected crosspair train RECIPE --data DATA --output RUN\n"
        )
        nowhere = [*command, "inspect", str(tmp_path / "nowhere")]
        done = subprocess.run(nowhere, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"crosspair: {tmp_path / 'nowhere'} does not exist; expected")
        assert done.stderr.count("\n") == 1


class TestTrain:
    def test_an_unknown_recipe_brings_near_names(self, refused, data, tmp_path):
        error = refused("train", "flickr8k-lit", "--data", data, "--output", str(tmp_path / "run"))
        assert "unknown recipe 'flickr8k-lit'" in error
        assert "near: flickr8k-lite0" in error
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["--stage1.epoch", "3"], "unknown field 'stage1.epoch'; near: stage1.epochs"),
            (["--learning_rate=3"], "unknown field 'learning_rate'"),
            (["--stage1.epochs", "many"], "stage1.epochs"),
            (["--model.image.name", "test_resnte"], "unknown image encoder 'test_resnte'; near: test_resnet"),
            (["--model.image.weights", "nothing.safetensors"], "can't read the weights nothing.safetensors"),
            (["stray"], "stray"),
        ],
    )
    def test_a_wrong_field_is_named(self, refused, data, recipe, tmp_path, overrides, words):
        assert words in refused("train", recipe, "--data", data, "--output", str(tmp_path / "run"), *overrides)

    @pytest.mark.parametrize(
        ("given", "missing"),
        [
            ([], "recipe and data and output"),
            (["flickr8k-lite0"], "data and output"),
            (["flickr8k-lite0", "--output", "run"], "missing data;"),
            (["flickr8k-lite0", "--data", "data"], "missing output;"),
        ],
    )
    def test_what_is_missing_is_named(self, refused, given, missing):
        assert missing in refused("train", *given)

    def test_data_that_is_none_is_refused(self, refused, recipe, source, tmp_path):
        for path in (source, source / "dataset.json", tmp_path / "nowhere"):
            error = refused("train", recipe, "--data", str(path), "--output", str(tmp_path / "run"))
            assert str(path) in error
            assert "DATA directory" in error

    def test_an_output_that_is_not_empty_is_refused(self, refused, recipe, data, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        assert "is not empty" in refused("train", recipe, "--data", data, "--output", str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_resuming_a_finished_run_or_none_is_refused(self, refused, recipe, data, run, tmp_path):
        start = ("train", recipe, "--data", data, "--resume", "--output")
        assert "is finished already" in refused(*start, run)
        assert "holds no training run to resume" in refused(*start, str(tmp_path))


class TestPrepare:
    def test_annotations_of_another_schema_are_refused(self, refused, source, tmp_path):
        other = tmp_path / "captions.json"
        other.write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "a square"}]}))
        places = ["--annotations", str(other), "--images", str(source / "images")]
        error = refused("prepare", "flickr8k", *places, "--output", str(tmp_path / "data"))
        assert str(other) in error
        assert not (tmp_path / "data").exists()

    def test_an_unknown_option_brings_the_nearest_one(self, refused):
        prepare = ("prepare", "coco", "--output", "x")
        assert refused(*prepare, "--split", "1,0,0").endswith("unrecognized --split; did you mean --split-shares?")
        assert refused(*prepare, "--workers=3").endswith("unrecognized --workers; did you mean --processes?")
        assert "coco takes no --nonsense; its own options are --merge-restval" in refused(*prepare, "--nonsense")

    def test_an_unknown_format_is_refused(self, refused, source, tmp_path):
        places = ["--annotations", str(source / "dataset.json"), "--images", str(source / "images")]
        error = refused("prepare", "flickr9k", *places, "--output", str(tmp_path / "data"))
        assert "flickr9k" in error
        assert "flickr8k" in error

    def test_a_picture_that_is_a_text_file_is_named(self, refused, source, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        for path in (source / "images").iterdir():
            (images / path.name).write_bytes(path.read_bytes())
        (images / "3.png").write_text("this is text")
        places = ["--annotations", str(source / "dataset.json"), "--images", str(images)]
        output = ["--output", str(tmp_path / "data")]
        assert "3.png" in refused("prepare", "flickr8k", *places, *output)
        assert not (tmp_path / "data").exists()
        assert main(["prepare", "flickr8k", *places, *output, "--on-error", "skip"]) == 0
        assert "3.png" in (tmp_path / "data" / "crosspair.json").read_text()

    def test_an_output_that_is_not_empty_is_refused(self, refused, source, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        places = ["--annotations", str(source / "dataset.json"), "--images", str(source / "images")]
        assert "is not empty" in refused("prepare", "flickr8k", *places, "--output", str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


class TestEvaluateAndReport:
    def test_a_split_that_does_not_exist_brings_those_that_do(self, refused, run, data):
        for command in ("evaluate", "report"):
            error = refused(command, run, "--data", data, "--split", "tests")
            assert "has no split 'tests'; it has train, val, test" in error

    def test_a_half_trained_run_is_refused(self, refused, half_trained, data):
        for command in ("evaluate", "report"):
            error = refused(command, half_trained, "--data", data)
            assert f"{half_trained} is half-trained (stage 1, epoch 1)" in error
            assert "--resume" in error

    def test_data_that_is_none_is_refused(self, refused, run, source):
        assert "is not a DATA directory" in refused("evaluate", run, "--data", str(source))

    def test_a_model_that_is_none_is_refused(self, refused, data, source, tmp_path):
        assert "is not a model" in refused("evaluate", str(source), "--data", data)
        assert "there is no directory" in refused("evaluate", str(tmp_path / "nowhere"), "--data", data)

    def test_a_protocol_that_does_not_exist_or_fit_is_refused(self, refused, run, data):
        assert "there is no protocol 'coco' (did you mean coco-5k?)" in refused(
            "evaluate", run, "--data", data, "--protocol", "coco"
        )
        error = refused("evaluate", run, "--data", data, "--protocol", "coco-5k")
        assert "needs the 5,000 pictures of its test split, found 4" in error

    def test_a_model_needs_data_and_embeddings_take_the_place_of_both(self, refused, run, data, embeddings):
        for arguments in ((), (run,), ("--data", data)):
            assert "expected crosspair evaluate RUN --data DATA" in refused("evaluate", *arguments)
        for arguments in ((run,), ("--data", data), ("--split", "val"), (run, "--data", data)):
            assert "takes the place of RUN" in refused("evaluate", *arguments, "--embeddings", str(embeddings))

    def test_a_result_never_replaces_the_embeddings(self, refused, embeddings):
        whole = embeddings.read_bytes()
        assert "embeddings.npz, which is read; name another --output" in refused(
            "evaluate", "--embeddings", str(embeddings), "--output", str(embeddings)
        )
        ranks = embeddings.rename(embeddings.with_name("mine.ranks.npz"))
        output = embeddings.with_name("mine.json")
        assert "would replace" in refused("evaluate", "--embeddings", str(ranks), "--output", str(output))
        assert ranks.read_bytes() == whole
        copy = shutil.copy(ranks, embeddings)
        assert main(["evaluate", "--embeddings", str(copy), "--output", str(embeddings.with_suffix(".json"))]) == 0
        assert embeddings.read_bytes() == whole

    def test_an_output_that_is_a_directory_is_refused(self, refused, run, data, embeddings, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        for of in (("--embeddings", str(embeddings)), (run, "--data", data)):
            assert f"{folder} is a directory; expected a file" in refused("evaluate", *of, "--output", str(folder))
        assert {path.name for path in tmp_path.iterdir()} == {"folder", "embeddings.npz"}

    def test_embeddings_that_are_none_are_refused(self, refused, source, tmp_path):
        path = source / "dataset.json"
        assert f"{path} can't be read" in refused("evaluate", "--embeddings", str(path))
        nowhere = tmp_path / "nowhere.npz"
        assert f"{nowhere}: No such file" in refused("evaluate", "--embeddings", str(nowhere))

    def test_what_can_not_be_compared_is_refused(self, refused, run, data, embeddings, tmp_path):
        assert main(["evaluate", run, "--data", data]) == 0
        assert "found 1 result to compare; expected two or more" in refused("compare", run)
        assert "is given twice" in refused("compare", run, run)
        result = tmp_path / "theirs.json"
        assert main(["evaluate", "--embeddings", str(embeddings), "--output", str(result)]) == 0
        assert "was evaluated on other pictures" in refused("compare", run, str(result))
        assert "is no result of crosspair evaluate" in refused("compare", run, f"{data}/crosspair.json")
        assert "is no RUN and no stored result" in refused("compare", run, str(tmp_path / "nowhere"))

    def test_a_report_needs_a_run_or_a_model_s_data_or_embeddings(
        self, refused, run, source, tmp_path, data, embeddings
    ):
        assert "expected crosspair report RUN, or" in refused("report")
        assert "expected crosspair report RUN, or" in refused("report", run, "--embeddings", str(embeddings))
        assert "add --data DATA and --output" in refused("report", f"{run}/model", "--data", data)
        assert f"{run} is given twice" in refused("report", run, "--against", run)
        assert "the report would replace" in refused("report", "--embeddings", "a.npz", "--output", "a.npz")
        for path in (f"{run}/model", str(source), str(tmp_path / "nowhere")):
            assert path in refused("report", path)

    def test_a_device_that_is_not_there_is_refused_before_anything_is_done(
        self, refused, run, data, recipe, embeddings, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        commands = {
            "demo": ("--output", str(tmp_path / "out")),
            "train": (recipe, "--data", data, "--output", str(tmp_path / "out")),
            "evaluate": (run, "--data", data),
            "compare": (run, f"{run}/model", "--data", data),
            "report": (run, "--output", str(tmp_path / "out")),
            "index": (run, data, "--output", str(tmp_path / "out")),
            "search": (str(tmp_path / "gallery"), "a square"),
            "serve": (str(tmp_path / "gallery"),),
            "export": (run, "--format", "openvino", "--output", str(tmp_path / "out")),
        }
        for command, arguments in commands.items():
            error = refused(command, *arguments, "--device", "cuda:1")
            assert "device cuda:1 is not available: found no CUDA device; use --device cpu, or auto" in error, command
            assert "found device 'warp'; expected auto, cpu, cuda" in refused(command, *arguments, "--device", "warp")
        assert not (tmp_path / "out").exists()
        of_embeddings = ("evaluate", "--embeddings", str(embeddings), "--device", "cuda")
        assert "device cuda is not available" in refused(*of_embeddings)
        assert "device cuda is not available" in refused(*of_embeddings, "--shard", "1/2", "--part", "part.npz")
        assert "--merge adds up what was counted" in refused(*of_embeddings, "--merge", "part.npz")

    def test_an_output_that_does_not_fit_is_refused(self, refused, run, embeddings):
        of_embeddings = ("evaluate", "--embeddings", str(embeddings))
        assert "--part is the file that --shard" in refused(*of_embeddings, "--part", "part.npz")
        shard = (*of_embeddings, "--shard", "1/2", "--part", "part.npz", "--output", "result.json")
        assert "a shard has no result to write to --output" in refused(*shard)
        assert "is a file; expected a directory for the tables" in refused("compare", run, "--output", str(embeddings))

    def test_indexing_names_its_threads_and_rays_workers_apart(self, refused, run, data, tmp_path):
        index = ("index", run, data, "--output", str(tmp_path / "out"))
        assert "is for --distributed ray" in refused(*index, "--ray-workers", "2")
        assert "name the workers on the cluster with --ray-workers" in refused(
            *index, "--distributed", "ray", "--threads", "2"
        )
        assert "leave --device out" in refused(*index, "--distributed", "ray", "--device", "cpu")

    def test_a_directory_of_another_kind_is_named(self, refused, run, data, recipe, tmp_path):
        assert f"{data} is a DATA; expected a RUN or a MODEL" in refused("evaluate", data, "--data", data)
        assert f"{run} is a RUN; expected a DATA directory" in refused("evaluate", run, "--data", run)
        assert f"{run}/model is no RUN directory" in refused("report", f"{run}/model")
        assert f"{data} is a DATA; expected a RUN or a MODEL" in refused("report", data)
        assert f"{run} is a RUN; expected a GALLERY directory" in refused("search", run, "a square")
        train = ("train", recipe, "--output", str(tmp_path / "run"), "--data")
        assert f"{run} is a RUN; expected a DATA directory" in refused(*train, run)
        index = ("index", run, "--output", str(tmp_path / "gallery"))
        assert f"{run} is a RUN; expected a folder of pictures" in refused(*index, run)
        assert f"{run} is a RUN; --sheet shows the pictures" in refused("inspect", run, "--sheet", "x.jpg")
        (tmp_path / ".half.partial").mkdir()
        error = refused("evaluate", run, "--data", str(tmp_path / "half"))
        assert "half does not exist" in error
        assert "was interrupted, the same `crosspair prepare` command goes on" in error

    def test_inspecting_what_is_nothing_is_refused(self, refused, source, tmp_path):
        for path in (source, tmp_path / "nowhere"):
            assert str(path) in refused("inspect", str(path))


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["report", "run", "stray"], ["inspect", "data", "--stray"], ["prepare", "flickr8k"]]
)
def test_wrong_arguments_end_with_code_2_and_no_traceback(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "crosspair" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["index", "model", "images", "--output", "x", "--treads=3"], "--treads; did you mean --threads?"),
        (["evaluate", "run", "--xyz"], "--xyz; crosspair evaluate --help lists what there is"),
        (["report", "run", "stray"], "stray; crosspair report --help lists what there is"),
    ],
)
def test_an_unknown_option_is_one_sentence_with_the_nearest_one(arguments, hint, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"crosspair {arguments[0]}: unrecognized {hint}\n"


def test_a_reader_that_hangs_up_is_no_error(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert main(["recipes"]) == 141
