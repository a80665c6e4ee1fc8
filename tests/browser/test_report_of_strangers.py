"""A report on hostile names and captions, with a second model: searched, printed, on a phone, by keyboard."""

import io
import itertools
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from crosspair.evaluation.comparison import compare
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN
from crosspair.evaluation.results import StoredResult
from crosspair.report.page import write_report
from crosspair.report.rivals import Rival

IMAGES = 36
TEXTS = 3  # of an image
OVERRIDE = "\u202e"  # nobody closes it
NAMES = [
    "3050606344_af711c726c_a_very_long_name_from_a_camera_of_1998.jpg",
    f"holiday{OVERRIDE}gpj.exe",
    "صورة جميلة جدا.jpg",
    "犬が走っている写真の長い名前です.png",
    "👩‍👩‍👧‍👦👍🏽.jpg",
    "<script>window.hacked = true</script>.jpg",
    "a\nb\0c.jpg",
    "plain.jpg",
]
CAPTIONS = [
    "a dog runs on the beach",
    f"{OVERRIDE}nobody closes this",
    "كلب يجري على الشاطئ ومعه كرة",
    "犬がビーチを走っています",
    "👩‍👩‍👧‍👦 at the sea 👍🏽",
    "<img src=x onerror='window.hacked = true'> & \"more\"",
    "two\nlines\0and a NUL",
    "",
    "unbreakable" * 30,
    "\u2067an isolate \u2069\u2069\u2069 and stray ends",
    "\u2069\u202eJamie",  # ends the isolate that it is put in
]
WINDOWS = list(itertools.product((1280, 360), (False, True)))


def image(row: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), (row * 53 % 200 + 20, row * 29 % 200 + 20, 90)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    rows = np.repeat(np.arange(IMAGES), TEXTS)
    labels = np.arange(IMAGES) + 2**60
    centres = np.random.default_rng(0).normal(size=(IMAGES, 8))
    names = tuple(f"{NAMES[row % len(NAMES)]}" for row in range(IMAGES))
    found = []
    for seed, noise in enumerate((1.0, 1.4)):
        random = np.random.default_rng(seed)
        images = centres + noise * random.normal(size=centres.shape)
        texts = centres[rows] + noise * random.normal(size=(len(rows), 8))
        found.append(Embeddings.checked(images, texts, labels, labels[rows], rows, names))
    ours, theirs = (PLAIN.evaluate(each) for each in found)
    facts = {"protocol": "plain", "metric": "cosine", "labels_checksum": "same"}
    both = [StoredResult(tmp_path_factory.mktemp(name), facts, each) for name, each in (("a", ours), ("b", theirs))]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path,
        title=f"run {OVERRIDE}desrever on val",
        facts={f"Fact{OVERRIDE}": f"value{OVERRIDE}", "Second": "value"},
        origin={"Report made by": f"crosspair report {OVERRIDE}nur\n2026"},
        embeddings=found[0],
        evaluation=ours,
        captions=[CAPTIONS[row % len(CAPTIONS)] for row in range(len(rows))],
        thumbnail=image,
        history=[{"kind": "train", "step": step, "loss": 9 / step} for step in range(1, 90)],
        name=f"ours{OVERRIDE}",
        rival=Rival("a very long name of a rival's run/seed-11", theirs, found[1], compare(both)),
    )
    return path.as_uri()


def count(page) -> str:
    return page.locator("#count").inner_text()


def filtered(page, **fields) -> str:
    """Set fields of the form; what the list then says of itself."""
    for name, value in fields.items():
        control = page.locator(f"#filters [name={name}]")
        if control.evaluate("(each) => each.tagName") == "SELECT":
            control.select_option(value)
        else:
            control.fill(value)
    page.wait_for_timeout(300)  # the list waits until nobody types
    return count(page)


def ranks(page) -> list[int]:
    """Of the first model, of the queries that are shown."""
    return page.evaluate(
        """[...document.querySelectorAll("#list > li")].map((each) =>
             Number(each.querySelector(".verdict").textContent.match(/rank ([\\d,]+)/)[1].replace(",", "")))"""
    )


@pytest.mark.parametrize(("width", "dark"), WINDOWS)
def test_nothing_sticks_out_and_every_text_can_be_read(
    browser_page, low_contrast, beyond_the_window, address, width, dark
):
    page = browser_page(address, width=width, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert beyond_the_window(page) == []
    assert [each for each in low_contrast(page) if "NaN" not in each] == []


def test_the_list_is_filtered_by_words_rank_label_and_direction(browser_page, address):
    page = browser_page(address)
    everything = IMAGES * (TEXTS + 1)
    assert count(page) == f"{everything} of {everything} queries, 20 shown"
    assert filtered(page, words="DOG beach", direction="text_to_image").startswith("10 of")
    assert page.locator("#list > li").count() == 10
    assert all("a dog runs" in text for text in page.locator("#list > li > .sentence").all_inner_texts())
    assert filtered(page, words="3050606344", direction="").startswith(f"{5 * (TEXTS + 1)} of")
    assert filtered(page, words="", low="3", high="7", order="worst") != count
    shown = ranks(page)
    assert shown == sorted(shown, reverse=True)
    assert set(shown) <= set(range(3, 8))
    assert filtered(page, low="", high="", label=str(2**60 + 5)).startswith(f"{TEXTS + 1} of")
    assert filtered(page, words="no such word") == f"None of {everything} queries; clear the filters to see them all"
    page.get_by_role("button", name="Clear").click()
    page.wait_for_timeout(300)
    assert count(page) == f"{everything} of {everything} queries, 20 shown"


def test_the_list_tells_the_models_apart(browser_page, address):
    page = browser_page(address)
    counts = [
        int(filtered(page, found=each).split(" ")[0].replace("None", "0"))
        for each in ("both", "first", "second", "none")
    ]
    assert sum(counts) == IMAGES * (TEXTS + 1)
    assert min(counts[:2]) > 0
    filtered(page, found="", order="lead")
    verdicts = page.locator("#list > li").first.locator(".verdict").all_inner_texts()
    assert len(verdicts) == 2
    assert "rank 1 of" in verdicts[0]
    assert "rank 1 of" not in verdicts[1]


def test_the_list_is_used_with_the_keyboard_alone_and_says_what_it_shows(browser_page, address):
    page = browser_page(address)
    page.get_by_label("Words").focus()
    page.keyboard.type("jpg")
    page.keyboard.press("Enter")
    assert page.get_by_role("status").inner_text().startswith("104 of 144 queries, 20 shown")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "direction"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.get_by_role("button", name="Show").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("[...document.querySelectorAll('#list > li')].indexOf(document.activeElement)") == 20
    assert page.get_by_role("search", name="Filter the queries").count() == 1


def test_controls_have_labels_and_headings_go_down_one_by_one(browser_page, address):
    page = browser_page(address)
    unnamed = page.evaluate(
        """[...document.querySelectorAll("input, select, button, [role=img], [role=application], summary, a")]
             .filter((each) => !each.labels?.length && !each.ariaLabel?.trim() && !each.textContent.trim())
             .map((each) => each.outerHTML.slice(0, 90))"""
    )
    assert unnamed == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((each) => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


# Where the last letters of a text stand: left of the first ones if something has turned them round.
TURNED = """
() => {
  const found = [];
  const range = document.createRange();
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!/^[ -~]{2,}$/.test(node.data.trim()) || !node.parentElement.checkVisibility()) continue;
    if (node.parentElement.closest("script, .sentence, bdi, .cut")) continue;
    const start = node.data.search(/\\S/);
    const place = (at) => {
      range.setStart(node, at);
      range.setEnd(node, at + 1);
      return range.getBoundingClientRect();
    };
    const [first, second] = [place(start), place(start + 1)];
    if (Math.abs(first.top - second.top) < 3 && second.left < first.left) found.push(node.data.slice(0, 60));
  }
  return found;
}
"""


def test_an_override_that_nobody_closes_moves_nothing_that_follows(browser_page, address):
    page = browser_page(address)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.querySelector('main').textContent.includes('\\u202e')")
    assert page.evaluate(TURNED) == []
    broken = page.evaluate(
        """() => {
          const verdict = document.querySelector(".verdict");
          verdict.innerHTML = "\\u202eours: first relevant picture";
          verdict.append(" and more");
        }"""
    )
    assert broken is None
    assert page.evaluate(TURNED)  # the measure sees what the report prevents


def test_attributes_and_the_title_close_what_they_open(browser_page, address):
    page = browser_page(address)
    texts = page.evaluate(
        """[
          document.title,
          ...[...document.querySelectorAll("*")].flatMap((each) => [each.title, each.ariaLabel].filter(Boolean)),
          ...[...document.querySelectorAll("svg title, svg text, option")].map((each) => each.textContent),
        ]"""
    )
    holding = [text for text in texts if OVERRIDE in text]
    assert any(text.startswith("\u2068") for text in holding)
    assert page.title().startswith("\u2068")
    for text in holding:
        after = text[text.index(OVERRIDE) :]
        assert "\u202c" in after
        assert text.count("\u2069") == sum(text.count(each) for each in "\u2066\u2067\u2068")


def test_a_long_name_is_shortened_to_be_read_by_pointing_and_copied_as_a_whole(browser_page, address):
    page = browser_page(address)
    name = page.locator(f"#examples .of bdi[title='{NAMES[0]}']").first
    assert name.evaluate("(each) => each.querySelector('.cut').getBoundingClientRect().width") < 20
    copied = name.evaluate("(each) => { getSelection().selectAllChildren(each); return getSelection().toString(); }")
    assert copied == NAMES[0]
    in_list = page.locator(f"#list .of bdi[title='{NAMES[0]}']").first
    assert in_list.evaluate("(each) => each.textContent") == NAMES[0]


def test_strangers_texts_are_only_text(browser_page, address):
    page = browser_page(address)
    filtered(page, words="window.hacked")
    assert page.locator("#list > li").count() > 5
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.get_by_text("(empty caption)").count() > 0
    assert page.get_by_text("two lines␀and a NUL").count() > 0


def test_arabic_runs_from_right_to_left(browser_page, address):
    page = browser_page(address)
    line = page.locator(".query > .sentence", has_text="كلب").first
    assert line.evaluate("(each) => getComputedStyle(each).direction") == "rtl"


@pytest.mark.parametrize("dark", [False, True])
def test_it_prints_in_light_colours_and_whole_with_nothing_to_click(browser_page, beyond_the_window, address, dark):
    page = browser_page(address, dark=dark, width=688)  # of a sheet without its margins
    page.emulate_media(media="print", color_scheme="dark" if dark else "light")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert min(background) > 240
    for hidden in ("nav", "#filters", "#more", "#shown"):
        assert not page.locator(hidden).is_visible()
    kept = page.evaluate(
        """[...document.querySelectorAll(".card, .chart, .query, tr")]
             .filter((each) => getComputedStyle(each).breakInside !== "avoid").length"""
    )
    assert kept == 0
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert beyond_the_window(page) == []
    cut = page.evaluate(
        """[...document.querySelectorAll(".card, .chart, .query")]
             .filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.outerHTML.slice(0, 90))"""
    )
    assert cut == []


def test_tables_are_open_on_paper_without_scripts_too(browser_page, address):
    page = browser_page(address, java_script_enabled=False)
    numbers = page.locator("details td").first
    assert not numbers.is_visible()
    page.emulate_media(media="print")
    assert page.locator("details").first.bounding_box()["height"] > 150


def test_no_card_is_cut_by_the_end_of_a_page(browser_page, address, tmp_path):
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not here; on Debian: apt-get install poppler-utils")
    page = browser_page(address)
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True, format="A4")
    assert page.locator("details[open]").count() == 0  # closed again
    text = subprocess.run(
        ["pdftotext", "-layout", str(tmp_path / "report.pdf"), "-"], capture_output=True, text=True, check=True
    ).stdout
    pages = text.split("\f")
    assert len(pages) > 5
    assert sum("items looked at" in each for each in pages) >= 1
    assert "95 % are below" in text  # the table of a chart that was closed
    verdicts = [each.count(" at rank ") for each in pages]
    assert sum(verdicts) > 100
    assert [count for count in verdicts if count % 2] == []  # both rankings of a card are on one page
