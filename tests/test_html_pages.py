"""The pages: what they draw is what was estimated, and can be read on light and dark paper; the demonstration."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import varflow as vf
from varflow.evaluation import Estimate
from varflow.report import colours
from varflow.report.forest import WIDE, forests
from varflow.report.points import ticks
from varflow.runs import demo

STYLE = Path(colours.__file__).with_name("templates") / "style.css"


def difference(value: float, error: float | None) -> Estimate:
    return Estimate("difference in elbo", value, error, 0.01, 10, 5, "nats", "pairs", "digits", 0)


def test_a_forest_puts_values_and_intervals_on_one_scale() -> None:
    values = ((2.0, 0.5), (-1.0, None), (float("inf"), 1.0))
    found = [{"elbo": difference(*one)} for one in values]
    words = {(name, "elbo"): name.upper() for name in "abc"}
    (forest,) = forests("first", list("abc"), found, {"elbo": "ELBO"}, words)
    # From −1 to 2 + 1.96 · 0.5, with a margin of 6 % to both sides.
    high = 2 + WIDE * 0.5
    margin = 0.06 * (high + 1)

    def place(value: float) -> float:
        return 100 * (value + 1 + margin) / (high + 1 + 2 * margin)

    a, b, c = forest.branches
    assert a.at == pytest.approx(place(2), abs=0.01)
    assert a.narrow == pytest.approx((place(1.5), place(2.5)), abs=0.01)
    assert a.wide == pytest.approx((place(2 - WIDE / 2), place(high)), abs=0.01)
    assert forest.zero == pytest.approx(place(0), abs=0.01)
    assert (b.at, b.narrow, b.wide) == (pytest.approx(place(-1), abs=0.01), None, None)
    assert (c.at, c.narrow, c.value) == (None, None, "C")
    assert forest.told == "Right of 0: a higher bound than that of first"
    for at, label in forest.ticks:
        assert at == pytest.approx(place(float(label.replace("−", "-"))), abs=0.01)


def test_no_difference_at_all_stands_in_the_middle() -> None:
    (forest,) = forests("a", ["b"], [{"kl": difference(0.0, 0.0)}], {"kl": "KL"}, {("b", "kl"): "0"})
    assert forest.zero == forest.branches[0].at == 50.0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 3.2), (1e-9, 3e-9), (-1e5, 2e6), (9.99, 10.0)])
def test_ticks_are_few_round_and_inside(low, high) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-12 * abs(low) <= at <= high + 1e-12 * abs(high) for at in found)
    steps = {round((b - a) / (high - low), 9) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1
    assert f"{(found[1] - found[0]):.0e}"[0] in "125"


def inks(dark: bool) -> dict[str, str]:
    """The colours of a scheme, by name."""
    text = STYLE.read_text()
    schemes = re.findall(r":root \{([^}]*)\}", text)
    pairs = [re.findall(r"--([\w-]+): (#\w+)", scheme) for scheme in schemes[: 2 if dark else 1]]
    return {name: "#" + "".join(c * 2 for c in v[1:]) if len(v) == 4 else v for one in pairs for name, v in one}


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_paper(dark) -> None:
    ink = inks(dark)
    for paper in ("paper", "tint", "mark"):
        for word in ("ink", "soft", "accent"):
            if (word, paper) != ("accent", "mark"):
                found = colours.contrast(colours.parts(ink[word]), colours.parts(ink[paper]))
                assert found >= 4.5, (word, paper, found)
    assert (colours.DARK if dark else colours.LIGHT) == ink["paper"]


def test_classes_can_be_told_from_the_paper_and_from_each_other() -> None:
    for count in (2, 8, 10, 24):
        found = colours.of_classes(count)
        for number, paper in enumerate((colours.LIGHT, colours.DARK)):
            each = [pair[number] for pair in found]
            assert all(colours.contrast(colours.parts(c), colours.parts(paper)) >= 3 for c in each)
            assert len(set(each)) == count
    assert colours.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Path, list[str]]:
    """The demonstration with one energy and two small models of the plane; no reports."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "ENERGIES", demo.ENERGIES[:1])
        patched.setattr(demo, "MODELS", {2: ("Gaussian", "planar flow")})
        patched.setattr(demo, "_SAMPLES", 5)
        patched.setattr(demo, "_DRAWS", 200)
        patched.setattr("varflow.runs.run.Run.report", _film_alone)
        small = {"steps": 420, "length": 2, "samples": 16}
        page = demo.demo(tmp_path_factory.mktemp("demo"), 1, 0, said.append, quiet=True, **small)
    return page, [str(line) for line in said]


def _film_alone(run: vf.Run, figures: str = "all") -> Path:
    from varflow.figures import target_gallery
    from varflow.runs.folder import snapshots

    assert run.folder is not None
    if run.infers_target:
        target_gallery(run.model, run.metrics, run.folder / "figures", snapshots(run.folder), names=())
    return run.folder / "report.html"


def test_the_demonstration_shows_before_it_tells(shown) -> None:
    text = shown[0].read_text()
    heads = re.findall(r"<h[23]>(.*?)</h[23]>", text)
    assert heads[:-1] == [
        "Energies, and a flow that finds each", "One digit plane under three posteriors", "Gaussian",
        "planar flow", "Latents before and after the flow", "planar flow", "The numbers",
    ]  # fmt: skip
    assert heads[-1].startswith("What took how long: ")
    assert not re.search(r"https?:", text)
    assert "step" in text


def test_the_numbers_of_the_demonstration_are_those_of_the_evaluations(shown) -> None:
    page = shown[0]
    text = page.read_text()
    folders = ("digits-2-gaussian", "digits-2-planar-flow")
    plain, planar = (vf.evaluation.Evaluation.load(page.parent / folder) for folder in folders)
    rows = re.findall(r'<tr><td>2</td><td><a href="(.*?)/report.html">(.*?)</a></td>(.*?)</tr>', text)
    assert [(folder, name) for folder, name, _ in rows] == [
        ("digits-2-gaussian", "Gaussian"), ("digits-2-planar-flow", "planar flow"),
    ]  # fmt: skip
    for (_, _, cells), found in zip(rows, (plain, planar), strict=True):
        values = re.findall(r'<td class="whole">(.*?)</td>', cells)
        assert values[:2] == [found.estimates[name].figures() for name in ("elbo", "nll")]
    assert values[2] == vf.evaluation.paired(planar, plain, "log_px").figures()
    target = vf.evaluation.Evaluation.load(page.parent / "energy-u1", "target")
    assert f"KL(q‖p) = {target.estimates['kl_q_p'].number()} nats" in text


def test_the_demonstration_tells_its_stages_with_their_seconds(shown) -> None:
    lines = shown[1]
    assert lines[0] == "stage 1 of 4: energy u1, a flow of 32 planar steps"
    assert lines[2] == "stage 2 of 4: digits, 2 latents, posterior: Gaussian"
    assert all(re.search(r"\d\.\d s \(\d+ s so far\)$", line) for line in lines[1::2])
    assert len(lines) == 8
