"""The pages as a browser shows them: Chromium, where it is installed."""

from __future__ import annotations

import io
import os
import shutil
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from tests.trainer.run_folders import full_run
from trainer.reports.comparison import write_comparison
from trainer.reports.report import write_report

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
STORED = Path(__file__).parent / "screenshots"
DESKTOP, PHONE = 1280, 360  # pixels wide
HEIGHT = 800
SHRUNK = 8  # pixels of the screen to one of a stored picture: letters become grey
MOST_DIFFERING = 0.03  # of the shrunk pixels; a wider font or an inch of space changes more
FONT = "DejaVu Sans"  # of the stored pictures: lines break elsewhere in another
SCHEMES = ["light", "dark"]

# WCAG 2.2, 1.4.3 and 1.4.11: contrast of each text with what is behind it, and of each mark.
CONTRASTS = """() => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => rgb(colour).slice(0, 3)
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  // How much of its colour is seen of a mark: by the colour itself and by all that it stands in.
  const share = (element, colour, own) => {
    let product = (rgb(colour)[3] ?? 1) * own;
    for (let one = element; one; one = one.parentElement) {
      product *= getComputedStyle(one).opacity;
    }
    return product;
  };
  const seen = (colour, under, share) => {
    const below = rgb(under);
    const mixed = rgb(colour).slice(0, 3).map((c, i) => c * share + below[i] * (1 - share));
    return `rgb(${mixed.join(', ')})`;
  };
  const standsOut = (element, colour, own = 1) => {
    const under = behind(element);
    return contrast(seen(colour, under, share(element, colour, own)), under);
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility()) continue;
    if (['title', 'STYLE'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    found.push([text.slice(0, 40), standsOut(element, colour), isLarge ? 3 : 4.5]);
  }
  const marks = '.line, .ring, .span, rect, circle.after, .dot, .before-interval, .after-interval';
  for (const mark of document.querySelectorAll(marks)) {
    const style = getComputedStyle(mark);
    const [colour, own] = style.stroke === 'none'
      ? [style.fill, style.fillOpacity] : [style.stroke, style.strokeOpacity];
    found.push([mark.outerHTML.slice(0, 60), standsOut(mark, colour, own), 3]);
  }
  return found;
}"""
HAS_FONT = """(font) => {
  const context = document.createElement('canvas').getContext('2d');
  const width = (family) => ((context.font = `40px ${family}`), context.measureText('mil').width);
  return ['serif', 'monospace'].some((other) => width(`"${font}", ${other}`) !== width(other));
}"""
# Elements that end right of the page, other than those in a box that scrolls by itself.
SPILT = """() => [...document.querySelectorAll('main *')]
  .filter((one) => !one.closest('.scroll, pre'))
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
  .map((one) => one.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium is installed: the pages are not looked at")
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to have one as root
        browser = driver.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [full_run(folder, name=f"run_{n}", identities=n) for n in (8, 64)]
    report = write_report(runs[0], shows_people=True)
    return {"report": report, "comparison": write_comparison(runs, folder / "comparison.html")}


class Shown:
    """A page in the browser, and what happened there."""

    def __init__(self, chromium, path: Path, width: int, scheme: str):
        self.page = chromium.new_page(
            viewport={"width": width, "height": HEIGHT},
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def shrunk(self) -> np.ndarray:
        """The first screen in the stored pictures' font, (height, width, 3)."""
        if not self.page.evaluate(HAS_FONT, FONT):
            pytest.skip(f"{FONT} is not installed: the stored pictures are in no other font")
        self.page.evaluate("(font) => (document.body.style.fontFamily = font)", FONT)
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        return np.asarray(picture.reduce(SHRUNK))


@pytest.fixture
def show(chromium, pages):
    shown = []

    def opened(page: str | Path, width: int = DESKTOP, scheme: str = "light") -> Shown:
        path = pages[page] if isinstance(page, str) else page
        shown.append(Shown(chromium, path, width, scheme))
        return shown[-1]

    yield opened
    for one in shown:
        one.page.close()


@pytest.fixture
def host():
    """A web server on this machine: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=partial(server.serve_forever, 0.05), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def differing(one: np.ndarray, other: np.ndarray) -> float:
    """Share of pixels of which a colour differs by more than an eighth of its range."""
    if one.shape != other.shape:
        return 1.0
    return float((np.abs(one.astype(int) - other).max(-1) > 32).mean())


@pytest.mark.parametrize("page", ["report", "comparison"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_asks_nobody_and_says_nothing_to_the_console(show, pages, page, width, scheme):
    shown = show(page, width, scheme)
    assert shown.asked == [pages[page].as_uri()]
    assert shown.said == []


def test_even_a_page_that_was_tampered_with_asks_nobody_and_runs_nothing(
    show, host, pages, tmp_path
):
    address, asked = host
    hostile = (
        f"<img src={address}/picture><link rel=stylesheet href={address}/style>"
        f"<script>document.title = 'taken over'</script><iframe src={address}/frame></iframe>"
    )
    tampered = tmp_path / "tampered.html"
    page = pages["report"].read_text()
    tampered.write_text(page.replace("</main>", f"{hostile}</main>"))
    shown = show(tampered)
    assert "taken over" not in shown.page.title()
    assert asked == [] and len(shown.said) == 4  # each is refused aloud

    # The same without its policy: the test would notice.
    open_page = tmp_path / "open.html"
    open_page.write_text(tampered.read_text().replace("Content-Security-Policy", "nothing"))
    shown = show(open_page)
    assert sorted(asked) == ["/frame", "/picture", "/style"]
    assert shown.page.title() == "taken over"


@pytest.mark.parametrize("page", ["report", "comparison"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_text_and_all_marks_have_enough_contrast(show, page, width, scheme):
    shown = show(page, width, scheme)
    shown.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    found = shown.page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [one for one in found if one[1] < one[2]] == []


@pytest.mark.parametrize(
    ("css", "mark"),
    [
        (":root { --muted: #8a8f99 }", "prompts that name the person"),
        (".after-interval { opacity: .45 }", "after-interval"),
        (".figures { opacity: .5 }", "circle"),
        (".line { stroke-opacity: .3 }", "polyline"),
    ],
)
def test_too_little_contrast_would_be_found(show, css, mark):
    shown = show("report")
    shown.page.evaluate(
        "(css) => { const all = new CSSStyleSheet(); all.replaceSync(css);"
        " document.adoptedStyleSheets.push(all); }",
        css,
    )
    pale = [one for one in shown.page.evaluate(CONTRASTS) if one[1] < one[2]]
    assert any(mark in one[0] for one in pale)


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_nothing_spills_over_a_narrow_screen(show, page):
    shown = show(page, PHONE)
    assert shown.page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert shown.page.evaluate(SPILT) == []


def test_what_scrolls_can_be_reached_with_the_keyboard(show):
    shown = show("comparison", PHONE)
    boxes = shown.page.evaluate(
        "[...document.querySelectorAll('.scroll, pre')]"
        ".filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.tabIndex)"
    )
    assert boxes and set(boxes) == {0}


@pytest.mark.parametrize("page", ["report", "comparison"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_first_screen_looks_as_it_did(show, page, width, scheme):
    """Stored anew with UPDATE_SCREENSHOTS=1: look at it before it is committed."""
    found = show(page, width, scheme).shrunk()
    stored = STORED / f"{page}-{width}-{scheme}.png"
    if os.environ.get("UPDATE_SCREENSHOTS"):
        Image.fromarray(found).save(stored, optimize=True)
    assert differing(found, np.asarray(Image.open(stored).convert("RGB"))) <= MOST_DIFFERING


def test_a_page_without_its_style_would_not_pass_for_what_it_was(show, pages, tmp_path):
    plain = tmp_path / "plain.html"
    plain.write_text(pages["report"].read_text().replace("sha256-", "sha256-A"))
    for width in (DESKTOP, PHONE):
        stored = np.asarray(Image.open(STORED / f"report-{width}-light.png").convert("RGB"))
        assert differing(show(plain, width).shrunk(), stored) > 2 * MOST_DIFFERING


def test_pages_are_small_enough_to_be_sent(pages):
    assert all(path.stat().st_size < 2_000_000 for path in pages.values())
