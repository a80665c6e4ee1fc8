"""The report in a real browser: wide and narrow, light and dark, by pointer, finger and keyboard, offline."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN
from crosspair.report.page import write_report

IMAGES = 60
EVIL = '<script>window.hacked = true</script><img src=x onerror="window.hacked = true"> & "more"'
WINDOWS = list(itertools.product((1280, 375), (False, True)))


def colour(row: int) -> tuple[int, int, int]:
    """Picture `row` is all of this colour."""
    return (row * 53 % 200 + 20, row * 29 % 200 + 20, row * 17 % 200 + 20)


def image(row: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), colour(row)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A report on 60 pictures with 2 to 5 captions, some of which are malicious, and one long word."""
    random = np.random.default_rng(0)
    rows = np.repeat(np.arange(IMAGES), random.integers(2, 6, IMAGES))
    centres = random.normal(size=(IMAGES, 8))
    images = centres + random.normal(size=centres.shape)
    texts = centres[rows] + random.normal(size=(len(rows), 8))
    labels = np.arange(IMAGES)
    data = Embeddings.checked(images, texts, labels, labels[rows], rows)
    captions = [f"sentence {row} about " + "something " * (row % 5 + 1) for row in range(len(rows))]
    captions[::4] = [EVIL] * len(captions[::4])
    captions[1::40] = ["unbreakable" * 30] * len(captions[1::40])
    history = [{"kind": "train", "step": step, "loss": 9 / step, "cmpm": 5 / step} for step in range(1, 900, 5)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path,
        title="a run on val",
        facts={"Recipe": "made up"},
        embeddings=data,
        evaluation=PLAIN.evaluate(data),
        captions=captions,
        thumbnail=image,
        history=history,
    )
    return path.as_uri()


@pytest.mark.parametrize(("width", "dark"), WINDOWS)
def test_nothing_sticks_out_and_every_text_can_be_read(
    browser_page, low_contrast, beyond_the_window, address, width, dark
):
    page = browser_page(address, width=width, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert beyond_the_window(page) == []
    assert low_contrast(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(background) < 60) == dark
    assert (min(background) > 200) == (not dark)


def test_the_text_of_charts_stays_readable_on_a_phone(browser_page, address):
    page = browser_page(address, width=375)
    sizes = page.evaluate(
        """[...document.querySelectorAll(".chart > svg text")].map((each) => {
          const { width } = each.ownerSVGElement.getBoundingClientRect();
          return parseFloat(getComputedStyle(each).fontSize) * width / each.ownerSVGElement.viewBox.baseVal.width;
        })"""
    )
    assert len(sizes) > 50
    assert min(sizes) >= 11


def test_every_picture_decodes_and_is_shown(browser_page, address):
    page = browser_page(address)
    widths = page.evaluate(
        """async () => {
          const shown = [...document.querySelectorAll(".image, .sheet")];
          const sources = new Set(shown.map((each) => getComputedStyle(each).backgroundImage.slice(5, -2)));
          const decoded = [...sources].map(async (source) => {
            const image = Object.assign(new Image(), { src: source });
            await image.decode();
            return image.naturalWidth;
          });
          return Promise.all(decoded);
        }"""
    )
    assert len(widths) > 20
    assert min(widths) > 100
    boxes = page.evaluate(
        "[...document.querySelectorAll('.image, .sheet')].map((each) => each.getBoundingClientRect().width)"
    )
    assert min(boxes) > 30


def seen_colour(page) -> np.ndarray:
    """The mean colour of the picture beside the map, as it is on the screen."""
    shot = page.locator("#shown .sheet").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=float)
    return pixels[20:-20, 20:-20].mean((0, 1))


def points_of(page) -> list[dict]:
    """Points of the map: name, place on the screen, and on the drawing."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".map .point")].map((each) => {
          const box = each.getBoundingClientRect();
          const clear = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === each;
          return { ...each.dataset, left: box.x + box.width / 2, top: box.y + box.height / 2, clear };
        })"""
    )


def shown_name(page) -> str:
    return page.locator("#shown .sheet").get_attribute("aria-label")


def test_the_map_shows_the_picture_under_the_pointer(browser_page, address):
    page = browser_page(address)
    page.locator(".map").scroll_into_view_if_needed()
    clear = [point for point in points_of(page) if point["clear"]]
    assert len(clear) > 10
    for point in clear[:10]:
        page.mouse.move(point["left"], point["top"])
        row = int(point["name"].removeprefix("image-"))
        assert shown_name(page) == point["name"]
        assert point["note0"].strip() in page.locator("#shown").inner_text()
        np.testing.assert_allclose(seen_colour(page), colour(row), atol=12)


def test_a_picture_on_the_map_shows_itself_and_can_be_put_away(browser_page, address):
    page = browser_page(address)
    names = page.evaluate("[...document.querySelectorAll('.map .point')].map((each) => each.dataset.name)")
    for landmark in page.locator(".landmark").all():  # at its corner, where another point may be nearer
        landmark.hover(position={"x": 4, "y": 4})
        assert shown_name(page) == names[int(landmark.get_attribute("data-place"))]
    page.get_by_label("Pictures on the map").focus()
    page.keyboard.press("Space")
    assert not landmark.is_visible()


def test_arrow_keys_go_through_the_map(browser_page, address):
    page = browser_page(address)
    page.get_by_label("Pictures on the map").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "map"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    places = {point["name"]: (float(point["x"]), float(point["y"])) for point in points_of(page)}
    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowLeft", 0, -1), ("ArrowUp", 1, -1), ("ArrowDown", 1, 1)):
        visited = [shown_name(page)]
        for _ in range(IMAGES):
            page.keyboard.press(key)
            visited.append(shown_name(page))
        moves = np.diff([places[name][axis] for name in visited]) * sign
        assert (moves >= 0).all()
        assert moves[0] > 0
        assert moves[-1] == 0  # the edge was reached


def test_a_finger_shows_pictures_too(browser_page, address):
    page = browser_page(address, width=375, has_touch=True, is_mobile=True)
    page.locator(".map").scroll_into_view_if_needed()
    before, points = shown_name(page), [point for point in points_of(page) if point["clear"]]
    point = next(point for point in points if point["name"] != before)
    page.touchscreen.tap(point["left"], point["top"])
    assert shown_name(page) == point["name"]
    assert page.locator("#shown").bounding_box()["y"] < 900


def test_malicious_captions_are_only_text(browser_page, address):
    page = browser_page(address)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.get_by_text("window.hacked = true").first.is_visible()
    for point in page.locator(".map .point").all()[:IMAGES]:
        point.dispatch_event("pointermove", {"bubbles": True})
    assert page.evaluate("window.hacked") is None


def test_links_lead_to_their_sections(browser_page, address):
    page = browser_page(address)
    for link in page.locator("nav a").all():
        link.click()
        top = page.locator(link.get_attribute("href")).bounding_box()["y"]
        assert -5 <= top < 900
        page.evaluate("scrollTo(0, 0)")


def test_without_scripts_everything_but_the_pointer_works(browser_page, address):
    page = browser_page(address, java_script_enabled=False)
    assert page.locator("section").count() == 8
    assert "needs JavaScript" in page.locator("#count").inner_text()
    assert not page.locator("#filters").is_visible()
    assert page.locator(".landmark").first.is_visible()
    assert "needs JavaScript" in page.locator("#shown").inner_text()
