"""The search page in a real browser, on a real service with a tiny model: types, sees, uploads, clicks, goes back."""

import io
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra `search` is not installed")
import uvicorn

from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import index_images
from crosspair.serve.server import configuration
from crosspair.serve.service import create_app
from tests.fixtures.models import create_tiny_model

IMAGES = 90
TOKEN = "a-token-of-some-length"
EVIL = "<img src=x onerror=alert(1)>.png"
WINDOWS = list(itertools.product((1280, 375), (False, True)))


def image(number: int) -> Image.Image:
    """A gradient between two colours, of any shape."""
    random = np.random.default_rng(number)
    width, height = [(300, 200), (200, 300), (240, 240), (480, 200), (160, 400)][number % 5]
    ends = random.integers(30, 226, (2, 3))
    along = np.linspace(0, 1, width)[None, :, None]
    return Image.fromarray(np.broadcast_to(ends[0] + (ends[1] - ends[0]) * along, (height, width, 3)).astype(np.uint8))


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Gallery:
    """90 pictures of all shapes, one with a malicious name."""
    folder = tmp_path_factory.mktemp("gallery")
    create_tiny_model(["red", "green", "blue"]).save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for number in range(IMAGES):
        image(number).save(folder / "images" / (EVIL if number == 7 else f"a picture, number {number}.png"))
    index_images(folder / "model", folder / "images", folder / "gallery", backend="torch", progress=False)
    return Gallery.open(folder / "gallery")


@contextmanager
def served(gallery: Gallery, token: str | None = None) -> Iterator[str]:
    """The address of a service."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(configuration(create_app(gallery, token=token)))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(gallery) -> Iterator[str]:
    with served(gallery) as address:
        yield address


def says(page, words: str) -> None:
    """Wait until the line that screen readers read out has these words."""
    page.locator("#status").get_by_text(words).wait_for()


def wait_until(page, condition: str, seconds: float = 30) -> None:
    """Wait until a JavaScript expression is true; Playwright's own wait evaluates what the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never true: {condition}"
        page.wait_for_timeout(50)


def names(page) -> list[str]:
    return page.locator("#results .name").all_inner_texts()


def box_of(page):
    return page.get_by_label("Describe a picture")


def expected(gallery: Gallery, sentence: str, count: int) -> list[str]:
    found = gallery.search(gallery.model().encode_text([sentence]).numpy(), count)
    return [gallery.item(row).item_id for row in found.rows[0]]


def test_it_starts_with_pictures_and_a_search_box(browser_page, address):
    page = browser_page(address)
    says(page, "90 pictures. Here are some of them.")
    assert page.locator("#results li").count() == 40
    wait_until(page, "[...document.querySelectorAll('#results img')].slice(0, 9).every((each) => each.naturalWidth)")


def test_the_pictures_change_as_one_types(browser_page, address, gallery):
    page = browser_page(address)
    says(page, "90 pictures")
    box_of(page).press_sequentially("red green")
    says(page, "nearest to “red green”")
    assert names(page) == expected(gallery, "red green", 40)
    scores = [float(score) for score in page.locator("#results .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert page.url.endswith("?q=red+green")
    assert page.title() == "red green: picture search"


def test_an_old_answer_does_not_replace_a_newer_one(browser_page, address, gallery):
    page = browser_page(address)
    held = []
    page.route(re.compile(r"q=red(&|$)"), lambda route: held.append(route))
    box_of(page).press_sequentially("red")
    page.wait_for_url("**/?q=red")
    page.wait_for_timeout(50)
    box_of(page).press_sequentially(" blue")
    says(page, "“red blue”")
    for route in held:
        route.continue_()
    page.wait_for_timeout(200)
    assert len(held) == 1
    assert names(page) == expected(gallery, "red blue", 40)
    assert all("q=red&" in problem or problem.endswith("q=red") for problem in browser_page.problems)
    browser_page.problems.clear()  # the request that the page itself called off


def test_a_click_finds_similar_pictures_and_back_returns(browser_page, address, gallery):
    page = browser_page(address)
    box_of(page).fill("green")
    says(page, "“green”")
    before = names(page)
    page.mouse.wheel(0, 700)
    page.locator("#results a").nth(5).click()
    says(page, "nearest to this picture")
    assert page.locator("#asked-title").inner_text() == before[5]
    assert before[5] not in names(page)
    assert page.evaluate("scrollY") == 0
    page.reload()
    says(page, "nearest to this picture")
    assert page.locator("#asked-title").inner_text() == before[5]
    page.go_back()
    says(page, "“green”")
    assert names(page) == before
    assert box_of(page).input_value() == "green"
    page.go_back()
    says(page, "Here are some")
    assert box_of(page).input_value() == ""
    page.go_forward()
    says(page, "“green”")


def test_typing_leaves_one_entry_in_the_history(browser_page, address):
    page = browser_page(address)
    box_of(page).press_sequentially("red", delay=200)
    says(page, "“red”")
    page.go_back()
    says(page, "Here are some")


@pytest.mark.parametrize("way", ["chosen", "dropped", "pasted"])
def test_a_picture_of_one_s_own_finds_its_like(browser_page, address, gallery, way):
    page = browser_page(address)
    says(page, "90 pictures")
    data = gallery.image(11)
    if way == "chosen":
        page.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": data})
    else:
        event = {"dropped": "drop", "pasted": "paste"}[way]
        page.evaluate(
            """([event, bytes]) => {
              const carried = new DataTransfer();
              carried.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
              const detail = { bubbles: true, cancelable: true };
              if (event === "paste") {
                dispatchEvent(new ClipboardEvent("paste", { ...detail, clipboardData: carried }));
              } else {
                dispatchEvent(new DragEvent("dragenter", { ...detail, dataTransfer: carried }));
                if (document.getElementById("over").hidden) throw new Error("it does not show that it takes the file");
                dispatchEvent(new DragEvent("drop", { ...detail, dataTransfer: carried }));
              }
            }""",
            [event, list(data)],
        )
    says(page, "nearest to this picture, best score 1.000")
    assert names(page)[0] == gallery.item(11).item_id
    assert page.locator("#asked-title").inner_text() == "mine.png"
    wait_until(page, "document.getElementById('asked').naturalWidth > 0")
    assert page.locator("#over").is_hidden()
    page.locator("#results a").first.click()
    says(page, "nearest to this picture, best score 0.")
    page.go_back()
    says(page, "best score 1.000")


def test_a_file_that_is_no_picture_is_explained_and_forgotten(browser_page, address):
    page = browser_page(address)
    page.set_input_files("#file", {"name": "notes.png", "mimeType": "image/png", "buffer": b"hello"})
    problem = page.get_by_role("alert")
    problem.get_by_text("is not a picture in a known format").wait_for()
    page.evaluate(
        """() => {
          const carried = new DataTransfer();
          carried.items.add(new File([new ArrayBuffer(20 * 2 ** 20 + 1)], "big.png", { type: "image/png" }));
          dispatchEvent(new DragEvent("drop", { dataTransfer: carried }));
        }"""
    )
    problem.get_by_text("more than 20 MB").wait_for()
    box_of(page).fill("red")
    says(page, "“red”")
    assert problem.is_hidden()
    assert [each for each in browser_page.problems if "415" not in each] == []
    browser_page.problems.clear()  # what Chromium says of the answer 415


def test_more_can_be_shown_until_there_are_no_more(browser_page, address):
    page = browser_page(address)
    box_of(page).fill("blue")
    says(page, "The 40 of 90")
    page.get_by_role("button", name="Show more").click()
    says(page, "The 80 of 90")
    assert page.evaluate("[...document.querySelectorAll('#results a')].indexOf(document.activeElement)") == 40
    page.get_by_role("button", name="Show more").click()
    says(page, "The 90 of 90")
    assert page.get_by_role("button", name="Show more").is_hidden()


def test_it_can_be_used_with_the_keyboard_alone(browser_page, address):
    page = browser_page(address)
    says(page, "90 pictures")
    page.keyboard.press("/")
    page.keyboard.type("green")
    page.keyboard.press("Enter")
    says(page, "“green”")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    outline = "getComputedStyle(document.querySelector('.drop label')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Tab")
    places = [0]
    for key in ("ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        places.append(page.evaluate("[...document.querySelectorAll('#results a')].indexOf(document.activeElement)"))
    assert places[1] == 1
    assert places[2] > 2
    assert places[4] in (0, 1)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    says(page, "nearest to this picture")


def test_everything_has_a_name_and_a_role(browser_page, address):
    page = browser_page(address)
    says(page, "90 pictures")
    assert page.get_by_role("search").count() == 1
    assert page.get_by_role("searchbox", name="Describe a picture").count() == 1
    assert page.get_by_label("Drop or choose a picture").get_attribute("type") == "file"
    assert page.get_by_role("list", name="Pictures").get_by_role("listitem").count() == 40
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    unnamed = "[...document.querySelectorAll('a')].filter((each) => !each.innerText.trim() && !each.ariaLabel)"
    assert page.evaluate(f"{unnamed}.filter((each) => each.checkVisibility()).length") == 0


@pytest.mark.parametrize(("width", "dark"), WINDOWS)
def test_nothing_sticks_out_and_every_text_can_be_read(
    browser_page, low_contrast, beyond_the_window, address, width, dark
):
    page = browser_page(address, width=width, dark=dark)
    says(page, "90 pictures")
    for step in ("start", "text", "similar", "docs"):
        if step == "text":
            box_of(page).fill("red " + "unbreakable" * 30)
            says(page, "unbreakable")
        elif step == "similar":
            page.locator("#results a").first.click()
            says(page, "nearest to this picture")
        elif step == "docs":
            page.goto(f"{address}docs")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert [each for each in beyond_the_window(page) if "skip" not in each] == []
        assert low_contrast(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(background) < 60) == dark


@pytest.mark.parametrize("width", [1280, 375])
def test_pictures_keep_their_shape_and_rows_are_even(browser_page, address, width):
    page = browser_page(address, width=width)
    box_of(page).fill("red")
    says(page, "“red”")
    wait_until(page, "[...document.querySelectorAll('#results img')].slice(0, 8).every((each) => each.naturalWidth)")
    boxes = page.evaluate(
        """[...document.querySelectorAll("#results img")].slice(0, 8).map((each) => {
          const { width, height } = each.getBoundingClientRect();
          return { shape: width / height, own: each.naturalWidth / each.naturalHeight, height };
        })"""
    )
    for box in boxes:
        assert box["shape"] == pytest.approx(max(box["own"], 0.5), rel=0.03)
        assert 80 < box["height"] < 300


def test_malicious_names_are_only_text(browser_page, address):
    page = browser_page(address)
    box_of(page).fill("red")
    for _ in range(2):
        says(page, "of 90")
        page.get_by_role("button", name="Show more").click()
    says(page, "The 90 of 90")
    link = page.get_by_role("link", name="onerror")
    assert link.locator(".name").inner_text() == EVIL
    link.click()
    says(page, "nearest to this picture")
    assert page.locator("#asked-title").inner_text() == EVIL


def test_the_token_is_taken_from_the_address_or_asked_for(browser_page, gallery):
    with served(gallery, TOKEN) as address:
        page = browser_page(f"{address}#token={TOKEN}")
        says(page, "90 pictures")
        assert TOKEN not in page.url
        asked = browser_page(address)
        for attempt in ("not the token at all", TOKEN):
            asked.get_by_role("dialog").wait_for()
            asked.get_by_role("dialog").get_by_role("textbox").or_(asked.locator("dialog input")).first.fill(attempt)
            asked.get_by_role("button", name="Open").click()
        says(asked, "90 pictures")
        for each in (page, asked):
            each.wait_for_load_state("networkidle")
            assert each.evaluate("document.querySelector('#results img').naturalWidth") > 0
            each.close()  # it would ask on
    assert [each for each in browser_page.problems if "401" not in each] == []
    browser_page.problems.clear()  # what Chromium says of the answers 401


def test_a_service_that_is_gone_is_explained_and_can_be_tried_again(browser_page, address):
    page = browser_page(address)
    says(page, "90 pictures")
    page.route("**/search*", lambda route: route.abort())
    box_of(page).fill("red")
    page.get_by_role("alert").get_by_text("does not answer").wait_for()
    page.unroute("**/search*")
    page.get_by_role("button", name="Try again").click()
    says(page, "“red”")
    browser_page.problems.clear()  # the connection that failed
