"""RUN/run.json: the command lines that started a run and went on with it, and when.

{"format": 1, "crosspair": "0.1.0", "starts": [{"command": "crosspair train ...", "date": "...", "crosspair": "0.1.0"}]}
"""

import re
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from crosspair.storage.files import write_text
from crosspair.storage.manifest import manifest_text, read_manifest
from crosspair.version import __version__

NAME = "run.json"
FORMAT = 1
_ADVICE = "remove that file, the run is then shown without its command line"
_SECRET = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")


@dataclass(frozen=True)
class Start:
    """A start of a run, or a resumption: its command line, its time in UTC (ISO 8601), and the version."""

    command: str
    date: str
    crosspair: str


@dataclass(frozen=True)
class RunRecord:
    """What RUN/run.json holds. starts: the first one, and each resumption after it."""

    format: int
    crosspair: str
    starts: list[Start]


def record_start(run: Path) -> None:
    """Add this process's command line to RUN/run.json. Raises UserError for a file that is damaged."""
    before = read_record(run)
    start = Start(command_line(), now(), __version__)
    starts = [*(before.starts if before else ()), start]
    write_text(run / NAME, manifest_text(RunRecord(FORMAT, __version__, starts)))


def read_record(run: Path) -> RunRecord | None:
    """The record of a run; None for one that an older version trained. Raises UserError for a damaged file."""
    path = run / NAME
    return read_manifest(path, RunRecord, FORMAT, _ADVICE) if path.is_file() else None


def command_line() -> str:
    """This process's command line, ready for a shell; the user and password of an address are left out."""
    program, *arguments = sys.argv
    name = Path(program).name
    if name in ("crosspair", "__main__.py"):
        words = ["crosspair", *arguments]
    else:
        words = ["python", program, *arguments]
    return shlex.join(_SECRET.sub("...", word) for word in words)


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
