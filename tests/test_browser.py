"""The comparison page as a browser shows it: drawn, quiet, inside the window, and answering to clicks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import many_runs
import pytest
import test_groups
import test_runs
from browsing import CHROMIUM, WIDTHS, browser, reading
from test_report import HISTORY
from test_swept import GRID, write_sweep

from qtarget.compare.command import compare
from qtarget.compare.watch import HOST, LivePage, serve
from qtarget.lens.command import lens

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/browser/install.sh (Debian, as root)"),
]

KINDS = ("runs", "groups", "sweep", "many", "many_groups")
LONG = "a_design_with_a_name_that_is_much_too_long_for_a_phone"
OUTSIDE = """() => [...document.querySelectorAll("main :not(svg *), main svg text")].filter((part) => {
  const { left, right } = part.getBoundingClientRect();  // of an svg the texts count: its lines are cut at its axes
  return !part.closest(".scroll") && (right > innerWidth + 1 || left < -1);
}).map((part) => part.outerHTML.slice(0, 80))"""
EMPTY = """() => [...document.querySelectorAll(".plot")].filter((plot) => {
  const points = plot.querySelectorAll(".mark, .line, .cell rect");
  return ![...points].some((point) => point.getBoundingClientRect().width + point.getBoundingClientRect().height > 1);
}).map((plot) => plot.id)"""
TOUCHING = """() => [...document.querySelectorAll(".plot svg")].flatMap((svg) => {
  const texts = [...svg.querySelectorAll(".ticks text:not([transform]), .x-title, .y-title")];
  const boxes = texts.map((text) => ({ text: text.textContent, ...text.getBoundingClientRect().toJSON() }));
  const touch = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => touch(a, b)).map((b) => `${a.text} / ${b.text}`));
})"""
SMALLEST = """() => Math.min(...[...document.querySelectorAll("main *")]
  .filter((part) => [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
  .map((part) => parseFloat(getComputedStyle(part).fontSize)))"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    write_runs(root / "runs")
    write_groups(root / "groups")
    write_sweep(root / "sweep", GRID)
    for file in root.glob("*/*/metrics.jsonl"):
        file.write_text(HISTORY)
    many_runs.write_many(root / "many")
    many_runs.write_many(root / "many_groups", many_runs.DESIGNS[:3], (0.0, 0.2, 0.4), seeds=3)
    compare([root / "many"], format="csv")
    compare([root / "many_groups"], format="csv", group_by=["target", "data.noise.rate"])
    compare([root / "runs"], format="csv")
    compare([root / "groups"], format="csv", group_by=["target", "data.noise.rate"], against=["target=sft"])
    compare([root / "sweep"], format="csv")
    return {kind: root / kind / "report.html" for kind in KINDS}


def write_runs(folder: Path) -> None:
    for place, name in enumerate(("base", "sft", LONG)):
        role = "base" if name == "base" else "design"
        test_runs.write_run(folder, name, f"{place:012x}", 0.1 + place / 4, role=role)
        test_groups.save_samples(folder / f"{place:012x}", [test_groups.sample(row, row > 1) for row in range(4)])
    test_runs.write_run(folder, "gem", "f" * 12, status="failed", error="x" * 400, overrides=["target=" + "y" * 400])


def write_groups(folder: Path) -> None:
    """Runs with judged answers, which test_groups writes, and a history."""
    for rate, right in ((0.0, 4), (0.2, 3), (0.4, 1)):
        for seed in (0, 1):
            test_groups.write_run(folder, "sft", seed, [row < right for row in range(4)], rate)
            test_groups.write_run(folder, LONG, seed, [row < 2 + seed for row in range(4)], rate)
    for result in folder.glob("*/result.json"):
        told = json.loads(result.read_text())
        result.write_text(json.dumps(told | {"rows": {"train": 10, "noisy": 4, "heldout": 4}}))
        (result.parent / "metrics.jsonl").touch()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_drawn_and_fits_the_window(
    chromium: Browser, reports: dict[str, Path], kind: str, width: str, tmp_path: Path
) -> None:
    with reading(chromium, reports[kind], width) as page:
        assert page.evaluate(EMPTY) == []
        assert page.evaluate(TOUCHING) == []
        page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(SMALLEST) >= 11


@pytest.mark.parametrize("kind", KINDS)
def test_plots_follow_the_window(chromium: Browser, reports: dict[str, Path], kind: str) -> None:
    with reading(chromium, reports[kind], "desktop") as page:
        before = plot_widths(page)
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_function("before => document.querySelector('.plot svg').clientWidth < before", arg=before[0])
        page.wait_for_function(f"() => !({OUTSIDE})().length")
        assert max(plot_widths(page)) <= 390
        assert page.evaluate(EMPTY) == []


def plot_widths(page: Page) -> list[int]:
    widths: list[int] = page.evaluate("() => [...document.querySelectorAll('.plot svg')].map((svg) => svg.clientWidth)")
    return widths


def test_a_name_hides_its_run_in_every_plot(chromium: Browser, reports: dict[str, Path]) -> None:
    traces = "() => [...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('.trace').length)"
    with reading(chromium, reports["runs"], "phone") as page:
        before = page.evaluate(traces)
        name = page.locator(".keys button", has_text="sft")
        name.click()
        assert name.get_attribute("aria-pressed") == "false"
        hidden = page.evaluate(traces)
        assert all(less < all_of_them for less, all_of_them in zip(hidden, before, strict=True))
        name.click()
        assert page.evaluate(traces) == before


def test_names_of_groups_are_not_those_of_runs(chromium: Browser, reports: dict[str, Path]) -> None:
    shown = "key => document.querySelectorAll(`#plot-${key} .trace`).length"
    with reading(chromium, reports["groups"], "desktop") as page:
        before = {key: page.evaluate(shown, key) for key in ("curve-0", "means", "accuracy")}
        page.locator(".keys button").first.click()
        after = {key: page.evaluate(shown, key) for key in before}
    assert (before["curve-0"], before["means"]) == (2, 6)
    assert after == {"curve-0": 1, "means": 3, "accuracy": before["accuracy"]}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_over_the_heatmap_shows_other_keys(chromium: Browser, reports: dict[str, Path], width: str) -> None:
    with reading(chromium, reports["sweep"], width) as page:
        choice = page.locator("select")
        titles = (
            "() => [...document.querySelectorAll('#plot-heat-0 :is(.x-title, .y-title)')].map((t) => t.textContent)"
        )
        assert page.evaluate(titles) == ["optim.lr", "target.alpha"]
        choice.select_option(index=1)
        page.wait_for_function(f"() => ({titles})()[1] === 'target/residual'")
        assert page.evaluate(EMPTY) == []
        assert page.evaluate(OUTSIDE) == []


def test_fifty_runs_are_ten_lines_of_five_colours(chromium: Browser, reports: dict[str, Path]) -> None:
    """Five designs at two noise rates from five seeds: a colour a design, a dash a rate, single seeds on pointing."""
    looks = """() => [...document.querySelectorAll('#plot-progress .trace .line')]
      .map((line) => [line.getAttribute('stroke'), line.getAttribute('stroke-dasharray')])"""
    assert reports["many"].stat().st_size < 1_500_000
    with reading(chromium, reports["many"], "desktop") as page:
        lines = page.evaluate(looks)
        assert (len(lines), len({colour for colour, _ in lines}), len({dash for _, dash in lines})) == (10, 5, 2)
        assert page.locator("#plot-progress .band").count() == 10
        mark = page.locator("#plot-progress .trace .mark").first
        mark.scroll_into_view_if_needed()
        box = mark.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert page.locator("#plot-progress .member").count() == 5


def test_the_reader_chooses_the_metric_and_the_x_axis(chromium: Browser, reports: dict[str, Path]) -> None:
    with reading(chromium, reports["many"], "phone") as page:
        choice = page.locator("select[data-plot='plot-metric-0']")
        choice.select_option(label="train/entropy")
        title = "() => document.querySelector('#plot-metric-0 .y-title').textContent"
        assert page.evaluate(title) == "train/entropy"
        last = "() => [...document.querySelectorAll('#plot-nll .ticks text')].map((text) => text.textContent)"
        assert "200" in page.evaluate(last)
        for choice_of_x, title_of_x in (("tokens", "tokens read"), ("seconds", "seconds since the start")):
            page.locator("select[data-x]").select_option(choice_of_x)
            assert "200" not in page.evaluate(last)
            assert title_of_x in str(page.locator("#plot-nll .x-title").first.text_content())
        assert page.evaluate(TOUCHING) == []
        assert page.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_histograms_and_calibration_are_drawn_whatever_the_curves_stand_over(
    chromium: Browser, reports: dict[str, Path], width: str
) -> None:
    """Five designs at two rates; of calibration the dotted diagonal, too, which no name hides."""
    shown = "#plot-metric-0"
    with reading(chromium, reports["many"], width) as page:
        page.locator("select[data-x]").select_option("tokens")
        choice = page.locator("select[data-plot='plot-metric-0']")
        for label, x_title, lines in (("w at the end of training", "w", 10), ("Calibration", "confidence (%)", 11)):
            choice.select_option(label=label)
            assert page.locator(f"{shown} .trace .line").count() == lines
            assert page.locator(f"{shown} .band").count() == 10
            assert page.locator(f"{shown} .x-title").first.text_content() == x_title
            assert page.evaluate(TOUCHING) == []
            assert page.evaluate(OUTSIDE) == []


def test_pointing_at_a_mark_says_what_it_is(chromium: Browser, reports: dict[str, Path]) -> None:
    with reading(chromium, reports["runs"], "desktop") as page:
        mark = page.locator("#plot-accuracy .trace .mark").last
        mark.scroll_into_view_if_needed()
        box = mark.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tip = page.locator(".chart-tip")
        assert tip.inner_text().splitlines()[0] == "sft"
        assert tip.inner_text().splitlines()[1].startswith("35.0 % [")
        page.mouse.move(0, 0)
        assert not tip.is_visible()


def test_ticks_of_values_that_lie_close_together_are_told_apart(chromium: Browser, tmp_path: Path) -> None:
    history = [{"step": step, "train/nll": 0.9962 + 1e-6 * step, "target/gap": 0.9962} for step in range(1, 9)]
    test_runs.write_run(tmp_path, "sft", "a" * 12, history="\n".join(map(json.dumps, history)))
    compare([tmp_path], format="csv")
    with reading(chromium, tmp_path / "report.html", "phone") as page:
        assert page.evaluate(TOUCHING) == []
        texts = page.locator("#plot-nll .ticks text[text-anchor=end]").all_text_contents()
        assert len(texts) > 2
        assert len(set(texts)) == len(texts)


def test_dragging_looks_closer_and_a_double_click_goes_back(chromium: Browser, reports: dict[str, Path]) -> None:
    """Steps 5 to 15 to begin with; then a part of them; then all again."""
    ticks = "() => [...document.querySelectorAll('#plot-nll .grid path')].length"
    with reading(chromium, reports["runs"], "desktop") as page:
        path = "() => document.querySelector('#plot-nll .trace .line').getAttribute('d')"
        before = page.evaluate(path)
        plot = page.locator("#plot-nll")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 100, steps=3)
        page.mouse.up()
        assert page.evaluate(path) != before
        assert page.evaluate(ticks) > 2
        page.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 100)
        assert page.evaluate(path) == before


def test_a_click_on_a_header_sorts(chromium: Browser, reports: dict[str, Path]) -> None:
    names = "() => [...document.querySelectorAll('#results tbody tr')].map((row) => row.cells[0].innerText.trim())"
    with reading(chromium, reports["runs"], "desktop") as page:
        head = page.locator("#results button", has_text="accuracy")
        head.click()
        assert page.evaluate(names) == [LONG, "sft", "base"]
        head.click()
        assert page.evaluate(names) == ["base", "sft", LONG]


def write_record(folder: Path) -> None:
    """A run whose lens.jsonl has three steps of two tokens, whose other token has a long name."""
    test_runs.write_run(folder.parent, "sft", folder.name)
    rows = [{"row": 3, "tokens": [["What is " + LONG * 3 + "?", 0], ["2", 2], ["<|end|>", 1]]}]
    token = {"q": 1.0, "trust": 1.0, "reliance": 1.0, "weight": 1.0}
    steps = [
        {
            "step": step,
            "texts": {"7": LONG},
            "rows": [[{**token, "p": p, "trust": trust, "top": [[7, 1 - p, 0.0]]} for _ in range(2)]],
        }
        for step, p, trust in ((0, 0.2, 1.0), (5, 0.5, 0.5), (10, 0.8, 0.1))
    ]
    text = "".join(json.dumps(line) + "\n" for line in ({"rows": rows}, *steps))
    (folder / "lens.jsonl").write_text(text)


@pytest.fixture(scope="module")
def lens_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lens")
    assert lens([f"out={folder}"]) == 0
    return folder / "lens.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_lens_is_drawn_and_its_names_show_and_hide(chromium: Browser, lens_page: Path, width: str) -> None:
    traces = "() => document.querySelectorAll('#plot-target .trace').length"
    assert lens_page.stat().st_size < 2_000_000  # 43 designs
    with reading(chromium, lens_page, width) as page:
        few = page.evaluate(traces)
        assert page.evaluate(TOUCHING) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        page.locator("#all").click()
        assert page.evaluate(traces) > few
        page.locator("#none").click()
        assert page.evaluate(traces) == 1  # Q = p
        page.locator("#slider").fill("40")
        assert page.locator("#where").inner_text().startswith("p(y) = ")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_slider_moves_the_tokens_and_bars_of_a_run(chromium: Browser, tmp_path: Path, width: str) -> None:
    write_record(tmp_path / "run")
    assert lens([str(tmp_path / "run"), f"out={tmp_path}"]) == 0
    strip = "() => [...document.querySelectorAll('.token')].map((token) => token.style.background)"
    with reading(chromium, tmp_path / "training.html", width) as page:
        before, first = page.evaluate(strip), page.locator(".bar .value").first.inner_text()
        page.locator("#slider").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#where").inner_text() == "step 5 of 10"
        page.keyboard.press("End")
        assert page.locator("#where").inner_text() == "step 10 of 10"
        assert page.evaluate(strip) != before
        assert (first, page.locator(".bar .value").first.inner_text()) == ("0.200 → 1.000", "0.800 → 1.000")
        page.locator("[data-quantity='p']").click()
        page.locator(".token").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".bar .name").nth(1).inner_text() == LONG
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(SMALLEST) >= 11


def test_a_watched_page_moves_on_and_keeps_what_was_chosen(chromium: Browser, tmp_path: Path) -> None:
    for name in ("sft", "dft"):
        folder = test_runs.write_run(tmp_path, name, name * 4, history=HISTORY)
    server = serve(LivePage([tmp_path], every=0.2))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = chromium.new_page()
    page.goto(f"http://{HOST}:{server.server_address[1]}")
    page.locator(".keys button", has_text="sft").click()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 99, "train/nll": 0.5}')
    page.wait_for_function(
        "() => [...document.querySelectorAll('#plot-nll .ticks text')].some((t) => t.textContent === '100')"
    )
    assert [name.strip() for name in page.locator(".keys button[aria-pressed='false']").all_inner_texts()] == ["sft"]
    server.shutdown()
    server.server_close()
    page.close()
