"""The page in a real browser: Debian's Chromium, driven by Playwright, and looked at by axe-core.

One installation of two weeks, one empty one, one browser for all tests of this file. Skips with a sentence where one of
the three is missing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.web import site as site_module

from ..support.pages import HELD, MORE, NOW, TODAY, facts_at, hostile_rows, live, page_config, shown
from ..support.sftp import CHEAP_HASH, PASSWORD
from ..support.site import DAY, Site, at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
NODE = os.environ.get("NODE_PATH", "").split(":")
AXE = next((path for folder in NODE if (path := Path(folder, "axe-core/axe.min.js")).exists()), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs Playwright: pip install '.[browser]'"),
    pytest.mark.skipif(AXE is None, reason="needs axe-core on NODE_PATH: npm install axe-core"),
]
FIRST = TODAY.replace(day=17)
DESK: Any = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of an installation with good days, late rows, and a late, a missing and a held day."""
    site = Site(tmp_path_factory.mktemp("lived"), first=FIRST)
    try:
        # Before the browser is started, whose loop then counts as running in this thread.
        asyncio.run(live(site, FIRST))
        site.ledger.note(**facts_at(NOW))
    finally:
        site.stop()
    with shown(page_config(site.root, FIRST), NOW) as url:
        yield url


@pytest.fixture(scope="module")
def hostile_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of an installation whose podcasts' ids attack whoever shows them."""
    site = Site(tmp_path_factory.mktemp("hostile"))
    try:
        site.put(hostile_rows(DAY, 8), at(1, "04:00"))
        asyncio.run(site.round(at(1, "05:30")))
    finally:
        site.stop()
    with shown(page_config(site.root), at(1, "09:00")) as url:
        yield url


@pytest.fixture(scope="module")
def browser(address: str, hostile_address: str) -> Iterator[Browser]:
    """Chromium; the pages outlive it, since it asks for their icons whenever it likes, even after a page is left."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root may not use it
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield started
        started.close()


@contextmanager
def window(browser: Browser, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """A window, and what it complains of: errors, whatever the policy forbids, dialogs, requests to other hosts."""
    context = browser.new_context(viewport=DESK, **options)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda it: None if it.url.startswith("http://127.0.0.1:") else complaints.append(it.url))
    try:
        yield page, complaints
    finally:
        context.close()


@pytest.fixture(scope="module")
def shared(browser: Browser) -> Iterator[tuple[Page, list[str]]]:
    """A window for all tests that need no options: one takes a second of processor time to open."""
    with window(browser, color_scheme="light") as it:
        yield it


@pytest.fixture
def page(shared: tuple[Page, list[str]]) -> Iterator[Page]:
    """The shared window; it must have complained of nothing."""
    it, complaints = shared
    it.set_viewport_size(DESK)
    it.emulate_media(color_scheme="light")
    yield it
    it.goto("about:blank")  # a page would load itself again, in the midst of the next test
    found, complaints[:] = complaints[:], []
    assert [text for text in found if text != "about:blank"] == []


# By page: its path, and how axe looks at it; each run of axe takes seconds, and the rules are the same everywhere.
ON_A_DESK, BY_NIGHT = (1280, "light"), (390, "dark")
PATHS: dict[str, tuple[str, tuple[tuple[int, str], ...]]] = {
    "overview": ("/", (ON_A_DESK, BY_NIGHT)),
    "held": (f"/days/{HELD}", (BY_NIGHT,)),
    "late rows": (f"/days/{MORE}", (ON_A_DESK,)),
    "file": (f"/files/MEGA{MORE:%Y%m%d}-00.tsv.gz", (BY_NIGHT,)),
}


@pytest.mark.parametrize("what", PATHS)
def test_a_page_fits_every_screen_and_everybody(what: str, address: str, page: Page) -> None:
    """Nothing has to be scrolled sideways, light and dark differ, no policy is broken, axe finds nothing serious."""
    assert AXE is not None
    path, examined = PATHS[what]
    grounds = set()
    page.goto(address + path)
    page.evaluate("for (const it of document.querySelectorAll('details')) it.open = true")
    page.evaluate(AXE.read_text())
    for width, scheme in ((1920, "light"), ON_A_DESK, BY_NIGHT):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        grounds.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
        found = page.evaluate("axe.run()")["violations"] if (width, scheme) in examined else []
        assert [(it["id"], it["nodes"][0]["html"]) for it in found if it["impact"] != "minor"] == []
    assert len(grounds) == 2


def test_the_page_needs_no_script(address: str, browser: Browser, page: Page) -> None:
    """With JavaScript off it says the same."""
    with window(browser, java_script_enabled=False) as (without, _):
        texts = []
        for it in (page, without):
            it.goto(address)
            texts.append(it.inner_text("main"))
    assert texts[0] == texts[1]
    assert f"{HELD}, held" in texts[0]


def test_the_keyboard_reaches_everything(address: str, page: Page) -> None:
    """The first stop leads past the head; the earlier days unfold; a day is reached by Enter."""
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    day = page.locator(f".calendar a[href='/days/{HELD}']")
    assert f'link "{HELD}: held"' in day.aria_snapshot()  # by ear a number alone is no day
    page.focus(f"main a[href='/days/{HELD}']")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/days/{HELD}")
    assert "held" in page.inner_text("h1")


def test_paper_is_white_by_night_too(address: str, page: Page) -> None:
    """Whoever prints from a dark screen gets the colours that are chosen for a light ground."""
    page.goto(f"{address}/days/{HELD}")
    colours = []
    for media, scheme in (("screen", "light"), ("print", "dark")):
        page.emulate_media(media=media, color_scheme=scheme)
        colours.append(page.evaluate("getComputedStyle(document.querySelector('.word')).color"))
    page.emulate_media(media="screen")
    assert colours[0] == colours[1]


def test_the_browser_asks_again_every_minute(address: str, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chromium obeys the header; here the minute is a second."""
    monkeypatch.setattr(site_module, "REFRESH_SECONDS", 1)
    page.goto(f"{address}/days/{DAY}")
    with page.expect_navigation():
        pass
    assert page.url == f"{address}/days/{DAY}"


def test_a_hostile_podcast_is_text_to_the_browser(hostile_address: str, page: Page) -> None:
    """No dialog, no image that is fetched, nothing that the policy had to forbid."""
    page.goto(f"{hostile_address}/days/{DAY}")
    assert "<script>alert(1)</script>" in page.inner_text("main")


def test_a_browser_asks_for_the_password_once(tmp_path: Path, browser: Browser) -> None:
    """And an empty installation has a page, too, with its stylesheet."""
    config = page_config(tmp_path, password_hash=CHEAP_HASH)
    credentials = {"username": "me", "password": PASSWORD}
    with shown(config, NOW) as url, window(browser, http_credentials=credentials) as (page, _):
        page.goto(url)
        assert "No day yet" in page.inner_text("main")
        assert page.evaluate("getComputedStyle(document.querySelector('.brand')).fontWeight") == "650"
