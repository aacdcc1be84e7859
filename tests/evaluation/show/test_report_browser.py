"""report.html in a real browser, where there is one."""

from __future__ import annotations

import pytest

from buzz.evaluation.show.report.write import write_report
from tests.evaluation.browser import browse, find_browser
from tests.evaluation.report_runs import (
    EVICTED_AT,
    NASTY,
    TOKENS,
    answers,
    near_run,
    needle_run,
    quick_run,
    texts,
    write_run,
)

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is installed")

READY = "document.querySelectorAll('#hive-text .t').length > 0 && document.getElementById('hive-when').value !== ''"
CLASSES = "[...document.querySelectorAll('#hive-text [data-i]')].map((span) => span.classList[1])"
COUNTS = (
    "['read', 'held', 'every', 'some', 'gone'].map((name) => document.getElementById('count-' + name).firstChild.data)"
)
LEVELS = {0: "l0", 1: "l3", 2: "l5", 3: "l8", 4: "l10"}  # of four heads


def expected(method: str, call: int, heads: list[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """The class of every token, and the counts, from the recording itself."""
    read = 6 + call
    held = [
        sum(gone < 0 or gone > call for gone in EVICTED_AT[method][tuple(zip(*heads, strict=True))][:, i])
        for i in range(read)
    ]
    most = len(heads)
    levels = LEVELS if most == 4 else {0: "l0", most: "l10", 1: "l5"} if most == 2 else {0: "l0", 1: "l10"}
    classes = [levels[int(count)] for count in held] + ["later"] * (10 - read)
    every, gone = sum(count == most for count in held), sum(count == 0 for count in held)
    mean = sum(held) / most
    shown = f"{mean:.0f}" if mean == int(mean) else f"{mean:.1f}"
    return classes, [str(read), shown, str(every), str(read - every - gone), str(gone)]


ALL = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = quick_run(tmp_path_factory.mktemp("browser") / "quick")
    write_report([folder], folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def near_page(tmp_path_factory):
    folder = near_run(tmp_path_factory.mktemp("browser") / "near")
    write_report([folder], folder)
    return folder / "report.html"


async def clean(page, path):
    """Nothing went wrong, and nothing but the file was asked for."""
    assert page.problems == []
    assert {address for address in page.requests if not address.startswith("data:")} == {path.resolve().as_uri()}


def test_the_hive_view_shows_the_recording(page_file):
    async def visit(page):
        await page.until(READY)
        assert await page.value("document.querySelector('[name=hive-method]:checked').value") == "buzz"
        assert await page.value("document.getElementById('hive-text').textContent") == (
            "Prompt" + "".join(TOKENS[:6]).replace("\n", "\u21b5\n") + "Answer" + " 🐝\u00b7 now end"
        )
        for call in (3, 0, 1, 2):
            await page.choose("#hive-step", call, "input")
            assert (await page.value(CLASSES), await page.value(COUNTS)) == expected("buzz", call, ALL)
        await page.choose("#hive-step", 1, "input")
        for layer, head, heads in ((0, "all", ALL[:2]), (0, 1, ALL[1:2]), ("all", 1, ALL[1::2])):
            await page.choose("#hive-layer", str(layer), "change")
            await page.choose("#hive-head", str(head), "change")
            assert (await page.value(CLASSES), await page.value(COUNTS)) == expected("buzz", 1, heads)
        await page.value("document.querySelector('[value=full]').click()")
        await page.until("document.getElementById('hive-policy').textContent.startsWith('full')")
        assert await page.value("document.getElementById('hive-head').value") == "1"  # what was chosen stays
        assert (await page.value(CLASSES), await page.value(COUNTS)) == expected("full", 1, ALL[1::2])
        await clean(page, page_file)

    browse(page_file, visit)


def test_colors_follow_the_slider(page_file):
    color = "getComputedStyle(document.querySelector('[data-i=\"{}\"]')).backgroundColor"

    async def visit(page):
        await page.value(
            "const style = document.createElement('style');"
            "style.textContent = '* { transition: none !important }';"
            "document.head.append(style);"
        )
        await page.until(READY)
        seen = {}
        for call in (0, 1, 3):
            await page.choose("#hive-step", call, "input")
            seen[call] = [await page.value(color.format(i)) for i in range(10)]
        assert seen[0][0] == seen[3][0]  # the first token stays in all heads
        assert len({seen[call][4] for call in (0, 1, 3)}) == 3  # this one leaves them one by one
        assert seen[0][1] == "rgba(0, 0, 0, 0)"  # gone everywhere, so without a color
        assert seen[0][6] != seen[1][6]  # read by the first call after the prompt
        heights = "document.querySelector('#hive-curve .line').getAttribute('d')"
        before = await page.value(heights)
        await page.choose("#hive-layer", "1", "change")
        assert await page.value(heights) != before
        await clean(page, page_file)

    browse(page_file, visit)


def test_a_token_tells_which_heads_hold_it(page_file):
    told = "['token-position', 'token-text', 'token-heads'].map((id) => document.getElementById(id).textContent)"

    async def visit(page):
        await page.until(READY)
        await page.choose("#hive-step", 1, "input")
        await page.value(
            "document.documentElement.style.scrollBehavior = 'auto';"
            "document.getElementById('hive-text').scrollIntoView()"
        )
        await page.hover("[data-i='4']")
        await page.until("document.getElementById('token-position').textContent.startsWith('4')")
        assert await page.value(told) == ["4, prompt", "\u2423hums", "Held by 3 of 4 heads, in 2 of 2 layers."]
        drawn = "document.getElementById('hive-matrix').getContext('2d')"
        pixels = await page.value(f"[...{drawn}.getImageData(0, 0, 32, 32).data]")
        grid = [pixels[4 * (32 * y + x) :][:4] for x, y in ((4, 4), (20, 4), (4, 20), (20, 20))]
        assert grid[0] == grid[1] == grid[3] != grid[2]  # layers go to the right: layer 0 has lost it in its head 1
        await page.value("document.getElementById('hive-text').focus()")
        await page.key("ArrowRight")
        assert await page.value(told) == ["5, prompt", "</script>", "Held by all 4 heads."]
        await page.key("End")
        assert (await page.value(told))[2] == "The last token is never read, so no cache holds it."
        await page.key("ArrowLeft")
        assert (await page.value(told))[2] == "Not read yet."
        await page.key("Home")
        await page.key("ArrowRight")
        assert (await page.value(told))[2] == "Held by none of 4 heads."
        assert await page.value("document.querySelector('.here').dataset.i") == "1"
        await clean(page, page_file)

    browse(page_file, visit)


def test_the_keyboard_moves_the_slider_and_the_button_plays(page_file):
    async def visit(page):
        await page.until(READY)
        assert await page.value("document.getElementById('hive-when').value") == "after the prompt"
        await page.value("document.getElementById('hive-step').focus()")
        await page.key("End")
        assert await page.value("document.getElementById('hive-when').value") == "after call 3 of 3"
        await page.key("ArrowLeft")
        assert await page.value("document.getElementById('hive-when').value") == "after call 2 of 3"
        await page.key("Home")
        assert (
            await page.value("document.getElementById('hive-step').getAttribute('aria-valuetext')")
            == "after the prompt"
        )
        await page.value("document.getElementById('hive-play').click()")
        assert await page.value("document.getElementById('hive-play').getAttribute('aria-label')") == "Pause"
        await page.until("document.getElementById('hive-when').value === 'after call 3 of 3'")
        assert await page.value("document.getElementById('hive-play').getAttribute('aria-label')") == "Play"
        await clean(page, page_file)

    browse(page_file, visit)


def test_answers_side_by_side(page_file):
    shown = "[...document.querySelectorAll('#samples-answers article p:first-of-type')].map((p) => p.textContent)"

    async def visit(page):
        await page.until("document.querySelectorAll('#samples-answers article').length === 2")
        assert await page.value(shown) == ["(empty)", "x"]  # the furthest from the full cache's, by ROUGE-L
        await page.choose("#samples-order", "data", "change")
        assert await page.value(shown) == ["The hive hums at night.", "The hive is full."]
        assert await page.value("document.querySelector('#samples-answers mark').textContent") == "The hive "
        await page.value("document.getElementById('samples-on').click()")
        assert await page.value(shown) == [NASTY, NASTY]
        assert await page.value("document.querySelector('#samples-reference p').textContent") == "reference 1"
        await page.choose("#samples-sample", "2", "change")
        assert await page.value(shown) == ["(empty)", "x"]
        assert await page.value("document.getElementById('samples-on').disabled")
        await clean(page, page_file)

    browse(page_file, visit)


# How large the smallest letters of each picture that is seen are, in pixels.
LETTERS = """[...document.querySelectorAll('.chart')].filter((chart) => chart.clientWidth > 0).map((chart) =>
  chart.clientWidth / chart.viewBox.baseVal.width
  * Math.min(...[...chart.querySelectorAll('text')].map((text) => parseFloat(getComputedStyle(text).fontSize))))"""
# Of every table: how far its names and its figures move when it is scrolled sideways as far as it goes.
MOVED = """[...document.querySelectorAll('.scroll')].map((box) => {
  const cells = ['tbody th:not([colspan])', 'td'].map((name) => box.querySelector(name));
  const places = () => cells.map((cell) => cell.getBoundingClientRect().left);
  const before = places();
  box.scrollLeft = 9999;
  const moved = places().map((place, i) => Math.round(before[i] - place));
  const far = box.scrollWidth - box.clientWidth;
  box.scrollLeft = 0;
  return [far, ...moved, getComputedStyle(cells[0]).position];
})"""


def test_pages_fit_and_are_read_whatever_the_screen(tmp_path):
    near_run(tmp_path / "runs" / "a", name="near")
    needle_run(tmp_path / "runs" / "b", name="needles")
    blocks = [[(256, 500.0 + 9 * i) for i in range(5)]] * 2
    reading = {name: texts(name, blocks, cached) for name, cached in (("full", 400.0), ("buzz-budget128", 100.0))}
    write_run(tmp_path / "runs" / "c", reading, "wikitext", name="reading")
    write_report([tmp_path / "runs"], tmp_path / "out")
    path = tmp_path / "out" / "report.html"

    async def visit(page):
        await page.until(READY)
        await page.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        sections = ["frontier", "run0", "run1", "run2", "hive", "answers", "about"]
        assert await page.value("[...document.querySelectorAll('section')].map((one) => one.id)") == sections
        ink = {}
        for width in (400, 1400):
            for dark in (False, True):
                await page.size(width, 900)
                await page.scheme(dark)
                assert await page.value("document.scrollingElement.scrollWidth <= innerWidth"), width
                red = await page.value("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
                assert (red < 60) == dark
                letters = await page.value(LETTERS)
                assert len(letters) == 3  # the frontier, a cache length and a perplexity, each for this width
                assert min(letters) >= 9
                ink[dark] = await page.value("getComputedStyle(document.querySelector('.chart text')).fill")
                moved = await page.value(MOVED)
                assert all(place == "sticky" and names == 0 and cells == far for far, names, cells, place in moved)
                assert any(far > 0 for far, *_ in moved) or width > 400
        assert ink[False] != ink[True]
        await clean(page, path)

    browse(path, visit)


def test_the_best_are_marked_and_the_full_cache_stands_apart(near_page):
    marked = "[...document.querySelectorAll('#results .scroll')[0].querySelectorAll('td.best')]"
    style = "getComputedStyle({}).{}"
    mark = f"getComputedStyle({marked}[0].querySelector('b'), '::before')"

    async def visit(page):
        await page.until(READY)
        rows = await page.value(f"{marked}.map((cell) => cell.parentElement.cells[0].textContent + cell.textContent)")
        assert [row.split("[")[0] for row in rows] == ["h2o0.256 ", "buzz0.181 "]  # s1 leaves them too near
        weight = await page.value(style.format(f"{marked}[0].querySelector('b')", "fontWeight"))
        assert int(weight) >= 700
        assert await page.value(f"[{mark}.width, {mark}.clipPath.slice(0, 7)]") == ["9px", "polygon"]
        assert await page.value(f"{marked}[0].textContent.endsWith(' best')")  # for those who hear the page
        colors = [
            await page.value(style.format(f"document.querySelector('#results {row} > tr > *')", "backgroundColor"))
            for row in (".reference", "tbody:not(.reference)")
        ]
        assert colors[0] != colors[1]
        await clean(page, near_page)

    browse(near_page, visit)


def test_answers_are_sorted_by_their_distance(near_page):
    shown = "[...document.querySelectorAll('#samples-answers h3')].map((title) => title.firstChild.data)"
    listed = "[...document.getElementById('samples-sample').options].map((option) => option.text)"

    async def visit(page):
        await page.until(READY)
        names = await page.value(listed)
        assert names[0] == "s1 \u00b7 KL to full 0.57"
        assert [name[:2] for name in names] == ["s1", "s7", "s6", "s5", "s4", "s3", "s2", "s0"]
        assert await page.value(shown) == ["full", "streaming", "buzz", "h2o"]
        await page.choose("#samples-of", "streaming", "change")
        assert [name[:2] for name in await page.value(listed)] == [f"s{i}" for i in range(7, -1, -1)]
        await page.choose("#samples-order", "near", "change")
        assert [name[:2] for name in await page.value(listed)] == [f"s{i}" for i in range(8)]
        assert await page.value(shown) == ["full", "buzz", "h2o", "streaming"]
        await page.choose("#samples-order", "data", "change")
        assert await page.value(listed) == [f"s{i}" for i in range(8)]
        assert await page.value(shown) == ["full", "h2o", "buzz", "streaming"]
        assert await page.value("document.getElementById('samples-of').parentElement.hidden")
        await clean(page, near_page)

    browse(near_page, visit)


def test_from_an_answer_to_its_hive_and_back(near_page):
    links = "[...document.querySelectorAll('#samples-answers a')]"
    method = "document.querySelector('[name=hive-method]:checked').value"

    async def visit(page):
        await page.until(READY)
        assert await page.value(f"{links}.length") == 0  # of s1 there is no recording
        assert await page.value(method) == "buzz"
        await page.value("document.getElementById('hive-answer').click()")
        assert await page.value("location.hash") == "#answers"
        assert (await page.value("document.getElementById('samples-sample').selectedOptions[0].text")).startswith("s0 ")
        assert await page.value("document.querySelector('.wanted h3').firstChild.data") == "buzz"
        assert await page.value(f"{links}.map((link) => link.parentElement.firstChild.data)") == ["full", "buzz"]
        await page.value(f"{links}[0].click()")
        assert await page.value("location.hash") == "#hive"
        await page.until("document.getElementById('hive-policy').textContent.startsWith('full')")
        assert await page.value(method) == "full"
        await clean(page, near_page)

    browse(near_page, visit)


def test_several_runs_have_a_picker(tmp_path):
    quick_run(tmp_path / "runs" / "one", name="one")
    other = {"full": answers("full", ["other text"], 400.0)}
    write_run(tmp_path / "runs" / "two", other, hives=["full"], name="two")
    write_report([tmp_path / "runs"], tmp_path / "out")
    path = tmp_path / "out" / "report.html"

    async def visit(page):
        await page.until(READY)
        await page.choose("#hive-run", "1", "change")
        await page.until("document.getElementById('hive-policy').textContent.startsWith('full')")
        assert await page.value("document.querySelectorAll('[name=hive-method]').length") == 1
        await page.choose("#samples-run", "1", "change")
        assert await page.value("document.querySelector('#samples-answers p').textContent") == "other text"
        await clean(page, path)

    browse(path, visit)
