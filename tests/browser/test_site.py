"""The documentation's site in a browser, from the disk with the network off. `make docs` builds it; skipped without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SITE = ROOT / "build" / "docs"
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def offline(chromium: Any) -> Iterator[Any]:
    """A browser page without a network; what it asks for is in `page.asked`."""
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: make docs")
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nobody_and_fits_a_desk_and_a_phone(
        name: str, offline: Any, shoot: Callable[..., None]) -> None:
    for kind, width in (("desk", 1200), ("phone", 320)):
        offline.set_viewport_size({"width": width, "height": 900})
        offline.goto(Path(SITE / f"{name}.html").as_uri())
        assert offline.evaluate("document.documentElement.scrollWidth") <= width, kind
        assert offline.locator("h1").count() == 1
        if name in ("index", "metrics"):
            shoot(offline, f"site-{name}-{kind}")
    assert [address for address in offline.asked if not address.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_serious_accessibility_fault(name: str, offline: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    offline.set_viewport_size({"width": 390, "height": 900})
    offline.goto(Path(SITE / f"{name}.html").as_uri())
    faults = axe.Axe().run(offline).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults
            if fault["impact"] in ("serious", "critical")] == []


def test_the_metric_dictionary_and_the_commands_are_in_the_site(offline: Any) -> None:
    offline.goto(Path(SITE / "metrics.html").as_uri())
    assert offline.get_by_text("<phase>/tree_rss_mib", exact=True).count() == 1
    assert offline.get_by_text("<!-- generated -->").count() == 0
    offline.goto(Path(SITE / "commands.html").as_uri())
    assert "--fail-if LIMIT" in offline.inner_text("article")
