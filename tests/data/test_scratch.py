"""What the records' names and rows are kept in: any text comes back, and nothing of it stays in a folder."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from crosspair.data.scratch import SeenNames, pack, scratch_database, unpack

TEXT = st.text(st.characters())  # halves of characters too


@given(st.lists(TEXT))
def test_any_text_comes_back_in_the_order_of_python(texts):
    database = scratch_database("texts(text BLOB)")
    database.executemany("INSERT INTO texts VALUES (?)", [(pack(text),) for text in texts])
    found = database.execute("SELECT text FROM texts ORDER BY text")
    assert [unpack(text) for (text,) in found] == sorted(texts)


@given(st.lists(TEXT))
def test_a_name_is_new_once(names):
    seen = SeenNames()
    assert [seen.add(name) for name in names] == [name not in names[:place] for place, name in enumerate(names)]


def test_a_large_one_is_in_a_file_that_vanishes_with_its_process():
    database = scratch_database("texts(text BLOB)")
    database.executemany("INSERT INTO texts VALUES (?)", ((bytes(1 << 20),) for _ in range(64)))
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert any("etilqs" in link and link.endswith("(deleted)") for link in links)
