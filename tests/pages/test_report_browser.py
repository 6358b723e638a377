"""The report in a browser: errors, width, colours, reach, and what moves."""

from types import SimpleNamespace

import pytest
from grids import grid

from nemo_moslim.report.page import write_report

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def file(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(SimpleNamespace(runs=[str(recipe)], output=str(output)))
    return output


@pytest.fixture
def visit(browser, file):
    """Opens the report: visit(width, scheme) -> page; complaints and requests are kept on the page's `seen`."""
    contexts = []

    def opened(width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, **options)
        contexts.append(context)
        page, seen = context.new_page(), SimpleNamespace(complaints=[], requests=[])
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(file.as_uri())
        page.seen = seen
        return page

    yield opened
    for context in contexts:
        context.close()


SCREENS = [(name, scheme) for name in WIDTHS for scheme in ("light", "dark")]


@pytest.mark.parametrize(("name", "scheme"), grid(SCREENS, ("desktop", "light"), ("phone", "dark")))
def test_it_opens_whole(visit, name, scheme, tmp_path):
    width = WIDTHS[name]
    page = visit(width, scheme)
    for closed in page.locator("details").all():
        closed.locator("summary").click()
    page.mouse.wheel(0, 3000)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.seen.complaints == [] and page.evaluate("window.ran") is None
    assert [url for url in page.seen.requests if not url.startswith(("file:", "data:"))] == []
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, light[4:-1].split(","))) > 380) == (scheme == "light")
    # nothing of a card or figure sticks out of it, and no picture is empty
    outside = page.evaluate(
        "[...document.querySelectorAll('.cards li, figure, .answers li')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60))"
    )
    assert outside == []
    sizes = page.evaluate("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().height)")
    assert len(sizes) > 30 and min(sizes) > 10
    picture = tmp_path / "page.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 100_000


def test_text_of_pictures_stays_inside_them(visit):
    cut = """() => [...document.querySelectorAll('svg text')].filter(t => {
        const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
        return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
    }).map(t => t.textContent)"""
    for width in WIDTHS.values():
        assert visit(width).evaluate(cut) == []


def test_the_theme_can_be_chosen(visit):
    page = visit(scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    assert page.inner_text("#theme").endswith("light") and page.evaluate(colour) != dark
    page.reload()
    assert page.inner_text("#theme").endswith("light")
    page.click("#theme")
    assert page.inner_text("#theme").endswith("dark") and page.evaluate(colour) == dark


def test_contents_lead_to_sections(visit):
    page = visit(WIDTHS["phone"])
    heading = page.locator("#cost h2")
    assert heading.bounding_box()["y"] > 2000
    page.click("nav a[href='#cost']")
    page.wait_for_selector("nav a[href='#cost'][aria-current]")
    page.wait_for_timeout(1000)  # the page glides there
    assert 0 < heading.bounding_box()["y"] < 300


def test_curves_tell_their_values(visit):
    page = visit()
    chart = page.locator("svg[data-chart]").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 16, box["y"] + box["height"] / 2)
    lines = page.locator(".readout div").all_inner_texts()
    assert lines[0] == "step 40" and lines[1] == "training 0.05"
    page.mouse.move(0, 0)
    assert page.locator(".readout").count() == 0


def test_it_can_be_read_without_scripts(visit):
    page = visit(java_script_enabled=False)
    assert "Followed (Spearman from 0.9): harmless." in page.inner_text("main")
