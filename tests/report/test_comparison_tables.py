"""A comparison as a table for every reader."""

import csv
import io

from crosspair.report.comparison_tables import describe_groups, to_csv, to_latex, to_markdown, to_text, write_tables


def test_a_table_for_every_reader(comparison, tmp_path):
    texts = {"text": to_text(comparison), "md": to_markdown(comparison), "tex": to_latex(comparison)}
    for text in texts.values():
        assert "text to image R@10" in text
        assert "theirs.npz" in text
        assert "protocol plain" in text
        assert "p = 0." in text
        assert "other: seeds 4, 5" in text
    values, differences = [block.splitlines() for block in texts["md"].split("\n\n")[:2]]
    assert len(values) == 2 + 3
    assert len(differences) == 2 + 2
    assert len({line.count("|") for line in values}) == 1
    assert "±" in values[2]
    assert "[" in values[4]
    assert r"small\_model" in texts["tex"]
    assert texts["tex"].count(r"\begin{tabular}") == texts["tex"].count(r"\end{tabular}") == 2
    assert r"$\pm$" in texts["tex"]
    assert describe_groups(comparison.rows) == "small_model: seeds 1, 2, 3\nother: seeds 4, 5"
    written = write_tables(tmp_path / "tables" / "v1.2", comparison)
    assert [path.name for path in written] == ["v1.2.md", "v1.2.csv", "v1.2.tex"]
    assert written[0].read_text() == texts["md"]


def test_the_csv_holds_every_number(comparison):
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == 3 * len(comparison.names)
    row = next(r for r in rows if r["name"] == "other" and (r["direction"], r["metric"]) == ("text_to_image", "R@1"))
    difference = comparison.rows[1].differences["text_to_image", "R@1"]
    assert float(row["difference"]) == difference.value
    assert float(row["p"]) == difference.p
    assert float(row["standard_deviation"]) == comparison.rows[1].deviation(("text_to_image", "R@1"))
    assert (row["runs"], row["seeds"], row["split"], row["protocol"]) == ("2", "4 5", "test", "plain")
    assert rows[0]["difference"] == rows[-1]["seeds"] == ""
