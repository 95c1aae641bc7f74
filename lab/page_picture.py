"""Take the picture of the server's page for the documentation: python -m lab.page_picture (needs playwright and Chromium)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from lab.measure.serving import serving

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
QUESTIONS = (
    (20, "What is on the screen now?"),
    (20, "What number was with the red square?"),
    (10, "What number was with the pink triangle?"),
)
"""Each with the seconds before it."""


def main() -> None:
    """Watch the sample lecture, ask, and write the picture."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("--kv-budget", "96", "--archive", folder) as client,
        sync_playwright() as running,
    ):
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 920}, color_scheme="light")
        page.goto(str(client.base_url))
        page.get_by_label("Policy").select_option("inf-mllm")
        page.get_by_label("Play a recording by the clock").check()
        page.get_by_role("button", name="Begin").click()
        for seconds, question in QUESTIONS:
            page.wait_for_timeout(1000 * seconds)
            box = page.get_by_label("Ask about what was seen")
            box.fill(question)
            box.press("Enter")
            page.locator("#answers li", has_text=question).wait_for()
        page.locator("#meter", has_text="answering").wait_for()
        page.wait_for_timeout(1500)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
