"""The report in a browser, opened from the disk with the network off: desk, phone and print, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import language
from pipeline.report.html.contents import CellMaterial, Material
from tests.unit.made_records import said
from tests.unit.test_report_html import CELLS, HOSTILE, SECTIONS, curve, four_cells, rendered

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

DESK, PHONE = {"width": 1200, "height": 900}, {"width": 320, "height": 640}


@dataclass
class Opened:
    """A page and what the browser had to say about it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)


Opener = Callable[..., Opened]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four cells with all that a report can have."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(made())
    return path


def made() -> str:
    proofs = [{"knob": "cache_type_k", "asked": asked, "arrived": asked, "effective": asked, "state": "confirmed"}
              for asked in ("f16", "q8_0")]
    meters = [{"meter": "gpu", "absent": "no NVIDIA driver"}]
    cells = {name: CellMaterial(1, [curve(1), curve(2)], 3, "", [proofs[name.endswith("on")]], meters,
                                {"kernel": "6.1"}, "--- turn 1\nThe tide " * 200) for name in CELLS}
    return rendered(four_cells(), Material(cells, [("oneshot-gpu", "this machine has no GPU")], {"shuffle_seed": 42}),
                    command="slackwater run experiment=tide " + "key=value " * 30)[0]


@pytest.fixture
def opened(chromium: Any) -> Iterator[Opener]:
    contexts = []

    def open_(path: Path, scheme: str = "light", **options: Any) -> Opened:
        context = chromium.new_context(color_scheme=scheme, offline=True, **{"viewport": DESK, **options})
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: found.complaints.append(dialog.message))
        found.page.on("request", lambda request: found.asked_for.append(request.url))
        found.page.goto(path.as_uri())
        return found

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("name", "options"), [
    ("desk-light", {}), ("desk-dark", {"scheme": "dark"}), ("phone-light", {"viewport": PHONE}),
    ("phone-dark", {"viewport": PHONE, "scheme": "dark"})])
def test_it_opens_from_disk_alone_fits_and_axe_finds_nothing_serious(
        name: str, options: dict[str, Any], report: Path, opened: Opener, shoot: Callable[..., None]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: "
                              "pip install -r tests/requirements.lock")
    found = opened(report, **options)
    page = found.page
    assert [url for url in found.asked_for if url != report.as_uri()] == []
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
    for section in SECTIONS:
        assert page.locator(f"section#{section}").is_visible()
    assert page.locator("figure svg[role=img]:visible").count() >= 10
    shoot(page, f"report-{name}", whole=True)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width[1]
    judged = axe.Axe().run(page).response
    assert len(judged["passes"]) > 20
    violations = [one for one in judged["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"]) for one in violations] == []
    assert found.complaints == []


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_text_in_pictures_is_large_enough_to_read_and_none_leaves_its_picture(
        viewport: dict[str, int], report: Path, opened: Opener) -> None:
    found = opened(report, viewport=viewport)
    texts = found.page.evaluate("""() => [...document.querySelectorAll('figure svg text')].map(text => {
        const own = text.getBoundingClientRect(), picture = text.ownerSVGElement.getBoundingClientRect();
        const scale = picture.width / text.ownerSVGElement.viewBox.baseVal.width;
        return {text: text.textContent, px: scale * parseFloat(text.getAttribute('font-size')), width: own.width,
                over: Math.max(own.right - picture.right, picture.left - own.left)}})
        .filter(text => text.width > 0)""")
    assert len(texts) > 100
    assert min(texts, key=lambda one: one["px"])["px"] >= 8.5
    assert [one["text"] for one in texts if one["over"] > 8] == []


def test_in_print_pictures_are_wide_on_white_and_nothing_is_clickable(
        report: Path, opened: Opener, tmp_path: Path) -> None:
    found = opened(report, scheme="dark")
    found.page.emulate_media(media="print")
    assert found.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert not found.page.locator("nav").is_visible()
    assert found.page.locator(".wide svg").first.is_visible()
    found.page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert found.complaints == []


def test_hostile_text_stays_text(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    cells = {name: CellMaterial(1, [curve(1)], 1, response=HOSTILE * 100) for name in CELLS}
    path.write_text(rendered([replace(one, notes=[said(HOSTILE)]) for one in four_cells()], Material(cells),
                             question=HOSTILE, command=HOSTILE)[0])
    found = opened(path)
    assert "<script>alert(1)</script>" in found.page.inner_text("h1")
    assert found.page.locator("script, img").count() == 0
    assert found.complaints == []
    assert found.asked_for == [path.as_uri()]


def test_the_keyboard_reaches_the_answer_first_and_then_every_table(
        report: Path, opened: Opener) -> None:
    page = opened(report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_url("**#answer", timeout=10_000)
    reached = set()
    for _press in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    tables = page.locator("[role=region][tabindex='0']:visible")
    assert tables.count() >= 4
    assert {tables.nth(n).get_attribute("aria-label") for n in range(tables.count())} <= reached


def test_it_speaks_japanese(opened: Opener, tmp_path: Path, shoot: Callable[..., None]) -> None:
    language.speak("ja")
    try:
        (tmp_path / "report.html").write_text(made())
    finally:
        language.speak("en")
    for name, viewport in (("desk", DESK), ("phone", PHONE)):
        found = opened(tmp_path / "report.html", viewport=viewport)
        assert found.page.get_attribute("html", "lang") == "ja"
        assert found.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        shoot(found.page, f"report-ja-{name}", whole=True)
    assert "再実行の方法" in found.page.inner_text("main")
