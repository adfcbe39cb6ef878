"""A Chromium for tests that open a page; they skip where there is none."""

import os
import shutil
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

SECONDS = 60  # that a test waits for what comes at once on a quiet machine


def find_browser():
    """A Chromium that is there: named by CONSIST_BROWSER, on the path, or Playwright's own."""
    if find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install 'consist[test]'")
    names = ("chromium", "chromium-headless-shell", "google-chrome", "chromium-browser")
    found = os.environ.get("CONSIST_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            found = driver.chromium.executable_path
    if not Path(found).exists():
        pytest.skip("no Chromium: apt-get install chromium-headless-shell, or set CONSIST_BROWSER")
    return found


@contextmanager
def open_browser():
    """The browser, for as long as the block runs."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        shell = driver.chromium.launch(executable_path=path, args=flags, timeout=1000 * SECONDS)
        try:
            yield shell
        finally:
            shell.close()
