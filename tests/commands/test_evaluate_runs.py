"""What `crosspair evaluate` does with several runs, and what their results say of themselves."""

import json

import numpy as np
import pandas
import pytest

from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.evaluation.results import read_result


def test_several_runs_are_a_line_each_and_keep_their_own_results(runs, data, tmp_path, capsys):
    assert main(["evaluate", *runs, "--data", data]) == 0
    lines = capsys.readouterr().out.splitlines()
    rsums = []
    for run, line in zip(runs, lines[3:5], strict=True):
        stored = read_result(tmp_path / run / "evaluation" / "test.json")
        rsums.append(stored.evaluation.result.rsum)
        assert line.split()[0] == run
        assert line.endswith(f" {rsums[-1]:.1f}")
    assert lines[5].endswith(f"{np.mean(rsums):.1f} ± {np.std(rsums, ddof=1):.1f}")
    alone = tmp_path / "alone.json"
    assert main(["evaluate", runs[1], "--data", data, "--output", str(alone)]) == 0
    assert read_result(alone).evaluation.result.rsum == rsums[1]


def test_a_half_trained_run_is_refused_before_the_others_are_encoded(runs, data, tmp_path, capsys):
    (tmp_path / runs[1] / "metrics.jsonl").write_text("")
    for more in ([], ["--ensemble"]):
        assert main(["evaluate", *runs, "--data", data, *more]) == 2
        assert capsys.readouterr().err.startswith(f"crosspair: {runs[1]} is half-trained")
    assert not (tmp_path / runs[0] / "evaluation").exists()


def test_an_ensemble_of_one_model_twice_is_that_model(runs, data, tmp_path):
    single, both = tmp_path / "single.json", tmp_path / "both.json"
    assert main(["evaluate", runs[0], "--data", data, "--output", str(single)]) == 0
    names = [runs[0], f"{runs[0]}/model"]
    assert main(["evaluate", *names, "--data", data, "--ensemble", "--output", str(both)]) == 0
    expected, found = read_result(single), read_result(both)
    assert found.evaluation.result.to_dict() == expected.evaluation.result.to_dict()
    assert found.facts["model"] == " + ".join(names)
    assert found.facts["ensemble"] == 2
    assert "recipe" not in found.facts


def test_a_result_names_all_that_its_numbers_depend_on(runs, data, tmp_path):
    output = tmp_path / "result.json"
    assert main(["evaluate", runs[0], "--data", data, "--device", "cpu", "--output", str(output)]) == 0
    facts = json.loads(output.read_text())
    assert facts["encoder"].startswith("torch ")
    assert facts["encoder"].endswith(", float32, on cpu")
    for name in ("image_encoder", "text_encoder", "command", "date", "crosspair", "model_checksum", "checksum", "data"):
        assert isinstance(facts[name], str)
        assert facts[name]
    assert facts["data_format"] == "folder"
    assert (facts["directions"], facts["distractors"]) == ("both", "refused")
    assert facts["seed"] == 0


def test_the_table_of_queries_has_the_captions(runs, data, tmp_path):
    path = tmp_path / "queries.parquet"
    assert main(["evaluate", runs[0], "--data", data, "--queries", str(path)]) == 0
    texts = pandas.read_parquet(path).query("direction == 'text_to_image'")
    split = open_data(data).split("test")
    assert texts.text.tolist() == [caption for of_image in split.captions for caption in of_image]
    assert texts["query"].tolist() == [f"{name}#0" for name in split.image_ids]


@pytest.mark.parametrize(
    ("options", "file", "sentence"),
    [
        (["--metric", "euclidean"], "test.euclidean.json", "was evaluated by euclidean, "),
        (["--direction", "text-to-image"], "test.text-to-image.json", "was evaluated in directions: text to image, "),
        (["--distractors"], "test.distractors.json", "was evaluated with distractors: gallery only, "),
    ],
)
def test_what_is_ranked_otherwise_is_kept_apart_and_not_compared(runs, data, tmp_path, capsys, options, file, sentence):
    assert main(["evaluate", runs[0], "--data", data]) == 0
    usual = (tmp_path / runs[0] / "evaluation" / "test.json").read_bytes()
    assert main(["evaluate", runs[1], "--data", data, *options]) == 0
    assert main(["evaluate", runs[0], "--data", data, *options]) == 0
    assert (tmp_path / runs[0] / "evaluation" / "test.json").read_bytes() == usual
    other = tmp_path / runs[1] / "evaluation" / file
    capsys.readouterr()
    assert main(["compare", runs[0], str(other)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.endswith("; evaluate both alike\n")
