"""Commands that the README and the documentation show are commands that there are."""

import re
import shlex

import pytest
from tests.fixtures.paths import REPOSITORY

from crosspair.cli import parse

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
    packages = {"data", "evaluation", "gallery", "losses", "models", "training"}
    names = set(crosspair.__all__) - {"__version__"} - packages
    assert {
        name for name in names if f"::: crosspair.{name}\n" not in reference and f"`{name}`" not in reference
    } == set()
    assert {name for name in packages & {"data", "losses"} if f"::: crosspair.{name}" not in reference} == set()
