"""Files of a model on the Hugging Face hub, or on a mirror that HF_ENDPOINT names: fetched once, kept in its cache."""

import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crosspair.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def snapshot(name: str, patterns: Iterable[str], *, revision: str | None = None) -> Path:
    """The local folder of the files of `name` (owner/name) that fit the patterns, as of the newest revision or one.

    Raises UserError, which says that the hub was asked, when they can't be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    asked = f"there is no directory {name} here, so the hub {constants.ENDPOINT} was asked for it"
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=sorted(patterns), revision=revision, tqdm_class=_bar_of_long_downloads()
            )
        )
    except GatedRepoError as error:
        raise UserError(
            f"{asked}, which gives it only to those who accepted its terms; accept them on its page and log in with "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{asked}, which has no such model, or none that everybody may see; check the name, or log in with "
            "`hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"there is no directory {name} here, and HF_HUB_OFFLINE forbids to ask the hub for what is not in its "
                f"cache {constants.HF_HUB_CACHE}; unset it, or name a directory"
            ) from error
        raise UserError(f"{asked} and did not answer; connect to it, or name a directory") from error
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{asked} and did not give it ({reason}); connect to it, or name a directory") from error


def snapshot_revision(folder: Path) -> str | None:
    """The revision that a folder of `snapshot` is of, so that more of its files can be fetched; None if unknown."""
    return folder.name if _COMMIT.fullmatch(folder.name) else None


def reads_as_hub_name(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return len(name) <= 96 and _NAME.fullmatch(name) is not None


def _bar_of_long_downloads() -> Any:
    """A bar that is shown from the second second on: files that are in the cache already are looked up at once."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # not subscriptable when it runs
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pause = 0.1 if sys.stderr.isatty() else 10.0
            super().__init__(*arguments, **{**options, "delay": 1, "leave": False, "mininterval": pause})

        def display(self, *arguments: Any, **options: Any) -> None:  # which the hub's client calls without the delay
            if time.time() > getattr(self, "start_t", time.time()) + 1:
                super().display(*arguments, **options)

    return Bar
