"""What the documentation needs beside mkdocs: docstrings keep their lines, and the notebook becomes a page."""

import json
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# "image_embeddings [n, d], text_embeddings [m, d]: any float type" and "Raises ValueError when ..." begin a line.
_NAME = r"\w+( \[[^\]]*\])?"
_BEGINS = re.compile(rf"{_NAME}(, {_NAME})*: |(Returns|Raises|Source)\b")


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


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    for path in sorted(Path(config.docs_dir).glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        content = "\n\n".join(part for cell in cells for part in _parts(cell))
        files.append(File.generated(config, f"{path.stem}.md", content=content))
    return files


def _parts(cell: dict[str, Any]) -> list[str]:
    """A cell as Markdown: its text or code, and what it printed and showed."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            parts.append(f"![](data:image/png;base64,{''.join(data['image/png']).strip()})")
        else:
            text = output.get("text") or data.get("text/plain", "")
            parts.append(f"```text\n{''.join(text).rstrip()}\n```")
    return parts
