"""A headless browser for tests of pages, and files that a report is made of."""

import shutil

import pytest
from made_recipe import write_recipe


@pytest.fixture(scope="module")  # while it lives, Playwright's event loop runs: no other file's test could run its own
def browser():
    """Chromium that is already installed, driven by Playwright; without one the test is skipped."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e .[test]"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"no browser on PATH ({', '.join(names)}): apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """The folder of a recipe with hostile texts in its answers and settings; see made_recipe.py."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "made <i>recipe")
