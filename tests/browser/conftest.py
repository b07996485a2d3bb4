"""What tests in a browser need: Debian's Chromium, a store made by a real sweep, and MLflow's page on it.

Screenshots go to $SLACKWATER_SCREENSHOTS, else to build/screenshots of this checkout: to look at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWEEP = ("mode=oneshot", "infer_os=off,on", "repetitions=2", "max_tokens=8", "settle.window_s=0.5", "clear=none",
         "meter.rate_hz=20",
         "question=What do the flags save?")
"""Two cells, two repetitions: all that a view has to show, in 15 s; a machine full of tests keeps this rate."""


@dataclass
class Visit:
    """A page of the browser, and what it asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Served:
    """MLflow's page on a store: the address that `slackwater ui` prints, and when it answered."""

    address: str
    printed_s: float
    answered_s: float

    @property
    def root(self) -> str:
        """The server."""
        return self.address.split("/#")[0]


@pytest.fixture(scope="session")
def playwright() -> Any:
    """Playwright's package, where Chromium is there too: before any sweep is run for a page that nobody can look at."""
    found = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: "
                                "pip install -r tests/requirements.lock")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt install chromium")
    return found


@pytest.fixture(scope="module")
def chromium(playwright: Any) -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def swept(playwright: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store with one real sweep in it, all its trials valid: if need be after some tries."""
    for _ in range(4):
        folder = tmp_path_factory.mktemp("swept")
        uri = f"sqlite:///{folder}/mlflow.db"
        done = subprocess.run([sys.executable, "-m", "pipeline", "run", *SWEEP, f"tracking.uri={uri}", "-q"], cwd=ROOT,
                              env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        if "all valid" in done.stdout:
            break
    return uri


@pytest.fixture(scope="session")
def served(swept: str) -> Iterator[Served]:
    """`slackwater ui` on that store."""
    import requests

    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "pipeline", "ui", "--no-browser", "--store", swept, "--port", "0"],
                          cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ui:
        assert ui.stdout is not None
        said = ""
        while not (found := re.search(r"http://\S+", said)):
            line = ui.stdout.readline()
            assert line, said
            said += line
        printed_s = time.monotonic() - began
        while True:
            assert ui.poll() is None, ui.stdout.read()
            try:
                if requests.get(found[0].split("/#")[0] + "/health", timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                time.sleep(0.05)
        yield Served(found[0], printed_s, time.monotonic() - began)
        ui.terminate()


@pytest.fixture(scope="module")
def visit(chromium: Any) -> Iterator[Callable[[str], Visit]]:
    """Opens an address; pages of one module share a cache."""
    context = chromium.new_context(viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(120_000)  # a machine whose host takes the CPU away is ten times slower
    # MLflow opens its assistant on a first visit; a user closes it once
    context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")

    def go(address: str) -> Visit:
        visit = Visit(context.new_page())
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.goto(address)
        return visit

    yield go
    context.close()


@pytest.fixture(scope="module")
def shoot() -> Callable[..., None]:
    """Keeps a picture of a page under a name; `whole`: all of it, not only what is on the screen."""
    folder = Path(os.environ.get("SLACKWATER_SCREENSHOTS") or ROOT / "build" / "screenshots")

    def take(page: Any, name: str, whole: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(folder / f"{name}.png"), full_page=whole)

    return take
