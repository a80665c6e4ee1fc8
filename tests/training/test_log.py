import errno
import json
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crosspair.errors import UserError
from crosspair.training.log import RunLog, check_tensorboard, memory_mb, read_metrics


def train_row(step: int) -> dict:
    return {"kind": "train", "stage": 1, "epoch": 1, "step": step, "loss": 0.5 * step}


def val_row(step: int, weights: str = "raw") -> dict:
    scores = {"R@1": 10.0 + step}
    return {"kind": "val", "stage": 1, "epoch": 1, "step": step, "weights": weights, "image_to_text": scores}


def write(run, rows, step: int = 0) -> None:
    with RunLog(run, step) as log:
        for row in rows:
            log.write(row)


ROWS = [{"kind": "start", "step": 0}, train_row(0), train_row(1), val_row(2), train_row(2), train_row(3)]


def test_rows_read_back_as_written(tmp_path):
    write(tmp_path, ROWS)
    assert read_metrics(tmp_path) == ROWS


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(train_row(0))
        assert read_metrics(tmp_path) == [train_row(0)]


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_last_line_cut_short_is_left_out(tmp_path):
    write(tmp_path, ROWS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert read_metrics(tmp_path) == ROWS


DAMAGES = ["\0\0\0", "[]", "5", '{"step": 1}', '{"kind": "val"}', '{"kind": 1, "step": 1}', "[" * 9999]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_named(tmp_path, damage):
    write(tmp_path, ROWS)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:2], damage, *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"line 3 of .*metrics\.jsonl is damaged"):
        read_metrics(tmp_path)


def test_going_on_drops_the_rows_of_steps_that_come_again(tmp_path):
    write(tmp_path, ROWS)
    with RunLog(tmp_path, step=2):
        # Two steps (0 and 1) and the validation after them are done.
        assert read_metrics(tmp_path) == ROWS[:4]
    write(tmp_path, ROWS[4:], step=2)
    assert read_metrics(tmp_path) == ROWS


def test_starting_again_drops_all(tmp_path):
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:2])
    assert read_metrics(tmp_path) == ROWS[:2]


def test_tensorboard_has_the_numbers_by_kind_and_weights(tmp_path):
    write(tmp_path, [*ROWS, val_row(4, "ema"), {**train_row(4), "loss": None, "cmpm": True}])
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (0, 0.0),
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
    ]
    assert board.Scalars("val/raw/image_to_text/R@1")[0].value == 12
    assert board.Scalars("val/ema/image_to_text/R@1")[0].value == 14


def test_a_full_disk_is_one_sentence(tmp_path):
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    with RunLog(tmp_path) as log:
        log._file.close()
        log._file = Full()
        with pytest.raises(UserError, match=r"metrics\.jsonl is full"):
            log.write(train_row(0))


def test_rows_are_json_of_one_line_each(tmp_path):
    write(tmp_path, [{"kind": "start", "step": 0, "data": "a\nb\u2028c"}])
    (line,) = (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    assert json.loads(line)["data"] == "a\nb\u2028c"


def test_memory_is_in_megabytes_of_this_process():
    assert 50 < memory_mb(torch.device("cpu")) < 100_000


class TestTensorBoard:
    @pytest.fixture
    def missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    def test_is_left_out_without_a_word_where_it_is_not_installed(self, missing, tmp_path, capsys):
        write(tmp_path, ROWS)
        assert read_metrics(tmp_path) == ROWS
        assert not (tmp_path / "tensorboard").exists()
        assert capsys.readouterr() == ("", "")

    def test_is_named_where_it_is_asked_for_and_not_installed(self, missing):
        with pytest.raises(UserError, match=r"pip install 'crosspair\[tensorboard\]', or set tensorboard to auto"):
            check_tensorboard("on")

    def test_is_left_out_where_it_is_off(self, tmp_path):
        with RunLog(tmp_path, tensorboard="off") as log:
            log.write(train_row(0))
        assert not (tmp_path / "tensorboard").exists()


def test_histograms_are_of_weights_and_their_gradients_and_leave_out_what_is_not_finite(tmp_path):
    weight, frozen = torch.nn.Parameter(torch.tensor([1.0, 2.0, torch.nan])), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((3,), 5.0, dtype=torch.float32)
    empty = torch.nn.Parameter(torch.full((2,), torch.inf))
    with RunLog(tmp_path) as log:
        log.write_histograms(7, {"a": weight, "b": frozen, "c": empty})
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0})
    board.Reload()
    assert set(board.Tags()["histograms"]) == {"weights/a", "gradients/a", "weights/b"}
    [found] = board.Histograms("weights/a")
    assert (found.step, found.histogram_value.num, found.histogram_value.sum) == (7, 2, 3)
    [gradient] = board.Histograms("gradients/a")
    assert (gradient.histogram_value.num, gradient.histogram_value.min) == (3, 5)
