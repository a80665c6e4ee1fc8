import errno
import os
from pathlib import Path

import pytest

from crosspair.errors import UserError
from crosspair.storage.files import (
    full_disk_is_an_error,
    refuse_occupied,
    remove_leftovers,
    whole_directory,
    write_text,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def replace_and_fail(path: Path, error: BaseException) -> None:
    with whole_directory(path) as directory:
        (directory / "file").write_text("2")
        raise error


class TestWriteText:
    def test_writes_the_file_with_its_directory(self, tmp_path):
        write_text(tmp_path / "new" / "notes.txt", "an umlaut: \u00fc\n")
        assert (tmp_path / "new" / "notes.txt").read_bytes() == "an umlaut: \u00fc\n".encode()
        assert names(tmp_path / "new") == ["notes.txt"]

    def test_leaves_the_file_before_when_the_disk_is_full(self, tmp_path, monkeypatch):
        write_text(tmp_path / "notes.txt", "before")

        def full(descriptor):
            raise FULL

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"the disk of .*notes\.txt is full \(.* MB free\); free some space"):
            write_text(tmp_path / "notes.txt", "after")
        assert (tmp_path / "notes.txt").read_text() == "before"
        assert names(tmp_path) == ["notes.txt"]


class TestWholeDirectory:
    def test_appears_when_the_block_ends(self, tmp_path):
        target = tmp_path / "a" / "b"
        with whole_directory(target) as directory:
            (directory / "file").write_text("1")
            assert not target.exists()
        assert (target / "file").read_text() == "1"
        assert names(target.parent) == ["b"]

    def test_takes_the_place_of_the_one_before(self, tmp_path):
        for text in ("1", "2"):
            with whole_directory(tmp_path / "model") as directory:
                (directory / f"file{text}").write_text(text)
        assert names(tmp_path / "model") == ["file2"]
        assert names(tmp_path) == ["model"]

    @pytest.mark.parametrize("error", [FULL, ValueError("bug"), KeyboardInterrupt()])
    def test_leaves_no_trace_of_a_failure(self, tmp_path, error):
        with whole_directory(tmp_path / "model") as directory:
            (directory / "file").write_text("1")
        with pytest.raises((UserError, ValueError, KeyboardInterrupt)):
            replace_and_fail(tmp_path / "model", error)
        assert (tmp_path / "model" / "file").read_text() == "1"
        assert names(tmp_path) == ["model"]

    def test_follows_a_link(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with whole_directory(tmp_path / "link") as directory:
            (directory / "file").write_text("1")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "file").read_text() == "1"


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("(os error 5)")])
def test_other_errors_pass_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, full_disk_is_an_error(tmp_path):
        raise error
    assert caught.value is error


def test_an_output_must_be_new_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    refuse_occupied(tmp_path / "new", "the data")
    refuse_occupied(tmp_path / "empty", "the data")
    with pytest.raises(UserError, match="is a file; expected a directory to write the data to"):
        refuse_occupied(tmp_path / "file", "the data")
    with pytest.raises(UserError, match="exists and is not empty; expected a new directory for the data"):
        refuse_occupied(tmp_path, "the data")


def test_a_directory_put_aside_by_a_killed_process_gets_its_name_back(tmp_path):
    for name in ("model", ".model.previous", ".model.123", ".report.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    remove_leftovers(tmp_path)
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {
        "model": "model",
        "report": ".report.previous",
    }
