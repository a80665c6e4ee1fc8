"""The facts and the metrics of a report as HTML."""

from html import escape

from crosspair.evaluation.metrics import DirectionResult
from crosspair.evaluation.protocols import Evaluation
from crosspair.evaluation.uncertainty import LEVEL, RSUM, Intervals

Bounds = tuple[float, float]


def facts_list(facts: dict[str, str]) -> str:
    """Names and values."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>' if facts else ""


def results_table(evaluation: Evaluation, intervals: Intervals) -> str:
    """The metrics of both directions, with intervals and the protocol's name."""
    result, protocol = evaluation.result, evaluation.protocol
    rows = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th>'
        f"{_cell(name, result.image_to_text, intervals.bounds['image_to_text', name])}"
        f"{_cell(name, result.text_to_image, intervals.bounds['text_to_image', name])}</tr>"
        for name in result.image_to_text.names
    )
    images, texts = result.text_to_image.ranks.gallery_size, result.image_to_text.ranks.gallery_size
    folds = f" in each of {len(evaluation.folds)} folds" if evaluation.folds else ""
    reference = f" ({protocol.reference})" if protocol.reference else ""
    note = (
        f"Protocol {protocol.name}{reference}. All in per cent but the ranks, which are of the first relevant item "
        f"among {texts:,} {protocol.text_unit} and {images:,} pictures{folds}. In brackets {LEVEL} % intervals: how "
        f"far a number could move with another draw of the {intervals.clusters:,} {protocol.cluster_unit}."
    )
    return (
        '<div class="card"><table><caption>Retrieval</caption><thead><tr><th scope="col"><span class="hidden">'
        'Metric</span></th><th scope="col">Image to text</th><th scope="col">Text to image</th></tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">Sum of recalls</th><td colspan="2">{result.rsum:.1f}'
        f'{_bracket(intervals.bounds[RSUM])}</td></tr></tfoot></table><p class="quiet small">{escape(note)}</p></div>'
    )


def _cell(name: str, direction: DirectionResult, bounds: Bounds) -> str:
    value = direction.value(name)
    if name.endswith("rank"):
        shown = f"{value:,.0f}" if value.is_integer() else f"{value:,.1f}"
        return f"<td>{shown}{_bracket(bounds)}</td>"
    return f'<td class="share" style="--share:{value:.1f}%">{value:.1f}{_bracket(bounds)}</td>'


def _bracket(bounds: Bounds) -> str:
    low, high = (f"{bound:.0f}" if bound >= 1000 else f"{bound:.1f}" for bound in bounds)
    return f' <span class="interval">[{low}, {high}]</span>'
