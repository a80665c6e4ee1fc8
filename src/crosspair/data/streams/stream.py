"""Training data that is read from start to end, shard after shard, because it is larger than a disk.

The first use reads the stream once, checks every sample and keeps what planning needs, a JSON file a shard, in
CACHE/streams/KEY. From then on an epoch is known in advance (`stream_batches`), and only images and captions come
from the stream.
"""

import hashlib
import json
import os
import threading
import zlib
from collections import Counter
from collections.abc import Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from crosspair.data.batching import Reading
from crosspair.data.images import ImageError, decode_image
from crosspair.data.readers.webdataset import Sample
from crosspair.data.records import BadCaption, Record, caption_problem, printable, without_bad_captions
from crosspair.data.streams.batches import StreamSource
from crosspair.data.streams.shards import Shard, find_shards
from crosspair.data.tokens import Tokenizer, tokenize
from crosspair.errors import UserError
from crosspair.progress import progress_bar
from crosspair.storage.cache import locked, user_cache
from crosspair.storage.files import write_text

OnError = Literal["stop", "skip"]


@dataclass
class ShardFacts:
    """Findings of the first pass in a shard; the lists have an entry for each sample that can be used."""

    captions: list[int] = field(default_factory=list)  # how many
    labels: list[int | None] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)  # the sample's number in the shard: its name, and why
    captions_left_out: list[str] = field(default_factory=list)  # of samples that can be used: which, and why
    # Of each tokenizer that the captions can be read with, how often each word comes.
    word_counts: dict[str, dict[str, int]] = field(default_factory=dict)


class StreamSplit:
    """n images in shards; row i of what is known in advance is the i-th one that can be used."""

    by_index = None  # it is read in its own order, and is too large for features to be kept
    directory = None

    def __init__(self, name: str, shards: list[Shard], facts: list[ShardFacts], where: Path) -> None:
        self.name = name
        self.shards = shards
        self.facts = facts
        self.where = where  # of the facts
        self.shard_ends = np.cumsum([len(one.captions) for one in facts])
        self.caption_counts = np.array([count for one in facts for count in one.captions], dtype=np.int64)
        self._checksums = np.array([value for one in facts for value in one.checksums], dtype=np.uint32)

    def __len__(self) -> int:
        return len(self.caption_counts)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [n]; without labels in the stream every image has its own."""
        labels = [label for one in self.facts for label in one.labels]
        missing = labels.count(None)
        if missing == len(labels):
            return np.arange(len(labels))
        if missing:
            raise UserError(f"{missing:,} of {len(labels):,} samples have no label; give it to all, or to none")
        return np.array(labels, dtype=np.int64)

    @cached_property
    def checksum(self) -> str:
        """A checksum of the contents."""
        values: list[np.ndarray] = [self._checksums, self.caption_counts, self.labels, self.shard_ends]
        return hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest()

    def describe(self) -> dict[str, Any]:
        left_out = sum(len(one.captions_left_out) for one in self.facts)
        counts = {"images": len(self), "skipped": len(self.skipped), "captions_left_out": left_out}
        return {"stream": self.name, **counts}

    def batch_source(self, reading: Reading) -> StreamSource:
        return StreamSource(self, reading)

    def word_counts(self, tokenizer: Tokenizer = "words") -> Counter[str]:
        """Word counts of the captions. Raises UserError for `stored` where not every sample has tokens."""
        counts: Counter[str] = Counter()
        for one in self.facts:
            if tokenizer not in one.word_counts and one.captions:
                raise UserError(
                    f"model.text.tokenizer is {tokenizer}, and {self.name} has samples without tokens; set it to "
                    "original or words, or give every sample the words of its captions as tokens"
                )
            counts.update(one.word_counts.get(tokenizer, {}))
        return counts

    @property
    def skipped(self) -> list[str]:
        """The samples left out, and why."""
        return [why for one in self.facts for why in one.skipped.values()]

    def read(self, shard: int) -> Generator[tuple[int, Sample], None, None]:
        """The usable samples of a shard with their rows. Raises UserError when they are not those of the first pass."""
        facts, row = self.facts[shard], int(self.shard_ends[shard]) - len(self.facts[shard].captions)
        for number, sample in enumerate(self.shards[shard].samples()):
            if number in facts.skipped:
                continue
            if row == self.shard_ends[shard] or _checksum(sample) != self._checksums[row]:
                raise self._changed(shard)
            yield row, _usable(sample)[0]
            row += 1
        if row != self.shard_ends[shard]:
            raise self._changed(shard)

    def _changed(self, shard: int) -> UserError:
        return UserError(
            f"{self.shards[shard].name} is not what it was when it was first read; delete {self.where} and start a new "
            "run, or bring the shard back"
        )


def open_stream(source: str, *, on_error: OnError = "stop", progress: bool = True) -> StreamSplit:
    """A stream opened for training; the first time it is read once.

    source: tar shards (URLs or paths with {000..123}, a folder of them, a .txt file with one a line) or the name of a
    data set on the hub. on_error: at a sample that can't be used. Raises UserError.
    """
    shards = find_shards(source)
    key = hashlib.sha256("\n".join(shard.name for shard in shards).encode()).hexdigest()[:32]
    directory = user_cache("streams") / key
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / "lock"):
        facts = _first_pass(shards, directory, on_error, progress)
    if not any(one.captions for one in facts):
        raise UserError(f"{source} holds no sample with a picture and a caption; name another stream")
    return StreamSplit(source, shards, facts, directory)


def _first_pass(shards: list[Shard], directory: Path, on_error: OnError, progress: bool) -> list[ShardFacts]:
    """The facts of every shard: those kept already, and the others by reading them, a few at a time."""
    files = [directory / f"{number:06d}.json" for number in range(len(shards))]
    stop = threading.Event()

    def facts_of(number: int) -> ShardFacts:
        kept = _load(files[number])
        if kept is None:
            kept = _examine(shards[number], stop)
            write_text(files[number], json.dumps(asdict(kept)))
        if kept.skipped and on_error == "stop":
            why = next(iter(kept.skipped.values()))
            raise UserError(f"{why}; mend it, or leave such samples out with --stream.on_error skip")
        return kept

    missing = sum(not file.exists() for file in files)
    bar = progress_bar(total=len(shards), desc="first pass", unit=" shards", disable=not (progress and missing))
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            found = []
            for facts in threads.map(facts_of, range(len(shards))):
                found.append(facts)
                bar.update()
            return found
        except BaseException:
            stop.set()
            threads.shutdown(cancel_futures=True)
            raise


def _examine(shard: Shard, stop: threading.Event) -> ShardFacts:
    """Read a shard to its end and decode every image, so that training meets no surprise."""
    facts = ShardFacts()
    counts: dict[Tokenizer, Counter[str]] = {tokenizer: Counter() for tokenizer in get_args(Tokenizer)}
    for number, sample in enumerate(shard.samples()):
        if stop.is_set():
            raise CancelledError  # another shard ended the pass
        problem = _problem(sample)
        if problem:
            facts.skipped[number] = f"{printable(sample.key[:80])} in {shard.name} {problem}"
            continue
        facts.checksums.append(_checksum(sample))
        sample, bad = _usable(sample)
        where = f"{printable(sample.key[:80])} in {shard.name}"
        facts.captions_left_out += [f"caption {one.number} of {where} {one.reason}" for one in bad]
        facts.captions.append(len(sample.captions))
        facts.labels.append(sample.label)
        if sample.tokens is None:
            counts.pop("stored", None)
        for tokenizer, words in counts.items():
            for text in sample.texts(tokenizer):
                words.update(tokenize(text, tokenizer) if isinstance(text, str) else text)
    facts.word_counts = {tokenizer: dict(words) for tokenizer, words in counts.items()}
    return facts


def _record(sample: Sample) -> Record:
    return Record(sample.key, sample.image, 0, tuple(sample.captions), "", sample.tokens)


def _usable(sample: Sample) -> tuple[Sample, list[BadCaption]]:
    """The sample with the captions that can be used, and the others."""
    record, bad = without_bad_captions(_record(sample))
    return replace(sample, captions=list(record.captions), tokens=record.tokens), bad


def _problem(sample: Sample) -> str | None:
    """Why a sample can't be used, or None."""
    if not sample.image:
        return "has no picture"
    if sample.label is not None and not -(2**63) <= sample.label < 2**63:
        return f"has the label {sample.label}, which no 64 bits hold"
    try:
        decode_image(sample.image)
    except ImageError as error:
        return error.reason
    return caption_problem(without_bad_captions(_record(sample))[0])


def _checksum(sample: Sample) -> int:
    words = [] if sample.tokens is None else [json.dumps(sample.tokens)]
    text = "\n".join([str(sample.label), *sample.captions, *words])
    return zlib.crc32(text.encode(), zlib.crc32(sample.image))


def _load(file: Path) -> ShardFacts | None:
    """Facts kept by an earlier pass; None when there are none, or not whole."""
    try:
        facts = ShardFacts(**json.loads(file.read_text(encoding="utf-8")))
        facts.skipped = {int(number): why for number, why in facts.skipped.items()}
        return facts
    except (OSError, ValueError, TypeError, AttributeError):
        return None
