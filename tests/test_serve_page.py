"""The page of `edgemllm serve` in a real browser: pip install playwright axe-playwright-python; apt install chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [dev] has an HTTP client")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

from server import serving  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUESTION = "What number was with the red square?"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def faults(page: Any) -> list[str]:
    """What axe-core finds that keeps somebody from using the page."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in SERIOUS]


def listen(page: Any) -> list[str]:
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url) if "127.0.0.1" not in request.url else None)
    return problems


def spans(page: Any) -> int:
    return int(page.locator("#timeline .kept").count())


def test_a_session_is_begun_asked_and_found_again(browser: Any, tmp_path: Path) -> None:
    with serving("--kv-budget", "256") as served:
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        problems = listen(page)
        page.goto(served.address)
        page.get_by_label("Policy").select_option("edge")
        page.get_by_label("Frames per second").fill("2")
        page.get_by_role("button", name="Begin").click()
        page.locator("#meter", has_text="300 seen").wait_for()
        assert spans(page) > 1
        assert "00:02:2" in page.locator("#end").text_content()
        box = page.get_by_label("Ask about what was seen")
        box.fill(QUESTION)
        box.press("Enter")
        answer = page.locator("#answers li", has_text=QUESTION).locator(".answer")
        answer.wait_for()
        assert answer.text_content() == "5"
        assert page.locator("#timeline .asked").count() == 1
        assert page.locator("#picture").evaluate("image => image.naturalWidth") > 16
        assert faults(page) == []
        page.reload()
        page.locator("#answers li", has_text=QUESTION).wait_for()
        assert spans(page) > 1
        page.get_by_role("button", name="Clear").click()
        page.get_by_text("Everything is forgotten.").wait_for()
        assert spans(page) == 0
        assert problems == []


def test_the_timeline_shows_cache_archive_and_what_was_looked_at_again(browser: Any, tmp_path: Path) -> None:
    with serving("--kv-budget", "48", "--archive", str(tmp_path)) as served:
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        problems = listen(page)
        page.goto(served.address)
        page.get_by_label("Policy").select_option("streaming-llm")
        page.get_by_role("button", name="Begin").click()
        page.locator("#meter", has_text="150 seen").wait_for()
        assert page.locator("#archived .archived").count() == 1
        assert page.locator("#recalled .recalled").count() == 0
        page.get_by_label("Ask about what was seen").fill(QUESTION)
        page.keyboard.press("Enter")
        answer = page.locator("#answers li", has_text=QUESTION)
        answer.wait_for()
        assert answer.locator(".answer").text_content() == "5"
        assert "looked again at 00:00:2" in answer.text_content()
        page.locator("#timeline-text", has_text="Looked at again").wait_for()
        assert "In the archive: 00:00:00 to 00:02:29" in page.locator("#timeline-text").text_content()
        assert page.locator("#recalled .recalled").count() >= 1
        assert faults(page) == []
        page.reload()
        answer.wait_for()
        assert page.locator("#recalled .recalled").count() >= 1
        page.get_by_role("button", name="New session").click()
        page.get_by_label("Keep an archive, and look again").uncheck()
        page.get_by_role("button", name="Begin").click()
        page.locator("#title", has_text="lecture, inf-mllm").wait_for()
        assert not page.locator("#archived").is_visible()
        assert problems == []


def test_a_phone_the_dark_and_a_key(browser: Any) -> None:
    with serving("--kv-budget", "256", "--api-key", "secret") as served:
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
        page.goto(served.address)
        page.get_by_role("textbox", name="Key").fill("secret")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Begin").wait_for()
        page.get_by_label("Play a recording by the clock").check()
        page.get_by_role("button", name="Begin").click()
        page.locator("#picture").wait_for()
        before = page.locator("#end").text_content()
        playwright.expect(page.locator("#end")).not_to_have_text(before)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"
        assert faults(page) == []
        focused = []
        for _ in range(12):
            page.keyboard.press("Tab")
            focused.append(page.evaluate("document.activeElement.id"))
        assert {"question", "send", "save", "delete"} <= set(focused), "what the keyboard reaches"
