"""`crosspair compare`: what is stored of a run is used as long as it is of the run's model."""

from crosspair.cli import main
from crosspair.training import measure as module


def test_a_model_whose_vocabulary_was_edited_is_evaluated_anew(runs, data, tmp_path, monkeypatch):
    measured = []
    measure = module.measure_model

    def counting(name, *rest, **options):
        measured.append(name)
        return measure(name, *rest, **options)

    monkeypatch.setattr(module, "measure_model", counting)
    command = ["compare", *runs, "--data", data, "--split", "test"]
    assert main(command) == 0
    assert measured == runs
    assert main(command) == 0
    assert measured == runs
    vocabulary = tmp_path / "one" / "model" / "vocabulary.txt"
    vocabulary.write_text(vocabulary.read_text().replace("red", "green"))
    assert main(command) == 0
    assert measured == [*runs, runs[0]]
