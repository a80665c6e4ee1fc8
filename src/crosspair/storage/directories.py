"""Kinds of directories (DATA, RUN, MODEL, GALLERY), told by a file that each of them has."""

from pathlib import Path
from typing import Literal

from crosspair.errors import UserError

Kind = Literal["DATA", "RUN", "MODEL", "GALLERY"]

# The file that makes a directory one of a kind; a gallery's comes first, as a kind of its own files may be in a RUN.
FILES: dict[Kind, str] = {
    "GALLERY": "gallery.json",
    "DATA": "crosspair.json",
    "RUN": "recipe.yaml",
    "MODEL": "config.json",
}
_PAIRS = ("open_clip_config.json", "modules.json")  # of ready-made pairs of open_clip and sentence-transformers
_WRITERS: dict[Kind, str] = {
    "GALLERY": "`crosspair index` wrote",
    "DATA": "`crosspair prepare` wrote",
    "RUN": "`crosspair train` wrote",
    "MODEL": "`crosspair train` wrote as RUN/model, or `crosspair import`",
}
MOVING = ".next"  # in a GALLERY: its new state, whole, on its way to its place
GALLERY_WORK = ".partial"  # in a GALLERY: what an indexing run that is under way, or was killed, has encoded


def kind_of(directory: str | Path) -> Kind | None:
    """The kind of a directory, also of one whose writing is under way; None for anything else."""
    path = Path(directory)
    try:
        for kind, name in FILES.items():
            if (path / name).is_file():
                return kind
        if any((path / name).is_file() for name in _PAIRS):
            return "MODEL"
        if (path / MOVING / FILES["GALLERY"]).is_file() or (path / GALLERY_WORK).is_dir():
            return "GALLERY"
    except (OSError, ValueError):  # a name that no file can have, such as a long hub name or sentence
        pass
    return None


def expect_kind(directory: Path, *expected: Kind) -> Kind:
    """The kind of a directory that has to be one of those expected. Raises UserError for anything else."""
    found = kind_of(directory)
    if found in expected:
        return found
    *others, last = expected
    wanted = f"a {', '.join(others)} or {last} directory" if others else f"a {last} directory"
    advice = "name a directory that crosspair wrote" if others else f"name a directory that {_WRITERS[last]}"
    if found is not None:
        raise UserError(f"{directory} is a {found}; expected {wanted}, {advice}")
    if not directory.exists():
        raise UserError(f"{directory} does not exist; expected {wanted}, {advice}{_unfinished(directory)}")
    files = " or ".join(FILES[kind] for kind in expected)
    reason = f"it has no {files}" if directory.is_dir() else "it is a file"
    raise UserError(f"{directory} is not {wanted} ({reason}); {advice}")


def prepare_work(data: Path) -> Path:
    """The folder beside a DATA directory in which `crosspair prepare` builds it."""
    return data.with_name(f".{data.name}.partial")


def _unfinished(directory: Path) -> str:
    if not directory.name or not prepare_work(directory).is_dir():
        return ""
    return f"; preparing {directory} was interrupted, the same `crosspair prepare` command goes on"
