"""Imports of the package go down only, between modules and between packages (CONTRIBUTING.md, The tree)."""

import ast
from collections.abc import Iterator
from functools import cache
from itertools import chain

from tests.fixtures.paths import SOURCES

# From the bottom up. A package imports those of lower rows, and those of its own row as long as no circle comes of it.
ROWS = [
    {"registry", "settings", "errors", "progress", "devices", "version"},
    {"formats", "storage"},
    {"data", "losses"},
    {"models"},
    {"evaluation", "gallery", "encode"},
    {"training", "report", "serve"},
    {"original"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
]
ROW = {package: number for number, row in enumerate(ROWS) for package in row}

# These know nothing but tensors and arrays.
ALONE = {
    "losses": {"errors", "registry", "settings"},
    "evaluation": {"errors", "registry", "settings", "progress", "storage", "devices"},
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, a package's own by its name alone; crosspair's is `__init__`."""
    found = {}
    for path in sorted((SOURCES / "crosspair").rglob("*.py")):
        parts = path.relative_to(SOURCES / "crosspair").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """What a module imports of the package, wherever in the file: in functions and for annotations alone, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, inside = name.partition(".")
            if first == "crosspair":
                known = [inside, inside.rpartition(".")[0], "__init__"]
                yield next(name for name in known if name in modules())


@cache
def graph() -> dict[str, set[str]]:
    """Module to the modules that it imports."""
    return {name: set(imported(tree)) - {name} for name, tree in modules().items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""

    def reach(start: str) -> set[str]:
        found, left = set(), [start]
        while left:
            new = edges[left.pop()] - found
            found |= new
            left.extend(new)
        return found

    reached = {node: reach(node) for node in edges}
    groups = {
        frozenset(other for other in edges if other in reached[node] and node in reached[other]) for node in edges
    }
    return sorted(sorted(group) for group in groups if group)


def between_packages() -> dict[tuple[str, str], list[str]]:
    """(importing package, imported package) to the imports, as `module -> module`."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, targets in sorted(graph().items()):
        for target in sorted(targets):
            pair = module.partition(".")[0], target.partition(".")[0]
            if pair[0] != pair[1]:
                found.setdefault(pair, []).append(f"{module} -> {target}")
    return found


def test_every_package_has_its_row():
    packages = {module.partition(".")[0] for module in modules()}
    assert packages - {"recipes"} <= set(ROW)


def test_no_module_imports_itself_by_way_of_others():
    assert circles(graph()) == []


def test_no_package_imports_itself_by_way_of_others():
    edges: dict[str, set[str]] = {module.partition(".")[0]: set() for module in modules()}
    for importer, target in between_packages():
        edges[importer].add(target)
    assert circles(edges) == []


def test_no_package_imports_one_above_it():
    upward = [found for (importer, target), found in between_packages().items() if ROW[importer] < ROW[target]]
    assert list(chain.from_iterable(upward)) == []


def test_losses_and_evaluation_know_only_tensors():
    beyond = [
        found
        for (importer, target), found in between_packages().items()
        if importer in ALONE and target not in ALONE[importer]
    ]
    assert list(chain.from_iterable(beyond)) == []
