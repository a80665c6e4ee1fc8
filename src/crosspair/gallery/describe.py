"""Galleries in words: what an indexing run did, what is in a gallery, and what a search found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosspair.data.records import printable
from crosspair.gallery.engines.engine import SearchResult, find_engine
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import IndexSummary
from crosspair.gallery.items import Item
from crosspair.gallery.layout import Manifest, Place, Skipped

SHOWN = 10  # of what was skipped


def describe_summary(summary: IndexSummary) -> str:
    """The closing lines of `crosspair index`."""
    rate = f" ({summary.encoded / summary.seconds:,.0f} a second)" if summary.encoded else ""
    lines = [
        f"{summary.count:,} pictures: {summary.encoded:,} encoded{rate}, {summary.kept:,} kept, "
        f"{summary.removed:,} removed; {summary.seconds:.1f} s"
    ]
    if summary.taken_over:
        lines.append(f"{summary.taken_over:,} pictures had been encoded by an earlier run that was interrupted")
    lines += [*_describe_omitted(summary.skipped, summary.other_files), _describe_index(summary.index)]
    return "\n".join([*lines, f"gallery: {summary.output}"])


def inspect_gallery(path: Path) -> str:
    """A summary of a gallery for people; all its checksums are compared. Raises UserError as `Gallery.open` does."""
    gallery = Gallery.open(path)
    gallery.verify()
    manifest = gallery.manifest
    lines = [
        f"GALLERY {path}: {len(gallery):,} pictures, {gallery.dimension} dimensions, checksums match",
        f"pictures of {_describe_source(manifest, path)}",
        f"model {_place(manifest.model, path)}, encoded by {', '.join(manifest.backends)}",
        _describe_index(manifest.index),
        "files: " + ", ".join(f"{name} {facts.bytes / 1e6:,.1f} MB" for name, facts in manifest.files.items()),
    ]
    items = gallery.items
    lines.append(
        f"sizes {_range(items['width'])} x {_range(items['height'])} pixels, {sum(items['bytes']) / 1e6:,.1f} MB; "
        f"{len(set(items['sha256'])):,} different pictures"
    )
    captions = sum(len(of_image or ()) for of_image in items["captions"])
    if captions:
        lines.append(f"{captions:,} captions, {len(set(items['label'])):,} labels")
    return "\n".join([*lines, *_describe_omitted(manifest.skipped, manifest.other_files)])


def found_table(gallery: Gallery, found: SearchResult) -> str:
    """The answer to one query: rank, score, and the image's path, or its split and id with its first caption."""
    lines = [f"{'rank':>4}  {'score':>7}  picture"]
    for rank, score, item in _found(gallery, found):
        lines.append(f"{rank:>4}  {score:7.4f}  {printable(_name(gallery, item))}")
    return "\n".join(lines)


def found_json(gallery: Gallery, found: SearchResult) -> str:
    """The answer to one query as a list of JSON objects."""
    rows: list[dict[str, Any]] = []
    for rank, score, item in _found(gallery, found):
        path = str(gallery.manifest.source.find(gallery.path) / item.path) if item.path else None
        place = {"item_id": item.item_id, "path": path, "split": item.split, "label": item.label}
        rows.append({"rank": rank, "score": round(score, 6), **place, "captions": item.captions})
    return json.dumps(rows, indent=2)


def _found(gallery: Gallery, found: SearchResult) -> list[tuple[int, float, Item]]:
    pairs = zip(found.scores[0].tolist(), found.rows[0].tolist(), strict=True)
    return [(rank, score, gallery.item(row)) for rank, (score, row) in enumerate(pairs, start=1)]


def _name(gallery: Gallery, item: Item) -> str:
    if item.path is not None:
        return str(gallery.manifest.source.find(gallery.path) / item.path)
    return f"{item.split}/{item.item_id}" + (f"  {item.captions[0]}" if item.captions else "")


def _describe_source(manifest: Manifest, gallery: Path) -> str:
    splits = f", splits {', '.join(manifest.splits)}" if manifest.splits else ""
    return f"{_place(manifest.source, gallery)}{splits}"


def _place(place: Place | str, gallery: Path) -> str:
    if isinstance(place, str):
        return place
    path = place.find(gallery)
    return str(path) if path.exists() else f"{path} (gone)"


def _describe_index(index: dict[str, Any]) -> str:
    return f"index: {find_engine(str(index['kind'])).describe(index)}"


def _describe_omitted(skipped: list[Skipped], other_files: dict[str, int]) -> list[str]:
    lines = [f"skipped: {len(skipped):,} pictures" if skipped else "skipped: nothing"]
    lines += [f"  {item.item_id} {item.reason}" for item in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"  and {len(skipped) - SHOWN:,} more, all listed in gallery.json")
    if other_files:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in other_files.items())
        lines.append(f"files that are no pictures: {printable(counts)}")
    return lines


def _range(values: Sequence[int]) -> str:
    return f"{min(values):,}..{max(values):,}"
