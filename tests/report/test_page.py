"""The report as a browser would read it: whole, self-contained, escaped, relevant ones marked."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from crosspair import UserError
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, find_protocol
from crosspair.evaluation.published import FixedSplit
from crosspair.report.page import write_report


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
        for around in self.open:
            around["aria"] = around.get("aria", "") + element.get("aria-label", "")
        if tag not in {"meta", "input"}:
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


def image(row: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (640, 480), (row * 37 % 256, 90, 160) + (0,) * (mode == "RGBA")).save(file, kind)
    return file.getvalue()


def embeddings(images=40, noise=0.9, labels=None, texts_each=2):
    """Pictures and their texts about common centres, the more alike the smaller the noise."""
    random = np.random.default_rng(0)
    rows = np.arange(images).repeat(texts_each)
    centres = random.normal(size=(images, 16))
    x = centres + random.normal(size=centres.shape) * noise
    z = centres[rows] + random.normal(size=(len(rows), 16)) * noise
    labels = np.arange(images) if labels is None else labels
    return Embeddings.checked(x, z, labels, labels[rows], rows)


@pytest.fixture
def report(tmp_path):
    """Write a report about some embeddings by a protocol; arguments replace those of write_report."""

    def write(data=None, protocol=PLAIN, metric="cosine", **changes):
        data = embeddings() if data is None else data
        given = {
            "title": "a run on val",
            "facts": {"Recipe": "small"},
            "embeddings": data,
            "evaluation": protocol.evaluate(data, metric),
            "captions": [f"caption {row} of picture {row // 2}" for row in range(len(data.texts))],
            "thumbnail": image,
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
        for weights in ("raw", "ema")
    ),
]


SECTIONS = [
    *("Results", "Similarities and lengths", "Map of the pictures", "Where it fails", "Hubs", "Examples"),
    "All queries",
]


def test_the_page_holds_every_section_with_a_link_to_it(report):
    _, page = report(history=[{"kind": "start", "step": 0}, *HISTORY])
    assert page.all("title")[0]["text"] == "a run on val"
    assert [heading["text"] for heading in page.all("h2")] == [*SECTIONS, "Training"]
    assert [link["text"] for link in page.all("a")] == [*SECTIONS, "Training"]
    assert [link["href"][1:] for link in page.all("a")] == [section["id"] for section in page.all("section")]
    table = page.all("table")[0]["text"]
    assert all(name in table for name in ("R@1", "R@5", "R@10", "mAP", "median rank", "mean rank", "Sum of recalls"))
    charts = [figure["text"] for figure in page.all("figure", "chart")]
    for name in ("Recall at every K", "Similarities", "How often pictures are", "How often captions are"):
        assert any(name in chart for chart in charts)
    for name in ("Training loss", "Sum of recalls", "Recall@1"):
        assert any(name in chart for chart in charts)


def test_every_chart_comes_with_its_numbers_and_every_section_with_an_explanation(report):
    _, page = report(history=HISTORY)
    for figure in page.all("figure", "chart"):
        assert "Numbers" in figure["text"]
    assert len(page.all("figure", "chart")) == len(page.all("details")) == len(page.all("table")) - 1
    assert len(page.all("section")) == len(
        [p for p in page.all("p", "quiet") if len(p["text"]) > 80 and "small" not in p["class"]]
    )


def test_nothing_is_fetched_from_elsewhere_and_only_the_own_script_may_run(report):
    text, page = report(history=HISTORY)
    assert set(re.findall(r"url\((.{0,15})", text)) == {"data:image/webp"}
    markup = re.sub(r"base64,[^)]*", "", text)
    assert not re.search(r"https?:|[^:\s]//|@import", markup)  # // begins a comment of the script
    assert not [e for e in page.elements if e["tag"] in {"link", "iframe", "object", "img"} or "src" in e]
    assert all(e["href"].startswith("#") for e in page.elements if "href" in e)
    (policy,) = [e["content"] for e in page.all("meta") if "Security" in e.get("http-equiv", "")]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)  # the list's data is none, and needs no hash
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_every_text_is_escaped(report):
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)> & \'"'
    data = replace(embeddings(), given_image_names=(evil,) * 40)
    text, page = report(data, title=evil, facts={evil: evil}, captions=[evil] * 80)
    assert [each.get("type") for each in page.all("script")] == ["application/json", None]
    assert text.count("<script") == 2
    assert not page.all("img")
    assert page.all("h1")[0]["text"] == evil
    assert any(evil in sentence["text"] for sentence in page.all("p", "sentence"))
    assert any(evil in shown["aria-label"] for shown in page.all("span", "image"))
    assert all(
        point["data-note0"] == point["data-name"] == evil for point in page.all("path", "point") if "data-x" in point
    )


def test_relevant_captions_are_marked_in_words_and_wrong_ones_are_not(report):
    _, page = report()
    checked = 0
    for card in page.all("article", "by-image"):
        query = int(re.search(r"image-(\d+)", card["aria"])[1])
        for caption, mark in re.findall(r"caption \d+ of picture (\d+) (✓ relevant)?", card["text"]):
            assert (int(caption) == query) == bool(mark)
            checked += bool(mark)
    assert checked


def test_a_missed_query_shows_what_it_sought(report):
    _, page = report(embeddings(noise=3.0))
    for kind in ("images", "captions"):
        missed = [lst for lst in page.all("ol", kind) if "sought" in lst["text"]]
        assert missed
        assert all(lst["text"].count("✓ relevant") == 1 for lst in missed)


def test_pictures_shown_large_are_stored_once_and_the_map_s_in_one_sheet(report):
    asked = []

    def thumbnail(row):
        asked.append(row)
        return image(row, "RGBA", "PNG") if row % 2 else image(row)

    text, page = report(thumbnail=thumbnail)
    shown = {re.search(r"\bp\d+", e["class"])[0] for e in page.all("span", "image")}
    assert text.count("data:image/webp;base64,") == len(shown) + 1
    assert len(asked) == len(shown) + 40
    assert len(text) < 90_000 + 4_000 * len(asked)


def test_the_same_input_gives_the_same_page(report):
    assert report(history=HISTORY)[0] == report(history=HISTORY)[0]


def test_failures_are_the_queries_whose_relevant_item_is_last(report):
    data = embeddings(noise=2.0)
    _, page = report(data)
    first = PLAIN.evaluate(data).result.text_to_image.ranks.first
    (section,) = [section for section in page.all("section") if section["id"] == "failures"]
    assert f"first relevant picture at rank {first.max()} of 40" in section["text"]
    assert section["text"].count("first relevant") == 16


def test_the_map_shows_a_sample_of_many_pictures_and_says_so(report, monkeypatch):
    monkeypatch.setattr("crosspair.report.sections.ON_MAP", 10)
    monkeypatch.setattr("crosspair.report.sections.QUERIES", 30)
    _, page = report()
    assert len([e for e in page.all("path", "point") if "data-x" in e]) == 10
    sections = {section["id"]: section["text"] for section in page.all("section")}
    assert "10 of the 40 pictures, drawn at random" in sections["map"]
    assert "30 of the 80 sentences and 30 of the 40 pictures, drawn at random" in sections["hubs"]


def test_a_point_of_the_map_tells_its_rank_and_what_was_found_instead(report):
    data = embeddings(noise=1.5)
    _, page = report(data)
    first = PLAIN.evaluate(data).result.image_to_text.ranks.first
    points = [e for e in page.all("path", "point") if "data-x" in e]
    for rank, point in zip(first, points, strict=True):
        assert f"at rank {rank} of 80" in point["data-note1"]
        assert (point["data-note2"] == "") == (rank == 1)
    assert {0, 1, 2} == {int(re.search(r"g(\d)", point["class"])[1]) for point in points}


def test_recall_is_broken_down_where_lengths_and_counts_vary(report):
    data = embeddings(30)
    kept = np.delete(np.arange(60), [1, 5, 9, 13, 17, 21])
    varied = replace(
        data, texts=data.texts[kept], text_labels=data.text_labels[kept], text_images=data.text_images[kept]
    )
    words = ["word " * (1 + row % 7) for row in range(54)]
    figures = [figure["text"] for figure in report(varied, captions=words)[1].all("figure", "chart")]
    assert any("By length of the sentence" in text for text in figures)
    assert any("By captions of the picture" in text for text in figures)
    figures = [figure["text"] for figure in report(data, captions=["two words"] * 60)[1].all("figure", "chart")]
    assert not any("By " in text for text in figures)


def test_the_protocol_is_named_and_its_numbers_are_those_of_the_table(report):
    folds = FixedSplit("four-folds", "four blocks", "a reference", num_images=40, captions=2, folds=4)
    data = embeddings()
    _, page = report(data, folds)
    table = page.all("table")[0]["text"]
    assert f"{folds.evaluate(data).result.rsum:.1f}" in table
    assert "four-folds: four blocks" in page.all("dl", "facts")[0]["text"]
    cards = [card["text"] for card in page.all("article", "query")]
    assert all("of 40" in text or "of 80" in text for text in cards)  # examples look through everything
    classes = embeddings(labels=np.arange(40) // 4)
    assert "10 label means and 40 pictures" in report(classes, find_protocol("cub"))[1].all("section")[0]["text"]


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_handful_of_items_and_no_history_is_a_page_too(report, images):
    _, page = report(embeddings(images))
    headings = {heading["text"] for heading in page.all("h2")}
    assert "Training" not in headings
    assert ("Map of the pictures" in headings) == (images > 2)


def test_pictures_that_are_all_alike_are_a_page_too(report):
    same = Embeddings.checked(np.ones((6, 4)), np.ones((6, 4)), np.arange(6), np.arange(6))
    _, page = report(same)
    assert "Skewness" in page.all("figure", "chart")[-1]["text"]


def test_a_euclidean_result_shows_distances(report):
    x = np.random.default_rng(0).normal(size=(5, 3)) * 10
    data = Embeddings.checked(x, x, np.arange(5), np.arange(5))
    _, page = report(data, metric="euclidean", captions=list("abcde"))
    assert any("euclidean distance" in figure["text"] for figure in page.all("figure", "chart"))
    examples = [lst["text"] for lst in page.all("ol", "images") if "✓ relevant" in lst["text"]]
    assert examples[0].startswith("image-0 row 01 · 0.00✓ relevant")


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
