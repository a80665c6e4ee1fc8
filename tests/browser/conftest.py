"""A real browser for the pages: Debian's Chromium, driven by Playwright. What a page complains about is a failure."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """The browser itself, started once a file: while Playwright runs, no other test can run an event loop."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright (optional) is not installed")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("there is no Chromium here; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Opener:
    """Opens addresses in windows of their own, and writes down what goes wrong in them.

    problems: console errors and warnings, exceptions, failed requests, and requests to any other host.
    """

    browser: Any
    problems: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    def __call__(
        self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False, **context: Any
    ) -> "Page":
        """A page that has loaded. context: what else Playwright's new_context takes, such as has_touch=True."""
        scheme = "dark" if dark else "light"
        opened = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **context)
        self.contexts.append(opened)
        page: Page = opened.new_page()
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("requestfailed", self._failed)
        page.on("request", lambda request: self._asked(address, request.url))
        page.goto(address)
        return page

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # what the page itself no longer wants
            self.problems.append(f"failed: {request.url[:200]} ({request.failure})")

    def _heard(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.problems.append(f"{kind}: {text}")

    def _asked(self, address: str, url: str) -> None:
        ours, theirs = urlsplit(address), urlsplit(url)
        if theirs.scheme not in {"data", "blob"} and (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
            self.problems.append(f"request to {url[:200]}")


@pytest.fixture
def browser_page(chromium: "Browser") -> Iterator[Opener]:
    """Opens a page: browser_page(address, width=375, dark=True). The test fails if the page has complained."""
    opener = Opener(chromium)
    yield opener
    for context in opener.contexts:
        context.close()
    assert not opener.problems


LOW_CONTRAST = """
() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = numbers(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, style, title")) continue;
    const style = getComputedStyle(element);
    const front = numbers(element instanceof SVGElement ? style.fill : style.color);
    const [light, dark] = [luminance(front), luminance(behind(element))].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) low.push(`${contrast.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 40)}`);
  }
  return low;
}
"""

WIDER = """
() => [...document.body.querySelectorAll("*")]
  .filter((element) => element.checkVisibility() && !element.closest(".hidden"))
  .filter((element) => {
    const box = element.getBoundingClientRect();
    return box.right > innerWidth + 0.5 || box.left < -0.5;
  })
  .map((element) => element.outerHTML.slice(0, 120))
"""


@pytest.fixture
def low_contrast() -> Callable[["Page"], list[str]]:
    """Texts of a page with a contrast below 4.5 to what is behind them (WCAG 2.2, AA)."""
    return lambda page: page.evaluate(LOW_CONTRAST)


@pytest.fixture
def beyond_the_window() -> Callable[["Page"], list[str]]:
    """Elements of a page that stick out of the window sideways."""
    return lambda page: page.evaluate(WIDER)
