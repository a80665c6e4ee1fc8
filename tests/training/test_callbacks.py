"""What callbacks are told, and what becomes of a run in which one fails."""

import pytest

import crosspair
from crosspair.training.loop import train


@pytest.fixture
def run(toy_recipe, toy_data, tmp_path):
    def start(*callbacks, **options):
        return train(toy_recipe(), toy_data, tmp_path / "run", callbacks=callbacks, progress=False, **options)

    return start


class Recorder(crosspair.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def on_step(self, progress, metrics):
        assert float(metrics["loss"]) > 0
        self.seen.append(("step", progress.step, progress.stage, progress.epoch, progress.batch))

    def on_validation(self, progress, rows):
        self.seen.append(("validation", progress.step, [row["weights"] for row in rows]))

    def on_checkpoint(self, progress, path):
        self.seen.append(("checkpoint", progress.step, path.name))
        assert (path / "state.json").is_file()

    def on_end(self, progress, result):
        self.seen.append(("end", progress.step, result))


def test_an_object_is_told_of_steps_validations_checkpoints_and_the_end(run):
    recorder = Recorder()
    result = run(recorder)
    assert [event[1:] for event in recorder.seen if event[0] == "step"][:4] == [
        (1, 1, 0, 1), (2, 1, 0, 2), (3, 1, 0, 3), (4, 1, 1, 1)
    ]  # fmt: skip
    assert recorder.seen[3:5] == [("validation", 3, ["raw", "ema"]), ("checkpoint", 3, "step-00000003")]
    assert len([event for event in recorder.seen if event[0] == "step"]) == 12
    assert recorder.seen[-1] == ("end", 12, result)


def test_functions_are_called_by_the_name_of_the_event(run):
    sums = []
    result = run(crosspair.Callback(on_validation=lambda progress, rows: sums.append(max(row["rsum"] for row in rows))))
    assert max(sums) == result.best["rsum"]
    with pytest.raises(TypeError, match="found the event 'on_epoch'; expected one of on_step, on_validation"):
        crosspair.Callback(on_epoch=print)


@pytest.mark.parametrize("event", ["on_step", "on_validation", "on_checkpoint", "on_end"])
def test_what_one_raises_ends_the_run_which_can_be_resumed(run, event, tmp_path, metrics):
    def fail(progress, *_):
        if progress.step in (5, 6, 12):
            raise LookupError(event)

    with pytest.raises(LookupError, match=event):
        run(crosspair.Callback(**{event: fail}))
    if event != "on_end":
        run(resume=True)
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(12))
    assert rows[-1]["kind"] == "end"


def test_the_result_has_the_best_row_the_history_and_the_model(run, tmp_path):
    result = run()
    assert result.run == tmp_path / "run"
    assert result.best == max((row for row in result.history if row["kind"] == "val"), key=lambda row: row["rsum"])
    assert crosspair.DualEncoder.from_pretrained(result.model_path).encode_text(["a red square"]).shape == (1, 8)
    assert crosspair.RunResult.read(tmp_path / "run") == result
