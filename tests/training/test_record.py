"""RUN/run.json: how a run was started and resumed, without secrets, and what is said of a damaged one."""

import json
import shlex
import sys

import pytest

from crosspair import UserError
from crosspair.training.record import NAME, command_line, read_record, record_start


@pytest.fixture
def started(monkeypatch):
    """Make this process one that was started by these words."""
    return lambda *words: monkeypatch.setattr(sys, "argv", list(words))


def test_a_command_line_can_be_given_to_a_shell_again(started):
    started("/opt/venv/bin/crosspair", "train", "my recipe.yaml", "--data", "it's here")
    assert shlex.split(command_line()) == ["crosspair", "train", "my recipe.yaml", "--data", "it's here"]
    started("/opt/lib/crosspair/__main__.py", "report", "RUN")
    assert command_line() == "crosspair report RUN"
    started("train_it.py", "--seed", "3")
    assert command_line() == "python train_it.py --seed 3"


def test_a_password_in_an_address_is_not_kept(started):
    started("crosspair", "train", "--data", "https://me:secret@host/train-{000..009}.tar", "--output=runs/a@b")
    assert "secret" not in command_line()
    assert "https://...@host/train-{000..009}.tar" in command_line()
    assert "runs/a@b" in command_line()


def test_a_resumption_is_added_to_the_start(started, tmp_path):
    started("crosspair", "train", "a")
    record_start(tmp_path)
    started("crosspair", "train", "a", "--resume")
    record_start(tmp_path)
    starts = read_record(tmp_path).starts
    assert [start.command for start in starts] == ["crosspair train a", "crosspair train a --resume"]
    assert all(start.date.endswith("Z") for start in starts)


def test_a_run_of_an_older_version_has_no_record(tmp_path):
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"format": 1, "crosspair": "0", "starts": [{"command": 3}]})])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=r"run\.json is damaged .* remove that file"):
        read_record(tmp_path)
