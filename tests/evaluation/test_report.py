"""The report as a browser would read it: whole, self-contained, escaped, right ones marked."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cmpl import UserError, evaluate_retrieval
from cmpl.evaluation.charts import Series, histogram, line_chart
from cmpl.evaluation.examples import choose_queries, sample_similarities
from cmpl.evaluation.report import write_report


class Page(HTMLParser):
    """Elements as (tag, attributes, text), and a failure for tags that don't nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[dict] = []
        self.elements: list[dict] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open[-1]}"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag != "meta":
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert [element["tag"] for element in self.open][-1:] == [tag], f"stray </{tag}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, cls=""):
        return [e for e in self.elements if e["tag"] == tag and (not cls or cls in e.get("class", "").split())]


def picture(row: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (640, 480), (row * 37 % 256, 90, 160) + (0,) * (mode == "RGBA")).save(file, kind)
    return file.getvalue()


@pytest.fixture
def report(tmp_path):
    """Write a report about `images` pictures with two captions each; arguments replace those of write_report."""

    def write(images=40, noise=0.9, **changes):
        random = np.random.default_rng(0)
        centres = random.normal(size=(images, 16))
        x = centres + random.normal(size=centres.shape) * noise
        z = np.repeat(centres, 2, 0) + random.normal(size=(2 * images, 16)) * noise
        labels = np.arange(images)
        given = {
            "title": "a run on val",
            "facts": {"Recipe": "small"},
            "result": evaluate_retrieval(x, z, labels, labels.repeat(2)),
            "image_embeddings": x,
            "text_embeddings": z,
            "image_labels": labels,
            "text_labels": labels.repeat(2),
            "captions": [f"caption {row} of picture {row // 2}" for row in range(2 * images)],
            "thumbnail": picture,
            "history": [],
        }
        path = tmp_path / "report.html"
        write_report(path, **(given | changes))
        text = path.read_text(encoding="utf-8")
        return text, Page(text)

    return write


HISTORY = [
    *({"kind": "train", "step": s, "loss": 9 / s, "cmpm": 5 / s, "cmpc": float("nan")} for s in range(1, 2000, 3)),
    *(
        {
            "kind": "val",
            "step": 500 * epoch,
            "weights": weights,
            "rsum": 100.0 * epoch,
            "image_to_text": {"R@1": 10.0},
            "text_to_image": {"R@1": 9.0},
        }
        for epoch in range(1, 4)
        for weights in ("raw", "averaged")
    ),
]


def test_the_page_holds_table_curves_histogram_and_both_kinds_of_queries(report):
    _, page = report(history=[{"kind": "start", "step": 0}, *HISTORY])
    assert page.all("title")[0]["text"] == "a run on val"
    table = page.all("table")[0]["text"]
    assert all(name in table for name in ("R@1", "R@5", "R@10", "mAP", "median rank", "mean rank"))
    charts = [figure["text"] for figure in page.all("figure", "chart")]
    for name in ("Similarities", "Training loss", "Sum of recalls", "Recall@1"):
        assert any(name in chart for chart in charts)
    assert len(page.all("ol", "pictures")) == len(page.all("ol", "captions")) == 12


def test_nothing_is_fetched_from_elsewhere(report):
    text, page = report(history=HISTORY)
    assert set(re.findall(r"url\((.{0,15})", text)) == {"data:image/jpeg"}
    markup = re.sub(r"base64,[^)]*", "", text)
    assert not re.search(r"https?:|//|@import", markup)
    assert not [e for e in page.elements if e["tag"] in {"script", "link", "iframe", "object"}]
    assert not [e for e in page.elements if "src" in e or "href" in e]


def test_every_text_is_escaped(report):
    evil = '<script>alert("x")</script><img src=x> & \'"'
    text, page = report(title=evil, facts={evil: evil}, captions=[evil] * 80)
    assert not page.all("script")
    assert not page.all("img")
    assert "<script" not in text
    assert page.all("h1")[0]["text"] == evil
    assert any(evil in sentence["text"] for sentence in page.all("p", "sentence"))
    assert any(evil in shown["aria-label"] for shown in page.all("span", "picture"))


def test_right_captions_are_marked_in_words_and_wrong_ones_are_not(report):
    _, page = report()
    labels = [int(re.search(r"Picture (\d+)", shown["aria-label"])[1]) for shown in page.all("span", "picture")]
    assert labels
    lists = page.all("ol", "captions")
    queries = labels[-len(lists) :]
    checked = 0
    for query, shown in zip(queries, lists, strict=True):
        for caption, mark in re.findall(r"caption \d+ of picture (\d+) (✓ right)?", shown["text"]):
            assert (int(caption) == query) == bool(mark)
            checked += bool(mark)
    assert checked


def test_a_missed_text_query_shows_the_picture_it_sought(report):
    _, page = report(noise=3.0)
    missed = [lst for lst in page.all("ol", "pictures") if "sought" in lst["text"]]
    assert missed
    assert all(lst["text"].count("✓ right") == 1 for lst in missed)


def test_every_picture_is_stored_once_and_small(report):
    asked = []

    def thumbnail(row):
        asked.append(row)
        return picture(row, "RGBA", "PNG") if row % 2 else picture(row)

    text, _ = report(thumbnail=thumbnail)
    assert len(asked) == len(set(asked)) == text.count("data:image/jpeg;base64,")
    assert len(text) < 40_000 + 4_000 * len(asked)


def test_the_same_input_gives_the_same_page(report):
    assert report(history=HISTORY)[0] == report(history=HISTORY)[0]


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_handful_of_items_and_no_history_is_a_page_too(report, images):
    _, page = report(images=images)
    assert len(page.all("ol", "pictures")) == 2 * images
    assert "Training" not in {heading["text"] for heading in page.all("h2")}


def test_a_euclidean_result_shows_distances(report):
    x = np.random.default_rng(0).normal(size=(5, 3)) * 10
    labels = np.arange(5)
    _, page = report(
        5,
        result=evaluate_retrieval(x, x, labels, labels, metric="euclidean"),
        image_embeddings=x,
        text_embeddings=x,
        text_labels=labels,
        captions=list("abcde"),
    )
    assert "euclidean distance" in page.all("figure", "chart")[0]["text"]
    assert page.all("ol", "pictures")[0]["text"].startswith("1 · 0.00✓ right")


def test_a_failure_leaves_the_earlier_report(report, tmp_path):
    before, _ = report()

    def broken(row):
        raise UserError("no picture")

    with pytest.raises(UserError, match="no picture"):
        report(thumbnail=broken)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_captions_must_be_as_many_as_texts(report):
    with pytest.raises(UserError, match="found 1 captions; expected one for each of 80 texts"):
        report(captions=["one"])


def test_examples_come_from_all_groups_as_far_as_they_go():
    first = np.array([1] * 20 + [4] * 2 + [50] * 20)
    chosen = choose_queries(first, 12, seed=3)
    assert [name for name, _ in chosen].count("Found among the first ten") == 2
    assert len({row for _, row in chosen}) == 12
    assert chosen == choose_queries(first, 12, seed=3)
    assert len(choose_queries(first[:5], 12)) == 5


def test_sampled_similarities_are_those_of_matching_and_of_other_pairs():
    labels = np.array([3, 1, 3, 2])
    text_labels = np.array([1, 2, 3, 3, 1])
    matching, other = sample_similarities(np.eye(4)[labels], np.eye(4)[text_labels], labels, text_labels, "cosine")
    assert len(matching) == 2 + 2 + 2 + 1
    assert (set(matching), set(other)) == ({1}, {0})


def test_a_chart_leaves_out_what_is_not_finite_and_thins_what_can_not_be_seen():
    chart = line_chart("t", [Series("a", range(5000), [float("inf"), *range(4999)])], "x", "y")
    assert not re.search("inf|nan", chart)
    assert chart.count(",") < 400
    assert line_chart("t", [Series("a", [1], [float("nan")])], "x", "y") == ""


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-9, 2e-9], [-3e6, 8e6]])
def test_charts_of_any_range_have_axes(values):
    assert "<text" in line_chart("t", [Series("a", range(len(values)), values)], "x", "y")
    assert "<text" in histogram("t", {"a": np.array(values)}, "x")
