"""What the documentation needs beside mkdocs: docstrings keep their lines, and notebooks become pages."""

import re
from typing import Any

import griffe

# "image_embeddings [n, d], text_embeddings [m, d]: any float type" and "Raises ValueError when ..." begin a line.
_BEGINS = re.compile(r"(\w+( \[[^\]]*\])?(, )?)+: |(Returns|Raises|Source)\b")


class KeepLines(griffe.Extension):
    """Lines of a docstring that name arguments, results and errors stay lines of their own."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            lines = obj.docstring.value.split("\n")
            following = [*lines[1:], ""]
            pairs = zip(lines, following, strict=True)
            obj.docstring.value = "\n".join(
                f"{line}  " if line and _BEGINS.match(after) else line for line, after in pairs
            )
