"""Writing files and directories so that nothing half-written ever looks whole."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cmpl.errors import UserError


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing below `path` into one sentence."""
    try:
        yield
    except Exception as error:
        if _error_number(error) not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"the disk of {path} is full ({free / 1e6:.0f} MB free); free some space and run again"
        ) from error


def _error_number(error: Exception) -> int | None:
    """The system's number of an error; safetensors gives it in its text only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def write_text(path: Path, text: str) -> None:
    """Write a whole file, with the directory it is in, or leave the one that was there."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, with the directory it is in, or leave the one that was there."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends well and vanishes when it fails."""
    refuse_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with full_disk_is_an_error(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place when the block ends well and vanishes when it fails."""
    path = path.resolve()  # "." has no name, and a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with full_disk_is_an_error(path):
            yield temporary
            _flush(temporary)
        if path.exists():
            previous = path.with_name(f".{path.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            path.rename(previous)
            temporary.rename(path)
            shutil.rmtree(previous)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left half-written, from a directory that no other process writes to."""
    for path in directory.glob(".*"):
        if re.fullmatch(r"\..+\.(\d+|previous)", path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def refuse_directory(path: Path) -> None:
    """An output file must not be a directory."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; expected a file to write to, name another --output")


def refuse_occupied(path: Path, what: str) -> None:
    """An output directory must be new or empty."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a directory to write {what} to, name another --output")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} exists and is not empty; expected a new directory for {what}, name another --output")


def _flush(directory: Path) -> None:
    """Have the system write what the files hold before the directory gets its name."""
    for file in directory.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
