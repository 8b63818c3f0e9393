"""Writes docs/images/report.png, a picture of the demo's report for the README: ``python docs/screenshot.py``.

It needs the results of ``make demo`` and Chromium. Long tables and half of the plots are left out.
"""

from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
PLOTS = ("confusion_matrix", "reliability", "cost_curve", "costliest_mistakes")
HIDE = """
(count) => {
    const kept = ["0", "1"];  // sections that stay, by their order
    document.querySelectorAll("h2, h2 ~ *").forEach((element) => { element.style.display = "none" });
    const headings = [...document.querySelectorAll("h2")];
    const show = (heading, limit) => {
        for (let next = heading, n = 0; next && (next === heading || next.tagName !== "H2"); next = next.nextElementSibling, n++)
            if (n <= limit) next.style.display = "";
    };
    show(headings[2], 1);
    show(headings[3], 1);
    [...document.querySelectorAll("figure")].forEach((figure, k) => { if (k < 1 || k > 4) figure.style.display = "none" });
}
"""

if __name__ == "__main__":
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 600})
        page.goto(f"file://{ROOT / 'evaluation/report.html'}")
        page.evaluate(HIDE, 0)
        page.screenshot(path=ROOT / "docs/images/report.png", full_page=True)
        browser.close()
