"""Streams: every sample once an epoch, over all processes; the same batches after a stop; whatever the network does."""

import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.data.batching import Reading
from crosspair.data.streams import http
from crosspair.data.streams.batches import StreamSource, plan_stream
from crosspair.data.streams.stream import ShardFacts, StreamSplit, open_stream
from crosspair.data.tokens import Vocabulary
from crosspair.data.transforms import ImageInput
from crosspair.errors import UserError

SHARDS, SAMPLES = 4, 5  # samples of a shard, each with 1 to 3 captions


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.001)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as shard:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sample(number: int, image: bytes) -> dict[str, bytes]:
    captions = "\n".join(f"caption {place} of picture {number}" for place in range(1 + number % 3))
    return {f"{number:04d}.png": image, f"{number:04d}.txt": captions.encode()}


@pytest.fixture
def shards(encode) -> dict[str, bytes]:
    """Tar shards by the name they are served under; picture i is of the one colour i."""
    made = {}
    for shard in range(SHARDS):
        files: dict[str, bytes] = {}
        for number in range(shard * SAMPLES, (shard + 1) * SAMPLES):
            files |= sample(number, encode(np.full((6, 8, 3), number, dtype=np.uint8), "PNG"))
        made[f"/train-{shard:03d}.tar"] = tar(files)
    return made


class Server:
    """Serves bytes. cuts: how often it still breaks the connection in the middle; ranges: whether it knows them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cuts = 0
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        if handler.path not in self.files:
            handler.send_error(404)
            return
        content = self.files[handler.path]
        if wanted and self.ranges:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            content = content[first:]
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if self.cuts:
            self.cuts -= 1
            content = content[: len(content) // 4]  # the second half of these tars is padding
        handler.wfile.write(content)


@pytest.fixture
def server(shards) -> Iterator[Server]:
    server = Server(shards)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def open_train(source: str, **options) -> StreamSplit:
    return open_stream(source, progress=False, **options)


def stream(server: Server) -> StreamSplit:
    return open_train(f"{server.address}/train-{{000..{SHARDS - 1:03d}}}.tar")


def plans(split: StreamSplit, **changes):
    how = {"batch_size": 4, "captions_per_image": 1, "covers": "captions", "hflip": True, "seed": (3, 1, 0)}
    return plan_stream(split, **{"shuffle_buffer": 6, **how, **changes})


def batches(split: StreamSplit, planned) -> list[tuple[list[int], list[list[int]], torch.Tensor]]:
    """Labels, tokens and pictures; the tokens of "caption 1 of picture 12" are [1, 12]."""
    source = StreamSource(split, Reading(lambda text: [int(text.split()[1]), int(text.split()[4])], ImageInput(4, 4)))
    found = source.batches(planned, 2)
    return [(batch.image_labels.tolist(), batch.tokens.tolist(), batch.images) for batch in found]


def captions(found) -> Counter[tuple[int, ...]]:
    return Counter(tuple(row) for _, tokens, _ in found for row in tokens)


EVERY_CAPTION = Counter((place, number) for number in range(SHARDS * SAMPLES) for place in range(1 + number % 3))


def test_an_epoch_reads_every_caption_with_its_picture_and_label(server):
    found = batches(split := stream(server), plans(split, batch_size=1))
    assert captions(found) == EVERY_CAPTION
    for labels, tokens, images in found:
        assert images.unique().tolist() == [tokens[0][1]] == labels  # without labels each picture has its own


def test_a_picture_is_not_mirrored_with_a_caption_that_says_left_or_right(tmp_path, encode):
    image = encode(np.repeat(np.array([[0, 255]], dtype=np.uint8)[..., None], 3, axis=2).repeat(4, 0), "PNG")
    files: dict[str, bytes] = {}
    for number in range(40):
        side = "left" if number % 2 else "middle"
        files |= {f"{number:04d}.png": image, f"{number:04d}.txt": f"the {side} one".encode()}
    (tmp_path / "shard.tar").write_bytes(tar(files))
    split = open_train(str(tmp_path / "shard.tar"))

    def flipped(**settings: bool) -> set[tuple[bool, int]]:
        source = StreamSource(split, Reading(lambda text: [int("left" in text)], ImageInput(2, 4), **settings))
        [batch] = source.batches(plans(split, batch_size=40), 1)
        seen = zip((batch.images[:, 0, 0, 0] > 128).tolist(), batch.tokens[:, 0].tolist(), strict=True)
        return set(seen)

    assert flipped() == {(False, 0), (True, 0), (False, 1)}
    assert flipped(hflip_sides=True) == {(False, 0), (True, 0), (False, 1), (True, 1)}


def words_shard(path: Path, image: bytes, tokens: list[list[list[str]] | None]) -> StreamSplit:
    """A stream of samples with the caption "a T-shirt" and, where there are any, its words."""
    files: dict[str, bytes] = {}
    for number, words in enumerate(tokens):
        fields = {"caption": "a T-shirt"} | ({} if words is None else {"tokens": words})
        files |= {f"{number}.png": image, f"{number}.json": json.dumps(fields).encode()}
    path.write_bytes(tar(files))
    return open_train(str(path))


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [("words", ["a", "t", "shirt"]), ("original", ["a", "tshirt"]), ("stored", ["a", "t-shirt"])],
)
def test_captions_are_counted_and_read_by_the_tokenizer(tmp_path, encode, tokenizer, words):
    image = encode(np.zeros((2, 2, 3), dtype=np.uint8), "PNG")
    split = words_shard(tmp_path / "shard.tar", image, [[["a", "t-shirt"]]] * 2)
    assert split.word_counts(tokenizer) == Counter(dict.fromkeys(words, 2))
    vocabulary = Vocabulary(words)

    def tokenize(text: str | list[str]) -> list[int]:
        return vocabulary.encode(text, tokenizer=tokenizer)

    [batch] = StreamSource(split, Reading(tokenize, ImageInput(2, 2), tokenizer=tokenizer)).batches(plans(split), 1)
    assert batch.tokens.tolist() == [list(range(2, 2 + len(words)))] * 2


def test_words_that_are_not_in_every_sample_can_not_be_read(tmp_path, encode):
    image = encode(np.zeros((2, 2, 3), dtype=np.uint8), "PNG")
    split = words_shard(tmp_path / "shard.tar", image, [[["a", "t-shirt"]], None])
    with pytest.raises(UserError, match=r"model.text.tokenizer is stored, and .*shard.tar has samples without tokens;"):
        split.word_counts("stored")
    assert split.word_counts("original") == {"a": 2, "tshirt": 2}


@pytest.mark.parametrize("size", [2, 3])
def test_processes_together_read_every_sample_exactly_once(server, size):
    split = stream(server)
    planned = plans(split, batch_size=size, covers="images", processes=size)
    parts = [planned.shard(rank, size) for rank in range(size)]
    assert [len(part) for part in parts] == [SHARDS * SAMPLES // size] * size
    seen = sorted(label for part in parts for labels, *_ in batches(split, part) for label in labels)
    left_out = SHARDS * SAMPLES % size  # of the last batch, which is not full
    assert len(seen) == len(set(seen)) == SHARDS * SAMPLES - left_out
    read = [{row // SAMPLES for row in part.rows.ravel().tolist()} for part in parts]
    assert sum(len(one) for one in read) <= SHARDS + size - 1  # a shard is shared only where two parts meet


def test_a_resumed_epoch_has_the_batches_of_the_undisturbed_one(server):
    split = stream(server)
    whole = batches(split, plans(split))
    again = stream(server)
    rest = batches(again, plans(again)[4:])
    assert len(rest) == len(whole) - 4 == 5
    for before, after in zip(whole[4:], rest, strict=True):
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])


def test_a_resumed_epoch_reads_only_the_shards_it_needs(server):
    split = stream(server)
    rest = plans(split, shuffle_buffer=0)[-2:]
    server.requests.clear()
    batches(split, rest)
    assert {path for path, _ in server.requests} == {f"/train-{row // SAMPLES:03d}.tar" for row in rest.rows.ravel()}


def test_epochs_and_seeds_differ(server):
    split = stream(server)
    orders = [plans(split, seed=seed).rows.tolist() for seed in [(0, 1, 0), (0, 1, 0), (0, 1, 1), (1, 1, 0)]]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_broke(server, ranges):
    undisturbed = stream(server)
    whole = batches(undisturbed, plans(undisturbed))
    server.cuts, server.ranges = 2, ranges
    server.requests.clear()
    for before, after in zip(whole, batches(undisturbed, plans(undisturbed)), strict=True):
        assert torch.equal(before[2], after[2])
    assert server.cuts == 0
    assert sum(wanted is not None for _, wanted in server.requests) == 2


def test_a_server_that_keeps_breaking_off_is_one_sentence(server):
    server.cuts = 1000
    server.ranges = False
    with pytest.raises(UserError, match=r"train-00\d\.tar can't be read after 6 attempts \(.*\); check the address"):
        stream(server)


def test_a_missing_shard_is_one_sentence(server):
    with pytest.raises(UserError, match=r"^http://.*/train-004\.tar can't be read \(404 Not Found\); check"):
        open_train(f"{server.address}/train-{{000..004}}.tar")


def test_the_first_pass_reads_each_shard_once_and_is_kept(server):
    del server.files["/train-003.tar"]
    with pytest.raises(UserError, match="404"):
        stream(server)
    server.files["/train-003.tar"] = tar(sample(99, b""))  # of no use, but there
    server.requests.clear()
    split = open_train(f"{server.address}/train-{{000..003}}.tar", on_error="skip")
    assert ("/train-003.tar", None) in server.requests
    assert len(server.requests) <= 2  # what was whole before the failure is not read again
    server.requests.clear()
    assert open_train(f"{server.address}/train-{{000..003}}.tar", on_error="skip").checksum == split.checksum
    assert server.requests == []


BAD = {
    "broken": ({"x.png": b"no picture", "x.txt": b"a dog"}, "is not a picture in a known format"),
    "without picture": ({"x.txt": b"a dog"}, "has no picture"),
    "without caption": ({"x.png": b"?"}, "has no caption"),
}


@pytest.mark.parametrize(("files", "why"), BAD.values(), ids=BAD)
def test_a_bad_sample_stops_with_its_name_or_is_left_out_and_counted(server, shards, encode, files, why):
    good = encode(np.full((6, 8, 3), 0, dtype=np.uint8), "PNG")
    files = {name: good if content == b"?" else content for name, content in files.items()}
    server.files["/bad.tar"] = tar({**sample(0, good), **files, **sample(1, good)})
    with pytest.raises(UserError, match=rf"x in .*/bad\.tar {why}; .* --stream.on_error skip"):
        open_train(f"{server.address}/bad.tar")
    split = open_train(f"{server.address}/bad.tar", on_error="skip")
    assert len(split) == 2
    assert len(split.skipped) == 1
    assert why in split.skipped[0]
    assert captions(batches(split, plans(split, batch_size=1))) == Counter([(0, 0), (0, 1), (1, 1)])


def test_a_shard_that_changed_stops_the_run(server, shards, encode):
    split = stream(server)
    files = {}
    for number in range(SAMPLES):
        files |= sample(number, encode(np.full((6, 8, 3), 77, dtype=np.uint8), "PNG"))
    server.files["/train-000.tar"] = tar(files)
    with pytest.raises(UserError, match=r"train-000\.tar is not what it was"):
        batches(split, plans(split))


def test_labels_are_taken_from_the_shards(server, encode):
    good = encode(np.full((6, 8, 3), 0, dtype=np.uint8), "PNG")
    server.files["/l.tar"] = tar(
        {**sample(0, good), "0000.cls": b"7", **sample(1, good), "0001.json": b'{"label": -3}'}
    )
    assert open_train(f"{server.address}/l.tar").labels.tolist() == [7, -3]


def test_paths_folders_and_lists_name_the_same_stream(shards, tmp_path):
    for name, content in shards.items():
        (tmp_path / name[1:]).write_bytes(content)
    (tmp_path / "list.txt").write_text("train-000.tar\ntrain-{001..003}.tar\n")
    pattern = tmp_path / "train-{000..003}.tar"
    checksums = {open_train(str(source)).checksum for source in (pattern, tmp_path, tmp_path / "list.txt")}
    assert len(checksums) == 1


def test_a_data_set_of_the_hub_is_streamed_file_by_file(tmp_path, encode):
    import datasets

    for part in range(2):
        rows = range(part * 3, part * 3 + 3)
        images = [encode(np.full((6, 8, 3), number, dtype=np.uint8), "PNG") for number in rows]
        columns = {"image": images, "caption": [f"caption 0 of picture {number}" for number in rows]}
        data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        data.to_parquet(tmp_path / "set" / f"train-{part}.parquet")
    split = open_train(str(tmp_path / "set"))
    assert [len(one.captions) for one in split.facts] == [3, 3]
    assert captions(batches(split, plans(split, batch_size=2))) == Counter((0, number) for number in range(6))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("nothing here", "is no stream"),
        ("s3://bucket/{0..3}.tar", "only http:// and https:// are"),
        ("missing-{0..1}.tar", "No such file"),
        ("missing.txt", "can't be read"),
    ],
)
def test_what_is_no_stream_is_one_sentence(source, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why):
        open_train(source)


counts = st.lists(st.lists(st.integers(1, 5), max_size=8), min_size=1, max_size=5).filter(any)


@given(counts, st.integers(1, 7), st.integers(0, 3), st.integers(0, 30), st.integers(1, 4))
def test_every_plan_covers_its_items_once_within_its_buffer(shard_counts, batch, group, buffer, processes):
    split = StreamSplit("", [None] * len(shard_counts), [ShardFacts(captions=one) for one in shard_counts], Path())
    planned = plans(split, batch_size=batch, captions_per_image=group, shuffle_buffer=buffer, processes=processes)
    drawn = Counter(
        (row, caption)
        for plan in planned
        for row, chosen in zip(plan.images.tolist(), plan.captions, strict=True)
        for caption in chosen.tolist()
    )
    everything = {(row, caption) for row, count in enumerate(split.caption_counts) for caption in range(count)}
    assert set(drawn) <= everything
    assert max(drawn.values()) == 1
    if batch == 1:
        assert set(drawn) == everything
    place = {
        row: i for i, row in enumerate(np.concatenate([np.flatnonzero(_shard_of(split) == s) for s in planned.shards]))
    }
    for process in range(processes):
        order = [place[row] for row in planned.shard(process, processes).rows.ravel().tolist()]
        last_use = {row: at for at, row in enumerate(order)}
        read = np.maximum.accumulate(order) if order else []
        held = [sum(last_use.get(row, -1) >= at for row in range(int(upto) + 1)) for at, upto in enumerate(read)]
        assert all(count <= max(buffer, 0) + 1 for count in held)


def _shard_of(split: StreamSplit) -> np.ndarray:
    return np.searchsorted(split.shard_ends, np.arange(len(split)), side="right")


def test_draws_are_even():
    split = StreamSplit("", [None], [ShardFacts(captions=[3] * 4000)], Path())
    planned = plans(split, covers="images", batch_size=4000, shuffle_buffer=1)[0]
    assert abs(planned.hflipped.mean() - 0.5) < 0.03
    numbers = np.hstack([planned.crops, planned.changes])
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(numbers.T) - np.eye(11)).max() < 0.06
    chosen = np.bincount(np.concatenate(planned.captions), minlength=3) / 4000
    assert np.abs(chosen - 1 / 3).max() < 0.03
