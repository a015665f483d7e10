"""The pictures of docs/report.md, taken of a report.

    dovetail report resnet50.plan -o report.html
    python -m tests.browser.pictures report.html -o docs/report
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def graph(page: Any) -> None:
    """The whole fused graph by time."""
    page.keyboard.press("0")


def kernel(page: Any) -> None:
    """A kernel: where it is, why it was chosen, its source."""
    page.click("#tab-graph")
    page.fill("#search", "winograd layer3.3")
    page.press("#search", "Enter")
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('#panel').scrollTop = 640")


def kernels(page: Any) -> None:
    """All kernels, the slowest first."""
    page.keyboard.press("Escape")
    page.click("#tab-kernels")


def roofline(page: Any) -> None:
    """Speed over arithmetic intensity."""
    page.click("#tab-roofline")


def memory(page: Any) -> None:
    """Buffers over steps."""
    page.click("#tab-memory")
    page.locator("rect.block").nth(3).hover(force=True)


PICTURES: tuple[tuple[Callable[[Any], None], str], ...] = (
    (graph, "light"), (kernel, "dark"), (kernels, "light"), (roofline, "dark"), (memory, "light"),
)  # fmt: skip


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/report"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        path = os.environ.get("DOVETAIL_CHROMIUM") or shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=path, args=_FLAGS)
        for show, scheme in PICTURES:
            page = browser.new_page(viewport={"width": 1360, "height": 800}, color_scheme=scheme)
            page.goto(args.report.resolve().as_uri())
            page.wait_for_selector("html[data-ready]", state="attached")
            show(page)
            page.wait_for_timeout(300)
            target = args.output / f"{show.__name__}.jpg"
            page.screenshot(path=target, type="jpeg", quality=64)
            print(f"{target}: {target.stat().st_size // 1024} KiB")
        browser.close()


if __name__ == "__main__":
    main()
