"""Rankings of mapped files, block by block and shard by shard, against the same ranking in memory."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair import UserError, evaluate_retrieval
from crosspair.evaluation import cost, products, shards
from crosspair.evaluation.counting import Counting, Layout
from crosspair.evaluation.products import ProductCounting
from crosspair.evaluation.ranking import prepare_counting, rank_positives, ranks_of
from crosspair.evaluation.shards import count_shard, merge_parts, parse_shard, read_part

FACTS = {"protocol": "plain"}


def retrieval(num_images=400, texts_each=5, dimension=16, seed=0, labels=None):
    """Rounded embeddings, so that many scores tie, in an order that has nothing to do with the labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_images) if labels is None else labels
    rows = random.permutation(np.repeat(np.arange(num_images), texts_each))
    images = random.integers(-2, 3, (num_images, dimension)).astype(np.float32)
    texts = images[rows] + random.integers(-2, 3, (len(rows), dimension)).astype(np.float32)
    return images, texts, labels, labels[rows]


def same(one, other):
    for ours, theirs in zip(one, other, strict=True):
        assert ours.gallery_size == theirs.gallery_size
        np.testing.assert_array_equal(ours.ranks, theirs.ranks)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        np.testing.assert_array_equal(ours.queries, theirs.queries)
        np.testing.assert_array_equal(ours.optimistic, theirs.optimistic)


@pytest.fixture
def mapped(tmp_path):
    """The same arrays from files."""

    def save(arrays):
        names = ("image_embeddings", "text_embeddings", "image_labels", "text_labels")
        for name, array in zip(names, arrays, strict=True):
            np.save(tmp_path / f"{name}.npy", array)
        return tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in names)

    return save


@pytest.fixture
def small_blocks(monkeypatch):
    """Tiles of 24 x 48 and blocks of a few of them, so that a small ranking has many."""
    monkeypatch.setattr(Layout, "of", lambda *_: Layout((24, 48), (24, 24), (6000, 9000)))


@pytest.fixture(params=["each its own", "many pictures a label", "some labels with hundreds of texts"])
def labels(request):
    return {
        "each its own": np.arange(400),
        "many pictures a label": np.random.default_rng(1).integers(0, 40, 400),
        "some labels with hundreds of texts": np.minimum(np.arange(400), 250) * 10**15,
    }[request.param]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_of_mapped_files_rank_as_everything_in_memory(mapped, small_blocks, monkeypatch, labels, metric):
    arrays = retrieval(labels=labels)
    blockwise = rank_positives(*mapped(arrays), metric)
    monkeypatch.undo()
    same(blockwise, rank_positives(*arrays, metric))


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_of_continuous_embeddings_give_the_same_scores_to_the_last_bit(small_blocks, monkeypatch, threads):
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(300, 100)).astype(np.float32), random.normal(size=(900, 100)).astype(np.float32)
    arrays = images, np.concatenate([texts, texts[::-1]]), np.arange(300), np.arange(1800) % 300
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        blockwise = rank_positives(*arrays)
        monkeypatch.undo()
        same(blockwise, rank_positives(*arrays))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_mapped_files_of_any_float_type_rank_as_the_same_numbers_in_float32(mapped, small_blocks, dtype):
    images, texts, *labels = retrieval(100)
    same(
        rank_positives(*mapped((images.astype(dtype), texts.astype(dtype), *labels))),
        rank_positives(
            images.astype(dtype).astype(np.float32 if dtype == np.float16 else dtype), texts.astype(dtype), *labels
        ),
    )


def test_every_metric_of_mapped_files_is_that_of_memory(mapped, small_blocks, monkeypatch, labels):
    arrays = retrieval(labels=labels)
    extra = ("mINP", "nDCG", "AP@50")
    blockwise = evaluate_retrieval(*mapped(arrays), extra=extra).to_dict()
    monkeypatch.undo()
    assert blockwise == evaluate_retrieval(*arrays, extra=extra).to_dict()


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 7), st.integers(1, 100), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_the_pairs_of_all_shards_cover_every_score_once(num_images, texts_each, shards, block, seed):
    arrays = retrieval(num_images, texts_each, 2, seed, np.random.default_rng(seed).integers(0, 9, num_images))
    job = ProductCounting(*arrays, "cosine")
    job.layout = Layout((24, 48), (24, 24), (block * 100, block * 100))
    seen = np.zeros((len(arrays[0]), len(arrays[1])), dtype=int)
    for number in range(1, shards + 1):
        for images, texts in job.pairs((number, shards)):
            seen[images, texts] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("of", [1, 3, 20])
def test_merged_shards_are_the_ranking_in_one(mapped, small_blocks, monkeypatch, tmp_path, labels, of):
    arrays = mapped(retrieval(labels=labels))
    paths = [tmp_path / f"part-{number}.npz" for number in range(1, of + 1)]
    for number, path in enumerate(paths, 1):
        count_shard(prepare_counting(*arrays), (number, of), path, FACTS)
    merged = prepare_counting(*arrays)
    merge_parts(merged, paths[::-1], FACTS)
    monkeypatch.undo()
    same(ranks_of(merged).values(), rank_positives(*arrays))


def test_a_shard_that_was_stopped_goes_on_where_it_was(mapped, small_blocks, monkeypatch, tmp_path):
    arrays = mapped(retrieval())
    path = tmp_path / "part.npz"
    monkeypatch.setattr(shards, "_SAVE_SECONDS", 0)
    counted = []
    count = Counting.count

    def stop_after_seven(self, pair, **options):
        if len(counted) == 7:
            raise KeyboardInterrupt
        counted.append(pair)
        count(self, pair, **options)

    monkeypatch.setattr(Counting, "count", stop_after_seven)
    with pytest.raises(KeyboardInterrupt):
        count_shard(prepare_counting(*arrays), (1, 1), path, FACTS)
    part = read_part(path)
    assert (part.done, part.complete) == (7, False)
    with pytest.raises(
        UserError, match=rf"part.npz is not finished \(7 of {part.blocks} blocks\); run its shard again"
    ):
        merge_parts(prepare_counting(*arrays), [path], FACTS)
    counted.clear()
    monkeypatch.setattr(Counting, "count", lambda self, pair, **options: counted.append(pair) or count(self, pair))
    assert count_shard(prepare_counting(*arrays), (1, 1), path, FACTS).complete
    assert len(counted) == part.blocks - 7
    merged = prepare_counting(*arrays)
    merge_parts(merged, [path], FACTS)
    same(ranks_of(merged).values(), rank_positives(*arrays))
    counted.clear()
    count_shard(prepare_counting(*arrays), (1, 1), path, FACTS)
    assert not counted


@pytest.fixture
def parts(small_blocks, tmp_path):
    """Two shards of a small ranking, and what to merge them into."""
    arrays = retrieval(60)
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for number, path in enumerate(paths, 1):
        count_shard(prepare_counting(*arrays), (number, 2), path, FACTS)
    return arrays, paths


def test_parts_that_are_not_those_of_one_ranking_are_not_merged(parts, tmp_path):
    arrays, (first, second) = parts
    other = tmp_path / "other.npz"
    count_shard(prepare_counting(arrays[0], arrays[1] + 1, *arrays[2:]), (2, 2), other, FACTS)
    third = tmp_path / "third.npz"
    count_shard(prepare_counting(*arrays), (1, 3), third, FACTS)
    for paths, sentence in (
        ([first], "found the parts 1/2; expected each of 1/2 to 2/2 once"),
        ([first, first], "found the parts 1/2, 1/2; expected each of 1/2 to 2/2 once"),
        ([first, third], "found the parts 1/2, 1/3; expected each"),
        ([first, other], "other.npz differs from .*a.npz in scores_checksum; expected parts of the same embeddings"),
    ):
        with pytest.raises(UserError, match=sentence):
            merge_parts(prepare_counting(*arrays), paths, FACTS)
    with pytest.raises(UserError, match=r"a\.npz was counted with other embeddings or options \(its protocol\); merge"):
        merge_parts(prepare_counting(*arrays), [first, second], {"protocol": "cub"})


def test_a_part_of_something_else_is_neither_gone_on_from_nor_replaced(parts):
    arrays, (first, _) = parts
    before = first.read_bytes()
    with pytest.raises(UserError, match=r"a\.npz is shard 1/2 of something else; name another --part"):
        count_shard(prepare_counting(*arrays), (2, 2), first, FACTS)
    with pytest.raises(UserError, match=r"a\.npz differs from this shard in scores_checksum"):
        count_shard(prepare_counting(arrays[0] + 1, *arrays[1:]), (1, 2), first, FACTS)
    assert first.read_bytes() == before


def test_what_is_no_part_is_refused(tmp_path):
    path = tmp_path / "part.npz"
    for content in (b"", b"text", json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"part.npz is no part that crosspair evaluate --shard wrote"):
            read_part(path)
    np.savez(path, header=np.arange(3), image_to_text=np.arange(3))
    with pytest.raises(UserError, match="is no part"):
        read_part(path)


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "1/0", "-1/8", "a/b", "1/8/2", "1.5/2"])
def test_a_shard_is_a_number_and_how_many_there_are(text):
    assert parse_shard("3/8") == (3, 8)
    with pytest.raises(UserError, match="expected a number and how many there are, as 1/8 to 8/8"):
        parse_shard(text)


def test_memory_does_not_grow_with_the_gallery(mapped, monkeypatch):
    """At no time is there more of the vectors than a block of each side, and of the scores than a tile."""
    monkeypatch.setattr(Layout, "of", lambda *_: Layout((24, 48), (24, 24), (24 * 18 * 4 * 2, 48 * 18 * 4 * 3)))
    sizes = []
    build = products.vectors_of

    def counted(embeddings, order, *rest, **options):
        sizes.append(len(order))
        return build(embeddings, order, *rest, **options)

    monkeypatch.setattr(products, "vectors_of", counted)
    rank_positives(*mapped(retrieval(1000)))
    assert max(sizes) == 144
    job = prepare_counting(*retrieval(1000))
    for pair in job.pairs()[:3]:
        job.count(pair)
    assert sum(len(vectors) for _, vectors in job._held.values()) <= 48 + 144


def test_a_long_job_says_what_it_costs_before_it_starts_and_shows_a_bar(small_blocks, monkeypatch, capsys):
    monkeypatch.setattr(cost, "LARGE", 1000)
    events = []
    read = Counting.read_positives
    monkeypatch.setattr(
        Counting, "read_positives", lambda self: (events.append(capsys.readouterr().err), read(self))[1]
    )
    rank_positives(*retrieval(100), progress=True)
    assert "100 pictures x 500 texts of 16 dimensions: about" in events[0]
    assert "GB of memory beyond the embeddings" in events[0]
    assert "GB available" in events[0]
    assert "ranking" in capsys.readouterr().err


def test_a_short_job_says_nothing(capsys):
    rank_positives(*retrieval(20), progress=True)
    assert capsys.readouterr().err == ""


def test_a_ranking_that_does_not_fit_the_memory_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(cost, "LARGE", 1000)
    monkeypatch.setattr(cost, "available_memory", lambda: 10**6)
    monkeypatch.setattr(Counting, "read_positives", lambda self: pytest.fail("started"))
    with pytest.raises(UserError, match=r"ranking needs 0\.1 GB of memory, 0\.0 GB are available; free some"):
        rank_positives(*retrieval(100), progress=True)


def test_the_prediction_grows_with_the_scores_and_leaves_no_counts(small_blocks):
    job = prepare_counting(*retrieval(200))
    pairs = job.pairs()
    whole, half = cost.estimate_cost(job, pairs), cost.estimate_cost(job, pairs[: len(pairs) // 2])
    assert whole.scores == 200 * 1000
    assert half.scores < whole.scores
    assert whole.memory == half.memory > 0
    assert not job.images.ranks.any()
    assert not job.texts.ranks.any()


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 hours"), (200_000, "2.3 days")]
)
def test_durations_are_for_people(seconds, text):
    assert cost.duration(seconds) == text


def test_the_available_memory_is_that_of_the_machine_or_of_its_container(tmp_path, monkeypatch):
    free = cost.available_memory()
    assert 0 < free < 10**15
    for name, text in {
        "max": "5000",
        "current": "3000",
        "stat": "anon 1000\nactive_file 700\ninactive_file 300\n",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(cost, "_CGROUP", tmp_path)
    assert cost.available_memory() == 3000
    (tmp_path / "memory.max").write_text("max")
    assert cost.available_memory() > 10**6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: np.full((60, 16), np.nan, np.float32)}, "row 0 of image_embeddings holds NaN"),
        ({1: np.full((300, 16), np.inf, np.float16)}, "row 0 of text_embeddings holds NaN or infinity"),
        ({1: np.ones((300, 15), np.float32)}, "image_embeddings have dimension 16 and text_embeddings 15"),
        ({2: np.arange(61)}, "image_labels have shape"),
        ({2: np.arange(60) + 1}, "row 59 of image_embeddings with label 60 matches no row"),
        ({3: np.full(300, 2**64 - 1, np.uint64)}, r"2\*\*63 - 1"),
        ({3: np.zeros(300)}, "text_labels are float64; expected integers"),
    ],
)
def test_mapped_files_that_can_not_be_evaluated_are_one_sentence(mapped, change, sentence):
    arrays = list(retrieval(60))
    for place, array in change.items():
        arrays[place] = array
    with pytest.raises(UserError, match=sentence):
        rank_positives(*mapped(arrays))


def test_one_picture_alone_is_ranked_in_shards_too(tmp_path):
    arrays = np.ones((1, 3)), np.ones((1, 3)), np.array([7]), np.array([7])
    paths = [tmp_path / f"{number}.npz" for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        count_shard(prepare_counting(*arrays), (number, 2), path, FACTS)
    merged = prepare_counting(*arrays)
    merge_parts(merged, paths, FACTS)
    assert ranks_of(merged)["image_to_text"].ranks.tolist() == [1]


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_refused(device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=f"device is '{device}'"):
        rank_positives(*retrieval(5), device=device)


def test_the_large_tiles_of_a_gpu_count_what_small_ones_count(monkeypatch, labels):
    arrays = retrieval(labels=labels)
    expected = rank_positives(*arrays)
    layout = Layout.of(torch.device("cuda"), 400, 2000)
    assert layout.tile == layout.grain == (512, 2048)
    for tile in (layout.tile, (256, 256)):
        monkeypatch.setattr(Layout, "of", lambda *_, tile=tile: Layout(tile, tile, layout.block))
        same(rank_positives(*arrays), expected)
