"""The explorer's page in a browser: every control is used and answers, nothing fails, nobody else is asked."""

from __future__ import annotations

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core.errors import DataError, RunError, SpecError
from varflow.explore.app import launch, page

#: Milliseconds from a slider to its picture, on an unloaded machine with two cores.
PROMISED = 150
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def test_without_gradio_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(DataError, match=r"gradio: is not installed; run: pip install 'varflow\[explore\]'"):
        page(["somewhere"])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with pytest.raises(RunError, match="holds no run"):
        page([tmp_path])
    with pytest.raises(SpecError, match="runs: there are none"):
        page([])
    with pytest.raises(SpecError, match="names: 2 for 1 runs"):
        page([tmp_path], names=("a", "b"))


# -- in a browser -------------------------------------------------------------------------------------

_SERVE = """
import sys, torch
torch.set_num_threads(1)
from varflow.explore.app import launch
launch(sys.argv[2:], port=int(sys.argv[1]))
"""
#: Moves a slider to a value and waits until what it answers with has changed; milliseconds.
_SLIDE = """async ([slider, view, value]) => {
  const input = document.querySelector(slider + ' input[type=range]'), target = document.querySelector(view);
  const before = target.innerHTML, begun = performance.now();
  const changed = new Promise((done, fail) => {
    const watch = new MutationObserver(() => {
      if (target.innerHTML !== before) { watch.disconnect(); done(); }
    });
    watch.observe(target, {childList: true, subtree: true, attributes: true, characterData: true});
    setTimeout(() => fail(new Error(view + ' has not changed')), 20000);
  });
  input.value = value;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  await changed;
  const picture = target.querySelector('img');
  // A newer answer may take its place while it is being decoded.
  for (let tries = 0; picture && tries < 50; tries++) {
    try { await picture.decode(); break; } catch (error) { if (tries === 49) throw error; }
  }
  return performance.now() - begun;
}"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small runs of every kind that has tabs of its own."""
    room = tmp_path_factory.mktemp("runs")
    data = os.environ.get("VARFLOW_DATA")
    quick: dict[str, Any] = {"steps": 40, "quiet": True}
    dense: dict[str, Any] = {"latent": 2, "flow": "planar", "length": 4, "amortized": True}
    if data and (Path(data) / "mnist").exists():
        vf.fit("dense", **dense, **quick, out=room / "plane")
    else:
        vf.fit("digits", hidden=400, **dense, **quick, out=room / "plane")
    vf.fit("digits", latent=4, hidden=32, leapfrog=3, **quick, out=room / "hvae")
    vf.fit("digits", latent=2, hidden=32, **quick, out=room / "small")
    vf.fit("energy", length=6, **quick, out=room / "energy")
    g = np.random.default_rng(0)
    rows = [f"{g.choice(['f', 'm'])},{g.integers(0, 4)},{g.normal(50, 10):.3f},{g.normal():.4f}" for _ in range(300)]
    table = room / "t.csv"
    table.write_text("sex,dose,age,marker\n" + "\n".join(rows) + "\n")
    # The base alone is the best of these rows, and a flow that is the identity has nothing to show.
    bent = {"prior_length": 2, "lr": 0.02, "keep": "last"}
    vf.fit("conditional-density", table, condition=("sex", "dose"), **bent, **quick, out=room / "table")
    spec = vf.recipes.find("vq-pixelcnn").spec.preset(
        blocks=1, scales=1, codes=6, code_features=4, steps=6, batch=16, prior_channels=8, prior_length=1,
        prior_kernel=3, prior_hidden=8, prior_epochs=1, classes=3,
    )  # fmt: skip
    x = torch.randint(0, 256, (48, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data_of_codes = vf.data.from_tensor(x, torch.arange(48) % 3, protocol="symmetric")
    vf.fit(spec, data_of_codes, quiet=True, out=room / "codes")
    return {path.name: path for path in room.iterdir() if path.is_dir()}


class Page:
    """A page that is served by a process of its own, and looked at in a browser of its own."""

    def __init__(self, browser: Any, folders: list[Path], width: int = 1200) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(port), *map(str, folders)], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.address = f"http://127.0.0.1:{port}/"
        self.faults: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.tab = self.context.new_page()
        self.tab.on("console", lambda m: self.faults.append(f"console: {m.text}") if m.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.faults.append(f"page: {error}"))
        self.tab.on("request", self._ask)
        deadline = time.monotonic() + 120
        while True:
            try:
                self.tab.goto(self.address)
                break
            except Exception:
                assert time.monotonic() < deadline, "the page is not served"
                assert self.server.poll() is None, self.server.stdout and self.server.stdout.read()
                time.sleep(0.5)
        self.tab.wait_for_selector(".vf-head")

    def _ask(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.faults.append(f"asked another host: {request.url}")

    def open(self, name: str) -> None:
        self.tab.get_by_role("tab", name=name, exact=True).first.click()

    def slide(self, slider: str, view: str, value: float) -> float:
        """Milliseconds."""
        self.tab.wait_for_selector(f"#{slider} input[type=range]")
        self.tab.wait_for_selector(f"#{view} .prose", state="attached")
        found: float = self.tab.evaluate(_SLIDE, [f"#{slider}", f"#{view} .prose", value])
        return found

    def changes(self, view: str, act: Any) -> None:
        """``act()`` changes what ``view`` shows."""
        place = self.tab.locator(f"#{view} .prose")
        before = place.inner_html()
        act()
        deadline = time.monotonic() + 30
        while place.inner_html() == before:
            assert time.monotonic() < deadline, f"{view} has not changed"
            self.tab.wait_for_timeout(50)

    def end(self) -> None:
        """Close it; nothing may have gone wrong."""
        self.close()
        assert not self.faults, "\n".join(self.faults)

    def close(self) -> None:
        self.context.close()
        self.server.terminate()
        self.server.communicate(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


Serve = Callable[..., Page]


@pytest.fixture
def serve(browser: Any) -> Iterator[Serve]:
    """Pages that are closed whatever becomes of the test."""
    pages: list[Page] = []

    def served(*folders: Path, width: int = 1200) -> Page:
        pages.append(Page(browser, list(folders), width))
        return pages[-1]

    yield served
    for each in pages:
        if each.server.poll() is None:
            each.close()


@pytest.mark.slow
def test_latents_flow_and_own_pictures(serve: Serve, folders: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    shown = serve(folders["plane"])
    tab = shown.tab
    assert [t.inner_text() for t in tab.get_by_role("tab").all()][:5] == [
        "Latents",
        "A to B",
        "Flow",
        "Your own",
        "Draws",
    ]
    shown.slide("latent-0-0", "latent-view-0", -1.0)
    times = [shown.slide(f"latent-{k % 2}-0", "latent-view-0", -2 + 0.17 * k) for k in range(20)]
    load = os.getloadavg()[0]
    print(
        f"\nslider to picture: median {statistics.median(times):.0f} ms, most {max(times):.0f} ms (load {load:.1f})"
    )
    assert statistics.median(times) <= PROMISED or load > 2

    def drag() -> None:
        box = tab.locator("#plane-0 .vf-plane").bounding_box()
        tab.mouse.move(box["x"] + 30, box["y"] + 30)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 150, box["y"] + 260, steps=6)
        tab.mouse.up()

    shown.changes("latent-view-0", drag)
    tab.get_by_text("Start from an example").click()
    shown.changes("latent-view-0", lambda: tab.locator("#latent-go-0").click())
    style = tab.locator(".vf-style").first
    before = style.inner_html()
    tab.get_by_label("training rows").check()
    tab.wait_for_function("before => document.querySelector('.vf-style').innerHTML !== before", arg=before)

    shown.open("A to B")

    def click(x: float, y: float) -> None:
        box = tab.locator("#two-0 .vf-plane").bounding_box()
        tab.mouse.click(box["x"] + x, box["y"] + y)

    shown.changes("between-view-0", lambda: click(40, 50))
    assert "click where B" in tab.locator("#between-view-0").inner_text()
    shown.changes("between-view-0", lambda: click(300, 200))
    assert tab.locator("#between-view-0 img").count() == 9
    shown.slide("between-steps-0", "between-view-0", 5)
    assert tab.locator("#between-view-0 img").count() == 5
    shown.changes("between-view-0", lambda: tab.get_by_label("sphere").check())

    shown.open("Flow")
    for step in (0, 1, 2, 4):
        shown.slide("flow-step-0", "flow-view-0", step)
    assert "After step 4 of 4" in tab.locator("#flow-view-0").inner_text()
    shown.changes("flow-view-0", lambda: tab.get_by_label("grid").uncheck())
    shown.slide("flow-example-0", "flow-view-0", 3)

    shown.open("Your own")
    shown.changes("own-view-0", lambda: tab.locator("#own-draw-0").click())
    shown.changes("own-view-0", lambda: tab.locator("#own-row-0").click())
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "own.png")
    shown.changes(
        "own-view-0", lambda: tab.locator("#upload-0 input[type=file]").set_input_files(tmp_path / "own.png")
    )
    assert "resized from 50 × 40" in tab.locator("#own-view-0").inner_text()
    assert "nats" in tab.locator("#own-score-0").inner_text()
    shown.changes("own-view-0", lambda: tab.get_by_label("swap light and dark").check())
    assert tab.locator("#own-near-0 img").count() == 5

    shown.open("Draws")
    shown.slide("draws-seed-0", "draws-view-0", 5)
    shown.changes("draws-view-0", lambda: tab.get_by_label("means, without").uncheck())
    shown.end()


@pytest.mark.slow
def test_trajectories_directions_and_side_by_side(serve: Serve, folders: dict[str, Path]) -> None:
    shown = serve(folders["hvae"], folders["small"])
    tab = shown.tab
    shown.slide("side-number", "side-left", 7)
    assert re.search(r"Left less right: [+-]", tab.locator("#side-told").inner_text())
    shown.open("1. hvae")
    shown.slide("latent-0-0", "latent-view-0", 1.5)
    # Another direction: the point stays, its slider and the plane follow.
    label = tab.locator("#latent-0-0").inner_text()
    choice = tab.get_by_label("To the right").first
    choice.click()
    tab.get_by_role("option").nth(2).click()
    tab.wait_for_function("before => document.querySelector('#latent-0-0').innerText !== before", arg=label)
    shown.slide("latent-0-0", "latent-view-0", 1.2)
    shown.open("Trajectories")
    for step in (0, 1, 3):
        shown.slide("leapfrog-0", "trajectory-view-0", step)
    shown.changes("trajectory-strip-0", lambda: shown.slide("momenta-0", "trajectory-view-0", 4))
    shown.open("2. small")
    shown.slide("latent-0-1", "latent-view-1", 1.0)
    shown.end()


@pytest.mark.slow
def test_tables_under_conditions(serve: Serve, folders: dict[str, Path], tmp_path: Path) -> None:
    shown = serve(folders["table"], width=390)
    tab = shown.tab
    shown.slide("latent-0-0", "latent-view-0", 1.0)
    # A flow of a few updates hardly reads its conditions, so it is the answer that is waited for.
    with tab.expect_response(lambda response: "run/predict" in response.url) as answer:
        tab.get_by_label("given dose").fill("3")
        tab.keyboard.press("Tab")
    assert answer.value.ok
    assert "vf-trouble" not in answer.value.text()
    shown.open("Flow")
    shown.slide("flow-step-0", "flow-view-0", 1)
    shown.open("Your own")
    typed = tab.locator("#typed-0 textarea")
    typed.fill("sex,dose,age,marker\nf,1,44.5,0.25")
    shown.changes("own-score-0", lambda: tab.locator("#score-0").click())
    assert "log p(x)" in tab.locator("#own-score-0").inner_text()
    typed.fill("sex,dose,age,marker\nf,1,old,0.25")
    shown.changes("own-view-0", lambda: tab.locator("#score-0").click())
    assert tab.locator("#own-view-0 .vf-trouble").count() == 1
    assert "age" in tab.locator("#own-view-0 .vf-trouble").inner_text()
    (tmp_path / "rows.csv").write_text("sex,dose,age,marker\nm,0,30,1\nf,2,60,-1\n")
    shown.changes(
        "own-view-0", lambda: tab.locator("#upload-0 input[type=file]").set_input_files(tmp_path / "rows.csv")
    )
    shown.open("Draws")
    shown.slide("draws-seed-0", "draws-view-0", 2)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    shown.end()


@pytest.mark.slow
def test_energies_and_codes(serve: Serve, folders: dict[str, Path]) -> None:
    shown = serve(folders["energy"])
    assert [t.inner_text() for t in shown.tab.get_by_role("tab").all() if t.is_visible()] == ["Flow"]
    for step in (0, 3, 6):
        shown.slide("flow-step-0", "flow-view-0", step)
    shown.end()
    shown = serve(folders["codes"])
    shown.open("Draws")
    shown.slide("temperature-0", "draws-view-0", 0.4)
    # A prior of six updates hardly tells its classes apart, so it is the answer that is waited for.
    shown.tab.locator("#class-0 input").click()
    with shown.tab.expect_response(lambda response: "run/predict" in response.url) as answer:
        shown.tab.get_by_role("option", name="1", exact=True).click()
    assert answer.value.ok
    assert "vf-trouble" not in answer.value.text()
    shown.end()


# Gradio leaves sockets and files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_it_is_served_to_this_machine_alone_and_a_taken_port_is_said(folders: dict[str, Path]) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=rf"port: 127.0.0.1:{port} cannot be listened on"):
            launch([folders["small"]], host="127.0.0.1", port=port, block=False)
