"""Atomic writes of files and directories: nothing half-written ever has its final name."""

import errno
import fcntl
import glob
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from crosspair.errors import UserError


class FullDiskError(UserError):
    """A disk is full, or a file larger than it may be."""


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and "file too large" while writing below `path` into one sentence, a FullDiskError."""
    try:
        yield
    except Exception as error:
        if getattr(error, "sqlite_errorname", None) == "SQLITE_FULL":
            raise FullDiskError(
                "the disk for temporary files is full; free some space, or name a folder on another disk with TMPDIR"
            ) from error
        if _error_number(error) == errno.EFBIG:
            raise FullDiskError(
                f"a file of {path} would be larger than its disk or a limit of this process (ulimit -f) allows; "
                "lift the limit or name a place on another disk"
            ) from error
        if _error_number(error) not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        free = shutil.disk_usage(path.parent).free
        raise FullDiskError(
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
def whole_file(path: Path, *, shared: bool = False, synced: bool = True) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends well and vanishes when it fails.

    shared: threads and machines that share the disk may write the same file at once. synced: after a power failure,
    too, it is whole or not there.
    """
    refuse_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{platform.node()}-{threading.get_ident()}-{os.getpid()}" if shared else str(os.getpid())
    temporary = path.with_name(f".{path.name}.{own}")
    try:
        with full_disk_is_an_error(path), temporary.open("wb") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place when the block ends well and vanishes when it fails."""
    path = path.resolve()  # "." has no name, and a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with full_disk_is_an_error(path):
            yield temporary
            write_through(temporary)
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


@contextmanager
def claimed(directory: Path, what: str) -> Iterator[None]:
    """Claim a directory, made where it is missing, for this process alone, until the block or the process ends.

    Raises UserError, which calls the directory's purpose `what`, when another process has it.
    """
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "lock"
        with path.open("w") as file:
            try:
                # Not flock, which worker processes would inherit and hold for a moment after their parent was killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"another process is writing {what}; wait for it, or name another --output") from None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                yield
                return
            # The process that had it has just ended and removed it.


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left half-written of `path`: names that end in the number of no process."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        number = leftover.suffix[1:]
        if number.isdecimal() and leftover.name == f".{path.name}.{number}" and not _is_running(int(number)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left half-written, from a directory that no other process writes to.

    A directory that was put aside for a new one, which then did not come, gets its name back.
    """
    for path in directory.glob(".*"):
        if re.fullmatch(r"\..+\.(\d+|previous)", path.name):
            replaced = path.with_name(path.name[1:].removesuffix(".previous"))
            if path.suffix == ".previous" and not replaced.exists():
                path.rename(replaced)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path that begins with `folder` leads, by links on its way, to a place outside of it."""
    if not path.is_relative_to(folder):
        return False
    real = _real(str(path.parent)) / path.name
    return not (Path(os.path.realpath(real)) if path.is_symlink() else real).is_relative_to(_real(str(folder)))


@lru_cache(maxsize=4096)
def _real(folder: str) -> Path:
    return Path(os.path.realpath(folder))


def refuse_directory(path: Path, option: str = "--output") -> None:
    """An output file must not be a directory."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; expected a file to write to, name another {option}")


def refuse_occupied(path: Path, what: str) -> None:
    """An output directory must be new or empty."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a directory to write {what} to, name another --output")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} exists and is not empty; expected a new directory for {what}, name another --output")


def write_through(directory: Path) -> None:
    """Flush files to the disk before their directory gets its name (fsync)."""
    for file in directory.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
