"""A real browser for tests of pages: Chromium, if it is on this machine."""

import shutil
from contextlib import contextmanager

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_REASON = "there is no Chromium on this machine (apt install chromium)"
needs_browser = pytest.mark.skipif(BROWSER is None, reason=_REASON)


@contextmanager
def open_page(address, *arguments, **settings):
    """A page of a new browser, and the list of all addresses that it requests.

    Parameters
    ----------
    arguments : of Chromium.
    settings : of the page, as ``viewport``; see Playwright's ``new_context``.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", *arguments]
        )
        page = browser.new_context(**settings).new_page()
        requested = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        yield page, requested
        browser.close()
