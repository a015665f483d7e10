"""The report of an engine in headless Chromium: what it shows, and that it asks nobody for anything."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.models import MARKUP

pytestmark = pytest.mark.xdist_group("browser")  # one worker at most installs a browser
_MARGIN = 46  # of `Surface.fit`
OPEN_LIMIT_MS = 30_000
"""Far more than opening takes on an idle machine (docs/performance.md): a bound that a busy one keeps, too."""


def document(page: Any) -> dict[str, Any]:
    """The data of a page."""
    return json.loads(page.text_content("#document"))


def click_node(page: Any, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Click a box of the graph where it lies once the whole graph is shown; returns the box."""
    view = document(page)["views"][0]
    node = next(n for n in view["nodes"] if wanted(n))
    page.keyboard.press("0")
    box = page.locator("#graph").bounding_box()
    scale = min(1, (box["width"] - 2 * _MARGIN) / view["width"], (box["height"] - 2 * _MARGIN) / view["height"])
    left, top = ((box[side] - view[side] * scale) / 2 for side in ("width", "height"))
    x, y = node["x"] + view["node_width"] / 2, node["y"] + view["node_height"] / 2
    page.mouse.click(box["x"] + left + x * scale, box["y"] + top + y * scale)
    return node


def pixels(page: Any) -> str:
    """What is drawn of the graph."""
    page.wait_for_timeout(100)  # a frame
    return page.evaluate("document.querySelector('#graph').toDataURL()")


def test_opens_without_errors_or_requests(report_page: Path, open_page: Callable) -> None:
    opened = open_page(report_page)
    page = opened.page
    for tab in page.locator("[role=tab]").all():
        tab.click()
        page.wait_for_timeout(50)
    assert opened.errors == [] and opened.requests == []
    text = page.inner_text("#head")
    assert "asked for cpu fp32" in text and "Latency, median" in text and "Of the roofline" in text and "rel. L2" in text


def test_a_click_on_a_kernel_shows_source_and_nodes(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    steps = document(page)["steps"]
    node = click_node(page, lambda n: n["kind"] == "steps" and "/body/block0/conv/Conv" in steps[n["steps"][0]]["nodes"])
    step = steps[node["steps"][0]]
    panel = page.inner_text("#panel")
    assert all(name in panel for name in step["nodes"]) and len(step["nodes"]) > 1
    assert step["kernel"] in page.inner_text("#source") and "int64_t" in page.inner_text("#source")
    assert "Candidates" in panel and step["tactic"].split(".")[0] in panel
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()


def test_links_of_the_panel_follow_values(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    steps = document(page)["steps"]
    click_node(page, lambda n: n["kind"] == "steps" and "/fc/MatMul" in steps[n["steps"][-1]]["nodes"])
    assert "/fc/MatMul" in page.inner_text("#panel")
    page.locator("#panel .link").first.click()
    assert "/fc/MatMul" not in page.locator("#panel details").first.inner_text()


def test_search_finds_and_selects(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    before = pixels(page)
    page.keyboard.press("/")
    page.keyboard.type("block1/relu")
    assert page.inner_text("#hits").endswith("hit") or page.inner_text("#hits").endswith("hits")
    assert pixels(page) != before, "what does not fit fades"
    page.keyboard.press("Enter")
    assert "/body/block1/relu/Relu" in page.inner_text("#panel")
    page.fill("#search", "no such thing")
    assert page.inner_text("#hits") == "0 hits"


def test_zoom_and_pan_change_the_picture(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    whole = pixels(page)
    assert page.locator(".minimap").is_hidden(), "the whole is seen"
    for _ in range(5):
        page.keyboard.press("+")
    near = pixels(page)
    assert near != whole and page.locator(".minimap").is_visible()
    page.mouse.move(600, 500)
    page.mouse.down()
    page.mouse.move(500, 420, steps=4)
    page.mouse.up()
    moved = pixels(page)
    assert moved != near
    page.mouse.wheel(0, 400)
    assert pixels(page) != moved
    page.keyboard.press("0")
    page.mouse.move(5, 5)
    assert pixels(page) == whole


def test_arrow_keys_walk_the_graph(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    page.focus("#graph")
    seen = []
    for _ in range(4):
        page.keyboard.press("ArrowDown")
        seen.append(page.inner_text("#panel h2"))
    assert seen[0] == "x" and len(set(seen)) > 1
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#panel h2") == seen[-2]


def test_levels_and_colours_switch(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    views = document(page)["views"]
    assert len(views) > 1 and all(len(b["nodes"]) < len(a["nodes"]) for a, b in itertools.pairwise(views))
    pictures = {pixels(page)}
    for button in page.locator(".segments button").all():
        button.click()
        pictures.add(pixels(page))
        assert button.get_attribute("aria-pressed") == "true"
    assert len(pictures) >= 4


def test_memory_plan_is_drawn(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    page.click("#tab-memory")
    plan = document(page)["memory"]
    assert page.locator("rect.block").count() == len(plan["buffers"]) > 2
    named = next(n for n, b in enumerate(plan["buffers"]) if b["name"])
    page.locator("rect.block").nth(named).hover(force=True)
    tip = page.inner_text("#tip")
    assert plan["buffers"][named]["name"] in tip and "offset" in tip


def test_roofline_has_a_dot_per_kernel_that_computes(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    page.click("#tab-roofline")
    computing = [s for s in document(page)["steps"] if s["us"] and s["flops"]]
    assert page.locator("circle.dot").count() == len(computing) > 3
    page.locator("circle.dot").last.click()
    assert page.locator("#panel").is_visible() and page.locator("circle.chosen").count() == 1


def test_kernels_sort_by_any_column(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page).page
    page.keyboard.press("2")
    times = [s["us"] for s in document(page)["steps"]]
    first = page.locator(".body").first
    assert first.locator("[role=gridcell]").first.inner_text() == str(times.index(max(times))), "slowest first"
    page.locator("[role=columnheader] button", has_text="#").click()
    page.locator("[role=columnheader] button", has_text="#").click()
    assert first.locator("[role=gridcell]").first.inner_text() == "0"
    page.locator("[role=grid]").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".body[aria-selected=true]").count() == 1 and page.locator("#panel").is_visible()


def test_address_names_view_and_step(report_page: Path, open_page: Callable) -> None:
    page = open_page(report_page, "#kernels/1").page
    assert page.locator("#tab-kernels").get_attribute("aria-selected") == "true"
    assert document(page)["steps"][1]["kernel"] in page.inner_text("#panel")
    assert page.evaluate("location.hash") == "#kernels/1"


def test_follows_the_scheme_of_the_system(report_page: Path, open_page: Callable) -> None:
    colours = [open_page(report_page, scheme=s).page.evaluate("getComputedStyle(document.body).backgroundColor") for s in ("light", "dark")]
    assert colours[0] != colours[1]
    page = open_page(report_page).page
    page.click("[aria-label='Light or dark']")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colours[1]


def test_names_that_are_markup_stay_text(hostile_page: Path, open_page: Callable) -> None:
    opened = open_page(hostile_page)
    page = opened.page
    steps = document(page)["steps"]
    click_node(page, lambda n: n["kind"] == "steps" and any("MatMul" in name for name in steps[n["steps"][0]]["nodes"]))
    assert f"/a{MARKUP}/MatMul" in page.inner_text("#panel")
    page.mouse.move(700, 500)
    for tab in page.locator("[role=tab]").all():
        tab.click()
    page.fill("#search", "onerror")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked === undefined && document.images.length === 0")
    assert opened.errors == [] and opened.requests == []


def test_five_thousand_kernels_open(deep_page: Path, open_page: Callable, record_property: Callable) -> None:
    opened = open_page(deep_page)
    page = opened.page
    ready = int(page.evaluate("document.documentElement.dataset.ready"))
    record_property("summary", f"a report of {len(document(page)['steps'])} kernels was ready after {ready} ms")
    assert ready < OPEN_LIMIT_MS
    page.fill("#search", "matmul2500")
    page.focus("#search")
    page.keyboard.press("Enter")
    assert "matmul2500" in page.inner_text("#panel") and "int64_t" in page.inner_text("#source")
    page.keyboard.press("Escape")
    page.click("#tab-kernels")
    assert 10 < page.locator(".body").count() < 100, "only the rows that are seen are there"
    page.click("#tab-memory")
    assert page.locator("svg").count() == 1
    assert opened.errors == [] and opened.requests == []
