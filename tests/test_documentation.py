"""Commands that the README and the documentation show are commands that there are."""

import re
import shlex

import pytest

import crosspair
from crosspair.cli import parse
from tests.fixtures.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """(page, arguments) of every line in a block of code that calls crosspair."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            lines = re.findall(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*crosspair (\S.*)$", block, re.MULTILINE)
            found += [(page.name, line) for line in lines]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_of_the_documentation_is_understood(page: str, line: str):
    plain = re.sub(r"\[(--.*?)\]", r"\1", line)  # optional parts count
    parse([re.sub(r"\|.*", "", argument) for argument in shlex.split(plain, comments=True)])


def test_the_documentation_shows_commands():
    assert len(commands()) > 40


def test_every_public_name_is_in_the_reference():
    reference = "".join(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs" / "api").glob("*.md"))
    packages = {"evaluation", "gallery", "models", "training"}  # what they are for is said by their names
    shown = {name for name in crosspair.__all__ if re.search(rf"::: crosspair\.{name}\b|`{name}`", reference)}
    assert shown | packages | {"__version__"} >= set(crosspair.__all__)
