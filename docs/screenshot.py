"""Writes docs/images/report.png, a picture of the demo's report: ``python docs/screenshot.py``.

It needs the results of ``make demo`` and Chromium. The picture is the first screen of the report.
"""

from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 770})
        page.goto(f"file://{ROOT / 'evaluation/report.html'}")
        page.screenshot(path=ROOT / "docs/images/report.png")
        browser.close()
