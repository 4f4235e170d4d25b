"""Pages in a browser: what is under the pointer is what is shown; nothing is asked of anybody; nothing sticks out."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.evaluation import Evaluation

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = pytest.mark.slow

#: What sticks out of the page to the right; what scrolls by itself may be wider.
STICKS_OUT = """() => {
  const width = document.documentElement.clientWidth;
  return [...document.querySelectorAll("body *")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && box.right > width + 1 && !one.closest(".scroll, .frame, svg, .spoken, .tip");
  }).map((one) => `${one.tagName} ${one.className}`);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    with sync_playwright() as tool:
        if not path and not os.path.exists(tool.chromium.executable_path):
            pytest.skip("there is no Chromium here")
        found = tool.chromium.launch(executable_path=path or None, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with a flow, a table with names, an energy, and a comparison of two runs of digits."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"latent": 2, "hidden": 16, "layers": 1, "threads": 1, "quiet": True}
    for name, settings in {"digits": {"flow": "planar", "length": 2}, "plain": {}}.items():
        run = vf.fit("digits", epochs=1, out=folder / name, **small, **settings)
        run.evaluate(samples=5, limit=20)
    vf.load(folder / "digits").report("few")
    lines = [f"{20 + k % 7}.5,{'oak' if k % 2 else 'elm'},{k % 11}" for k in range(80)]
    (folder / "trees.csv").write_text("height,kind,age\n" + "\n".join(lines) + "\n")
    vf.fit("table", str(folder / "trees.csv"), steps=3, out=folder / "table", **small).report("few")
    energy = vf.fit(
        "energy", target="u1", steps=420, length=2, samples=16, threads=1, quiet=True, out=folder / "energy"
    )
    energy.report("few")
    from varflow.runs.comparison import compare
    from varflow.runs.side_by_side import write

    write(compare([folder / "plain", folder / "digits"]), folder / "compared")
    return folder


def opened(browser: Any, path: Path, width: int = 1280, **more: Any) -> tuple[Any, list[str]]:
    """A page, and what it should not have said or asked for."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **more).new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append(asked.url))
    page.goto(path.as_uri())
    return page, wrong


def pixels(page: Any) -> np.ndarray:
    from PIL import Image

    source = page.evaluate("document.querySelector('.tip canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("L"))


def point_at(page: Any, example: int, panel: int = 0) -> None:
    place = page.locator(f"svg >> nth={panel} >> [data-i='{example}']").bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)


def test_the_picture_under_the_pointer_is_that_of_the_point(browser: Any, runs: Path) -> None:
    page, wrong = opened(browser, runs / "digits" / "report.html")
    raw = vf.load(runs / "digits").dataset.raw("validation").numpy()
    box = page.locator(".points")
    for example, panel in ((0, 0), (17, 1), (63, 0)):
        page.mouse.move(2, 2)
        point_at(page, example, panel)
        # Where two points are near, the nearer one of the two is told.
        seen = int(box.get_attribute("data-shown"))
        shown = pixels(page)
        side = shown.shape[0] // 8
        np.testing.assert_allclose(shown[side // 2 :: side, side // 2 :: side], raw[seen, 0] * (255 / 16), atol=1)
        rings = page.locator(".points .ring").evaluate_all(
            "all => all.map((one) => [one.getAttribute('cx'), one.getAttribute('visibility')])"
        )
        places = page.locator(f"[data-i='{seen}']").evaluate_all("all => all.map((one) => one.getAttribute('cx'))")
        assert rings == [[place, "visible"] for place in places]
    assert not wrong


def test_keys_go_from_point_to_point_and_classes_can_be_picked(browser: Any, runs: Path) -> None:
    page, wrong = opened(browser, runs / "digits" / "report.html")
    page.keyboard.press("Tab")
    first = page.locator(".points").get_attribute("data-shown")
    page.keyboard.press("ArrowRight")
    second = page.locator(".points").get_attribute("data-shown")
    assert None not in (first, second)
    assert first != second
    x = [float(page.locator(f"svg >> nth=1 >> [data-i='{k}']").get_attribute("cx")) for k in (first, second)]
    assert x[1] > x[0]
    assert page.locator("[aria-live]").inner_text().endswith(f"validation row {second}")
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()
    page.locator(".legend button").first.click()
    assert page.locator(".points g.dim").count() == 2 * (page.locator(".legend button").count() - 1)
    assert not wrong


def test_the_row_under_a_finger_is_told_by_column(browser: Any, runs: Path) -> None:
    page, wrong = opened(browser, runs / "table" / "report.html", 390, has_touch=True)
    page.locator("svg [data-i='3']").first.scroll_into_view_if_needed()
    place = page.locator("svg [data-i='3']").first.bounding_box()
    page.touchscreen.tap(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    seen = int(page.locator(".points").get_attribute("data-shown"))
    data = vf.load(runs / "table").dataset
    number = int(data.origins("validation", torch.arange(seen + 1))[-1])
    cells = dict(
        page.locator(".tip tr").evaluate_all(
            "all => all.map((one) => [one.cells[0].innerText, one.cells[1].innerText])"
        )
    )
    height, kind, age = (runs / "trees.csv").read_text().splitlines()[number + 1].split(",")
    assert cells == {"height": height, "kind": kind, "age": age}
    assert not wrong


def test_a_film_runs_pauses_and_rests_where_motion_is_not_wanted(browser: Any, runs: Path) -> None:
    path = runs / "energy" / "report.html"
    calm, wrong = opened(browser, path, reduced_motion="reduce")
    assert calm.locator(".film button").inner_text() == "Play"
    assert calm.locator(".film output").inner_text() == "step 420"
    drawn = calm.locator(".film canvas").evaluate("one => one.toDataURL()")
    calm.locator(".film input").fill("0")
    assert calm.locator(".film output").inner_text() == "step 0"
    assert calm.locator(".film canvas").evaluate("one => one.toDataURL()") != drawn
    page, more = opened(browser, path)
    from playwright.sync_api import expect

    # The page evaluates no text as a program, so that the text is waited for from outside.
    expect(page.locator(".film output")).to_have_text("step 200", timeout=20_000)
    page.locator(".film button").click()
    held = page.locator(".film canvas").evaluate("one => one.toDataURL()")
    page.wait_for_timeout(300)
    assert page.locator(".film canvas").evaluate("one => one.toDataURL()") == held
    page.emulate_media(media="print")
    assert page.locator(".film canvas").is_hidden()
    assert page.locator(".film .still").is_visible()
    assert not wrong + more


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(browser: Any, runs: Path, width: int, scheme: str) -> None:
    for name in ("digits/report.html", "table/report.html", "energy/report.html", "compared/comparison.html"):
        page, wrong = opened(browser, runs / name, width, color_scheme=scheme)
        assert page.evaluate(STICKS_OUT) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not wrong
        page.context.close()


def test_paper_shows_what_is_folded(browser: Any, runs: Path) -> None:
    page, wrong = opened(browser, runs / "digits" / "report.html")
    setting = page.get_by_role("cell", name="weight_decay", exact=True)
    assert setting.is_hidden()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert setting.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert setting.is_hidden()
    assert not wrong


def test_the_numbers_beside_the_pictures_are_those_of_the_evaluation(browser: Any, runs: Path) -> None:
    page, wrong = opened(browser, runs / "digits" / "report.html")
    found = Evaluation.load(runs / "digits").estimates
    cards = page.locator(".card b").all_inner_texts()
    assert cards == [found[name].figures() for name in ("nll", "elbo", "bits_per_dim")]
    assert not wrong
