"""One self-contained HTML file about a model: its numbers, what it retrieves, where it fails, and its training.

The page needs no network, follows the reader's light or dark scheme, prints, and holds every image once beside the
sheet that the map and the list of queries share. Its policy allows its own script by its hash and nothing else.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.inputs import EvaluationInputError
from crosspair.evaluation.protocols import Evaluation
from crosspair.report import figures
from crosspair.report.inline_images import Thumbnail
from crosspair.report.rivals import Rival
from crosspair.report.sections import Sections
from crosspair.report.text import foreign, isolated
from crosspair.storage.files import write_text


def write_report(
    output: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    embeddings: Embeddings,
    evaluation: Evaluation,
    captions: Sequence[str] | None = None,
    thumbnail: Thumbnail | None = None,
    history: Sequence[dict[str, Any]] = (),
    origin: Mapping[str, str] | None = None,
    name: str = "this model",
    rival: Rival | None = None,
    queries: int = 24,
) -> None:
    """Write the report of one evaluation to `output`, whole or not at all.

    facts: what was evaluated, by name, shown on top; the protocol is added.
    embeddings: of n images and m texts; evaluation: of these by a protocol. captions: the m texts; None where nobody
    knows them, then the texts' names stand for them.
    thumbnail: row of an image to its encoded bytes (JPEG, PNG); None where there are only names.
    history: rows of metrics.jsonl, of kinds "train" and "val"; may be empty.
    origin: where the numbers come from, by name, shown at the end.
    name, rival: of the model, and one on the same queries that it is compared with.
    queries: how many examples to show, half of them texts and half images.
    Raises EvaluationInputError unless there is a caption for every text.
    """
    if captions is not None and len(captions) != len(embeddings.texts):
        raise EvaluationInputError(
            f"found {len(captions)} captions; expected one for each of {len(embeddings.texts)} texts"
        )
    sections = Sections(embeddings, evaluation, captions, thumbnail, name, rival)
    shown = [part for part in sections.all(queries, history, origin or {}) if part]
    links = "".join(f'<a href="#{part.name}">{part.link or part.heading}</a>' for part in shown)
    protocol = evaluation.protocol
    body = [
        figures.facts_list({**facts, "Protocol": f"{protocol.name}: {protocol.summary}"}),
        f'<nav aria-label="Sections">{links}</nav>',
        *(part.html() for part in shown),
        "<footer>Ranks start at 1, and a tie counts against the model.</footer>",
    ]
    page, styles, script = (_read(f"report.{kind}") for kind in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    text = Template(page).substitute(
        title=escape(isolated(title)),
        heading=foreign(title),
        body="\n".join(body),
        styles=f"{styles}{sections.styles()}",
        script=script,
        script_hash=f"sha256-{digest}",
    )
    write_text(output, text)


def _read(name: str) -> str:
    return resources.files("crosspair.report").joinpath(name).read_text(encoding="utf-8")
