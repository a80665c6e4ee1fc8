"""What docs/python.md shows runs as it stands there, from top to bottom."""

import re
import shutil

import pytest

from crosspair.data.prepare import prepare
from crosspair.data.records import Record
from tests.fixtures.galleries import COLOURS, save_image
from tests.fixtures.paths import REPOSITORY


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    """Has a small DATA, and is where the page's files go."""
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    records = []
    for split in ("train", "val"):
        for label, colour in enumerate(COLOURS):
            path = save_image(tmp_path / "images" / f"{split} {colour}.png", colour)
            records.append(Record(f"{split} {colour}", path.read_bytes(), label, (f"a {colour} card", colour), split))
    prepare(records, tmp_path / "DATA", source={}, size=0, processes=1, progress=False)
    shutil.rmtree(tmp_path / "images")
    return tmp_path


def test_the_snippets_run(working_directory):
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict = {}
    for snippet in snippets:
        exec(snippet, names)
    assert len(snippets) == 4
    assert names["result"].run.name == "watched"
    assert len(names["losses"]) == names["result"].history[-1]["step"]
    assert [row.name for row in names["comparison"].rows]
