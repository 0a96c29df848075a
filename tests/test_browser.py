"""The pages in a real browser: they search, filter and act, by day, by night and on a phone."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import matplotlib.image
import pytest
from test_report import fake_examples, fake_workdir, put

from mend_jax import report

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--no-first-run",
)  # fmt: skip
PHONE = {"width": 390, "height": 844}
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open pages with")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address: str | Path, **how):
    """A page, which must log no error and ask nobody else for anything."""
    address = address.as_uri() if isinstance(address, Path) else address
    page = browser.new_page(**how)
    errors, asked = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert not errors
    assert all(url.startswith((address.partition("?")[0], "data:")) for url in asked), asked


def check_looks(browser, address: str | Path) -> None:
    """Light by day, dark by night, and nothing wider than a phone."""
    for scheme in ("light", "dark"):
        with opened(browser, address, color_scheme=scheme) as page:
            pixels = matplotlib.image.imread(io.BytesIO(page.screenshot()))[..., :3]
        assert pixels.mean() > 0.75 if scheme == "light" else pixels.mean() < 0.25, scheme
    with opened(browser, address, viewport=PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


@pytest.fixture(scope="module")
def run_page(tmp_path_factory) -> Path:
    folder = fake_workdir(tmp_path_factory.mktemp("run"))
    examples = fake_examples()
    examples[1] |= {"after": EVIL, "rephrase": EVIL, "relation": EVIL, "target": "Ålesund"}
    put(folder, "examples.json", examples)
    return report.write(folder)


def test_the_report_searches_and_filters_its_examples(browser, run_page):
    with opened(browser, run_page) as page:
        cards, count = page.locator("#examples article:visible"), page.locator(".count output")
        search, outcome = page.get_by_label("Search"), page.get_by_label("Outcome")
        assert cards.count() == 5 and count.inner_text() == "5 of 5 edits"
        for typed, heads in (
            ("KENYA", ["Nairobi → Mombasa"]),
            ("alesund", ["Oslo → Ålesund"]),  # whatever the accents
            ("capital  lima peru", ["Lima → Cusco"]),  # every word, in any order
            ("capital nowhere", []),
        ):
            search.fill(typed)
            assert cards.locator("h3").all_inner_texts() == heads
        assert count.inner_text() == "Nothing matches."
        assert page.locator("#examples section:visible").count() == 0  # no heading over nothing
        page.get_by_role("button", name="Clear").click()
        page.wait_for_function("document.querySelectorAll('article:not([hidden])').length == 5")
        for value, shown in (("good", 3), ("failed", 2), ("rephrase", 1), ("near", 1), ("", 5)):
            outcome.select_option(value)
            assert cards.count() == shown, value
        page.get_by_label("Relation").select_option("country capital")
        assert cards.count() == 4
        outcome.select_option("good")
        search.fill("japan")
        search.press("Enter")  # sends nothing anywhere
        assert count.inner_text() == "1 of 5 edits" and cards.locator("h3").count() == 1


def test_output_of_a_model_does_nothing_in_the_report(browser, run_page):
    with opened(browser, run_page) as page:
        assert page.title() == "Run of quickstart.py"
        assert EVIL in page.locator("article").nth(1).inner_text()


def test_no_other_script_runs_in_the_report(browser, run_page, tmp_path):
    """Even where a text was not escaped."""
    broken = tmp_path / "report.html"
    broken.write_text(run_page.read_text().replace("<main>", f"<main>{EVIL}"))
    page = browser.new_page()
    refused = []
    page.on("console", lambda m: refused.append(m.text) if "Content Security" in m.text else None)
    page.goto(broken.as_uri())
    assert page.title() == "Run of quickstart.py" and len(refused) >= 2
    assert page.locator(".filters").is_visible()  # our own does
    page.close()


def test_the_report_by_night_and_on_a_phone(browser, run_page):
    check_looks(browser, run_page)


def test_without_scripts_the_report_shows_everything(browser, run_page):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(run_page.as_uri())
    assert page.locator("article:visible").count() == 5
    assert page.locator(".filters:visible").count() == 0
    context.close()
