"""Writes docs/images/report.png, a picture of the demo's report: ``python docs/screenshot.py``.

It needs the results of ``make demo`` and Chromium. The picture has the headline, the table of decisions, the confusion
matrix and the reliability plot; the rest of the report is hidden.
"""

from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
HIDE = """
() => {
    const headings = [...document.querySelectorAll("h2")];
    document.querySelectorAll("h2, h2 ~ *").forEach((element) => { element.style.display = "none"; });
    for (const heading of [headings[2], headings[3]]) {  // results, plots: the heading and what follows it
        heading.style.display = "";
        heading.nextElementSibling.style.display = "";
    }
    document.querySelectorAll("figure").forEach((figure, k) => {
        if (k != 1 && k != 3) figure.style.display = "none";  // confusion matrix, reliability
    });
}
"""

if __name__ == "__main__":
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 500})
        page.goto(f"file://{ROOT / 'evaluation/report.html'}")
        page.evaluate(HIDE)
        page.screenshot(path=ROOT / "docs/images/report.png", full_page=True)
        browser.close()
