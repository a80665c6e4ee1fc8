"""A database for what grows with the number of records and would not fit into memory: SQLite in a temporary file.

It keeps to a few megabytes of memory, goes to a file when it needs more, and vanishes with its process.
"""

import sqlite3

_CACHE_KILOBYTES = 32 << 10


def scratch_database(*tables: str) -> sqlite3.Connection:
    """A database with the given tables, each in the words of CREATE TABLE: "labels(name BLOB, number INTEGER)"."""
    database = sqlite3.connect("")  # SQLite removes the file's name as soon as it has opened it
    for setting in (f"cache_size = -{_CACHE_KILOBYTES}", "journal_mode = OFF", "synchronous = OFF"):
        database.execute(f"PRAGMA {setting}")
    for table in tables:
        database.execute(f"CREATE TABLE {table}")
    return database


def pack(text: str) -> bytes:
    """A text as it is stored: halves of characters, which JSON can hold and SQLite can't, come back as they were."""
    return text.encode("utf-8", "surrogatepass")


def unpack(data: bytes) -> str:
    """The text of `pack`."""
    return data.decode("utf-8", "surrogatepass")
