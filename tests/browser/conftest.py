"""A headless Chromium for the tests of pages: found, or installed, or else the tests are skipped with the reason.

It is looked for in $DOVETAIL_CHROMIUM, on the PATH, and among playwright's own. Where there is none, Debian's package is installed
(as root), else playwright's. Every page is opened with all its requests watched: none may leave the file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import dovetail
from tests.browser.models import deep_model, hostile_model, small_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'dovetail[dev]'")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_INSTALL_S = 300


@dataclass
class Opened:
    """A page in the browser, with what it said and asked for: both must stay empty."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests; each page gets an empty profile of its own."""
    with playwright.sync_playwright() as driver:
        try:
            path = _chromium(driver)
        except (OSError, RuntimeError) as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no Chromium, and none could be installed: {error}")
        found = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


def _chromium(driver: Any) -> str:
    """The path of a Chromium, which is installed if need be."""
    given = os.environ.get("DOVETAIL_CHROMIUM")
    if given:
        return given

    def present() -> str | None:
        own = driver.chromium.executable_path
        return next((p for p in map(shutil.which, _NAMES) if p), None) or (own if Path(own).is_file() else None)

    failures = []
    commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        commands.insert(0, ["sh", "-c", "apt-get install -y -q chromium || { apt-get update -q && apt-get install -y -q chromium; }"])
    for command in [[], *commands]:
        if command:
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
                failures.append(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
            except subprocess.TimeoutExpired:
                failures.append(f"{' '.join(command)}: took more than {_INSTALL_S} s")
        path = present()
        if path:
            return path
    raise RuntimeError("; ".join(failures))


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Open a file and wait until the page is ready."""
    contexts = []

    def open_file(path: Path, address: str = "", scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": 1440, "height": 860}, color_scheme=scheme)
        context.set_default_timeout(120_000)  # of loading, too; the machine may be busy
        contexts.append(context)
        opened = Opened(context.new_page())
        url = path.resolve().as_uri()

        def intercept(route: Any) -> None:
            if route.request.url.partition("#")[0] == url:
                route.continue_()
            else:
                opened.requests.append(route.request.url)
                route.abort()

        context.route("**/*", intercept)
        opened.page.on("console", lambda message: opened.errors.append(message.text) if message.type in ("error", "warning") else None)
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.goto(url + address)
        # By a selector: a function would be polled by eval, which the page's security policy forbids.
        opened.page.wait_for_selector("html[data-ready]", state="attached")
        return opened

    yield open_file
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small engine, tuned, verified and timed."""
    folder = tmp_path_factory.mktemp("report")
    engine = dovetail.build(small_model())
    engine.save_report(folder / "small.html")
    return folder / "small.html"


@pytest.fixture(scope="session")
def deep_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an engine of more than 5,000 kernels, built as any other."""
    folder = tmp_path_factory.mktemp("deep")
    engine = dovetail.build(deep_model(5010), tune=False, verify="off")
    assert engine.report().data["native_steps"] > 5000
    engine.save_report(folder / "deep.html", run=False)
    return folder / "deep.html"


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a model all of whose names are markup."""
    folder = tmp_path_factory.mktemp("hostile")
    engine = dovetail.build(hostile_model(), tune=False)
    engine.save_report(folder / "hostile.html", run=False)
    return folder / "hostile.html"
