"""A DATA directory opened for reading: memory-mapped, random access to encoded images, usable from any process."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from crosspair.data.batching import Split
from crosspair.data.images import image_format
from crosspair.data.layout import (
    Manifest,
    SplitFacts,
    arrow_files,
    describe_captions_left_out,
    describe_duplicates,
    describe_skipped,
    read_manifest,
)
from crosspair.data.tokens import tokenize
from crosspair.errors import UserError


def open_data(path: str | Path) -> "Data":
    """Open what `prepare` wrote. Raises UserError when it is something else, or damaged."""
    return Data(Path(path), read_manifest(Path(path)))


class Data:
    """The splits of a DATA directory."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def split_names(self) -> list[str]:
        return list(self.manifest.splits)

    def split(self, name: str) -> "PreparedSplit":
        """Raises UserError naming the splits there are."""
        if name not in self.manifest.splits:
            fix = "; prepare it again with --split-shares 0.9,0.1,0 to draw val from train" if name == "val" else ""
            raise UserError(f"{self.path} has no split '{name}'; it has {', '.join(self.split_names)}{fix}")
        return PreparedSplit(self.path / name, self.manifest.splits[name])


class PreparedSplit(Split):
    """One split of a DATA directory."""

    checksum: str

    def __init__(self, path: Path, facts: SplitFacts) -> None:
        self.path = path
        self.facts = facts
        self.checksum = facts.checksum
        files = arrow_files(path)
        size = sum(file.stat().st_size for file in files if file.is_file())
        if size != facts.bytes:
            raise UserError(
                f"{path} is damaged ({size:,} bytes, expected {facts.bytes:,}); copy or prepare the data again"
            )
        try:
            self._table = pa.concat_tables(map(_read_mapped, files))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged ({error!s:.100}); copy or prepare the data again") from error
        if len(self._table) != facts.images:
            raise UserError(
                f"{path} is damaged ({len(self._table):,} rows, expected {facts.images:,}); prepare the data again"
            )
        chunks = self._table.column("image").chunks
        self._images = [chunk.field("bytes") for chunk in chunks]
        self._chunk_ends = np.cumsum([len(chunk) for chunk in chunks])

    def __reduce__(self) -> tuple[type["PreparedSplit"], tuple[Path, SplitFacts]]:
        return type(self), (self.path, self.facts)  # another process maps the file itself

    def __len__(self) -> int:
        return self.facts.images

    @property
    def directory(self) -> Path:
        return self.path.parent.resolve()

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [n]."""
        labels: np.ndarray = self._table.column("label").to_numpy()
        return labels

    @cached_property
    def image_ids(self) -> list[str]:
        ids: list[str] = self._table.column("image_id").to_pylist()
        return ids

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each image."""
        captions: list[list[str]] = self._table.column("captions").to_pylist()
        return captions

    @cached_property
    def tokens(self) -> list[list[list[str]]] | None:
        if "tokens" not in self._table.column_names:
            return None
        tokens: list[list[list[str]]] = self._table.column("tokens").to_pylist()
        return tokens

    @cached_property
    def caption_ids(self) -> list[list[int]] | None:
        """COCO's own number of each caption; None for other sources."""
        if "caption_ids" not in self._table.column_names:
            return None
        ids: list[list[int]] = self._table.column("caption_ids").to_pylist()
        return ids

    def image(self, index: int) -> bytes:
        """The encoded image of a row, 0 <= index < n."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        chunk = int(np.searchsorted(self._chunk_ends, index, side="right"))
        images = self._images[chunk]
        data: bytes = images[index - int(self._chunk_ends[chunk]) + len(images)].as_py()
        return data


def _read_mapped(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        return reader.read_all()


def inspect_data(path: str | Path) -> str:
    """A summary of a DATA directory for people. Raises UserError as `open_data` does."""
    data = open_data(path)
    manifest = data.manifest
    source = ", ".join(f"{key} {value}" for key, value in manifest.source.items())
    stored = f"shorter side at most {manifest.size} pixels" if manifest.size else "bytes as they were"
    lines = [f"{data.path}: {source}", f"prepared by crosspair {manifest.crosspair}, {stored}"]
    lines.append(
        f"{'split':<10}{'images':>10}{'captions':>11}{'labels':>9}  {'captions each':<15}{'words each':<12}sizes"
    )
    lines += [_describe_split(name, data.split(name)) for name in data.split_names]
    lines.append("(captions of a picture, words of a caption, sizes of up to 200 pictures: fewest to most)")
    lines += describe_skipped(manifest.skipped) + describe_captions_left_out(manifest.captions_left_out)
    return "\n".join(lines + describe_duplicates(manifest.duplicates))


def _describe_split(name: str, split: PreparedSplit) -> str:
    facts = split.facts
    captions = _range([len(captions) for captions in split.captions])
    words = _range([len(tokenize(caption)) for captions in split.captions for caption in captions])
    counts = f"{name:<10}{facts.images:>10,}{facts.captions:>11,}{facts.labels:>9,}"
    return f"{counts}  {captions:<15}{words:<12}{_sizes(split)}"


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}..{max(values)}"


def _sizes(split: PreparedSplit, sample: int = 200) -> str:
    """Smallest and largest width and height of evenly spaced images, and their formats."""
    rows = np.unique(np.linspace(0, len(split) - 1, min(sample, len(split))).astype(int))
    seen = [image_format(split.image(row), split.image_ids[row]) for row in rows]
    widths, heights, formats = zip(*seen, strict=True)
    return f"{_range(widths)} x {_range(heights)} {'/'.join(sorted(set(formats)))}"
