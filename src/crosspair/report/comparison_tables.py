"""A comparison as text for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from crosspair.evaluation.clusters import Name
from crosspair.evaluation.comparison import Comparison, Row, long_rows
from crosspair.evaluation.uncertainty import LEVEL, Difference, few_clusters
from crosspair.storage.files import write_text

_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image", "": ""}
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}


def to_text(comparison: Comparison) -> str:
    """Aligned columns: the values, then the differences."""
    parts = []
    for cells in _tables(comparison):
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
        parts.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join([*parts, *_notes(comparison)])


def to_markdown(comparison: Comparison) -> str:
    """Two tables and a note."""
    parts = []
    for cells in _tables(comparison):
        rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        rows.insert(1, "|---" * len(cells[0]) + "|")
        parts.append("\n".join(rows))
    return "\n\n".join([*parts, *_notes(comparison)]) + "\n"


def to_latex(comparison: Comparison) -> str:
    """Two tabulars in the style of booktabs."""
    parts = []
    for cells in _tables(comparison):
        rows = [" & ".join(map(_escape, row)) + r" \\" for row in cells]
        columns = "l" + "r" * (len(cells[0]) - 1)
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
        parts.append("\n".join([*body, r"\bottomrule", r"\end{tabular}"]))
    notes = "% " + "\n".join(_notes(comparison)).replace("\n", "\n% ")
    return "\n\n".join([*parts, notes]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One row for each group and metric, numbers as they are."""
    rows = list(long_rows(comparison))
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_tables(prefix: Path, comparison: Comparison) -> list[Path]:
    """PREFIX.md, PREFIX.csv and PREFIX.tex."""
    written = []
    for suffix, text in ((".md", to_markdown), (".csv", to_csv), (".tex", to_latex)):
        path = prefix.with_name(prefix.name + suffix)
        write_text(path, text(comparison))
        written.append(path)
    return written


def _tables(comparison: Comparison) -> list[list[list[str]]]:
    """Cells with a row of headings: values, and differences to the first row."""
    headings = ["", "runs", *(_heading(name) for name in comparison.names)]
    values = [
        [row.name, str(len(row.seeds)), *(_value(row, name) for name in comparison.names)] for row in comparison.rows
    ]
    against = f"minus {comparison.rows[0].name}"
    compared = [
        [row.name, *(_difference(row.differences[name]) for name in comparison.names)] for row in comparison.rows[1:]
    ]
    return [[headings, *values], [[against, *headings[2:]], *compared]]


def _heading(name: Name) -> str:
    return f"{_DIRECTIONS[name[0]]} {name[1]}".strip()


def _value(row: Row, name: Name) -> str:
    """With the deviation over seeds, or the interval of a single run."""
    deviation = row.deviation(name)
    if deviation is not None:
        return f"{row.mean(name):.1f} ± {deviation:.1f}"
    low, high = row.intervals[name]
    return f"{row.mean(name):.1f} [{low:.1f}, {high:.1f}]"


def _difference(difference: Difference) -> str:
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    return f"{difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}] {p}"


def _notes(comparison: Comparison) -> list[str]:
    """Notes on what the tables show, and on the seeds of their groups."""
    where = f"{comparison.split}, " if comparison.split else ""
    unit = comparison.unit
    about = (
        f"{where}protocol {comparison.protocol}. [ ]: {LEVEL} % interval over {comparison.clusters:,} {unit}, each "
        "with all of its queries; ±: standard deviation over seeds;\n"
        f"p: paired permutation test over the same {unit} ({comparison.permutations:,} tosses), two-sided, not "
        "corrected for the number of comparisons."
    )
    groups = describe_groups(comparison.rows)
    return [about, *([groups] if groups else []), *few_clusters(comparison.fewest, unit)]


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text).replace("±", r"$\pm$").replace("<", "$<$")


def describe_groups(rows: Sequence[Row]) -> str:
    """The seeds of each group of several runs, a line each."""
    seeds = ((row.name, ", ".join(map(str, row.seeds))) for row in rows if len(row.seeds) > 1)
    return "\n".join(f"{name}: seeds {numbers}" for name, numbers in seeds)
