"""The report: one page that needs nothing else, and says what is missing."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from varflow import RunSpec, figures
from varflow.core.errors import RunError
from varflow.evaluation import Estimate
from varflow.figures.gallery_film import film
from varflow.figures.gallery_points import sheet
from varflow.report import page
from varflow.report.page import command, write_report
from wellformed import Page

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/a.png>"
SHEET = sheet(np.zeros((3, 1, 4, 4), np.uint8))
#: Three examples of two classes; what the gallery writes.
POINTS = {
    "title": "Latents",
    "caption": "One draw each.",
    "panels": [
        {"title": "", "axes": ["z, 1", "z, 2"], "window": [-2, 2, -2, 2], "points": [[0, 0], [2, 2], [-2, -2]]}
    ],
    "contours": True,
    "names": ["row 5", "row 7", "row 9"],
    "labels": [0, 1, 0],
    "classes": ["cat", "dog"],
    "sheet": SHEET,
    "columns": ["weight", "kind"],
    "rows": [["1", "a"], ["2", "b"], ["3", "missing"]],
}
FILM = film(
    "U1", np.eye(8), (-1.0, 1.0, -1.0, 1.0), [(200 * k, torch.tensor([[0.1 * k, 0.2], [3.0, 0.0]])) for k in range(3)]
)


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def put(folder: Path, name: str, value) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def estimate(name: str, value: float, **changes) -> Estimate:
    return Estimate(
        name, value, 0.25, 0.02, 100, 250, "nats", "mean of log w", "digits, dynamic", 0, **changes
    )


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with everything but an evaluation and figures."""
    spec = RunSpec().replace(data="digits", flow="planar", latent=2, epochs=3)
    put(tmp_path, "spec.json", spec.to_dict())
    put(tmp_path, "run.json", {"recipe": "digits", "own_parts": [], "outcome": {"step": 20}})
    put(tmp_path, "data.json", {"name": "digits", "protocol": "dynamic", "sizes": {"test": 250}})
    put(tmp_path, "environment.json", {"torch": "2.13", "engine": {"threads": 2}})
    rows = [
        {
            "step": k,
            "epoch": k / 10,
            "split": s,
            "elbo": -30.0 + k,
            "log_likelihood": -20.0,
            "kl": 4.0,
        }
        for k in range(0, 21, 5)
        for s in ("train", "validation")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def quick(run: Path) -> Path:
    """The same without records, so that no curves are drawn."""
    (run / "metrics.jsonl").unlink()
    return run


def test_missing_pieces_are_said(run: Path) -> None:
    page = read(run)
    assert "Not evaluated yet" in page.text
    assert "No figures have been drawn" in page.text
    assert "validation ELBO of -10.00 nats at step 20" in page.text
    # The learning curves are drawn for the page where no gallery was.
    assert [image["alt"] for image in page.all("img")] == ["Learning curves"]


def test_a_bare_spec_is_enough(tmp_path: Path) -> None:
    put(tmp_path, "spec.json", RunSpec().to_dict())
    page = read(tmp_path)
    assert "No metrics have been recorded" in page.text
    assert "data.json is not in the folder" in page.text
    assert "environment.json is not in the folder" in page.text


def test_sections_come_in_the_order_of_interest(run: Path) -> None:
    text = write_report(run).read_text()
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        "Results", "Figures", "Training", "Configuration", "Data", "Environment", "How to reproduce",
    ]  # fmt: skip
    # Settings, data and environment are folded; how to get the same again is not.
    assert re.findall(r"<details( open)?><summary><h2>(.*?)</h2>", text) == [
        ("", "Configuration"), ("", "Data"), ("", "Environment"), (" open", "How to reproduce"),
    ]  # fmt: skip


def test_estimates_lead_with_both_errors_and_what_they_mean(run: Path) -> None:
    estimates = [
        estimate("elbo", -90.25),
        estimate("nll", 88.5, khat=0.125),
        estimate("bits_per_dim", 1.5),
        estimate("of another name", float("inf")),
    ]
    values = {"estimates": {e.name: e.to_dict() for e in estimates}}
    put(run, "evaluation/test.json", values)
    page = read(run)
    assert "Not evaluated yet" not in page.text
    assert "test split" in page.text
    for shown in ("88.50 ± 0.25", "-90.25 ± 0.25", "0.02", "12.5%", "of another name", "inf"):
        assert shown in page.text
    # First −log p(x), then the ELBO, then bits/dim.
    assert page.text.index("88.50") < page.text.index("-90.25") < page.text.index("1.50")
    assert "standard error over the examples" in page.text
    assert "digits, dynamic" in page.text


@pytest.mark.parametrize("split", ["test", "validation", "target", "test-gaps", "test-annealed"])
def test_notes_of_every_evaluation_are_told(quick: Path, split: str) -> None:
    values = {"estimates": {"elbo": estimate("elbo", -90.25).to_dict()}, "notes": ["k̂ is high"]}
    put(quick, f"evaluation/{split}.json", values)
    text = read(quick).text
    assert "Note: k̂ is high" in text
    assert ("Target: digits, dynamic" in text) == (split == "target")
    assert ("Protocol: digits, dynamic" in text) == (split != "target")


def test_figures_are_embedded_in_order_and_curves_stand_with_training(run: Path) -> None:
    figure, _ = figures.canvas(1, 1, 3, 2)
    for name in ("samples", "latents", "curves"):
        figures.save(figure, run / "figures" / f"{name}.png", dpi=20)
    index = [
        {"file": f"{name}.png", "title": name.title(), "caption": f"about {name} < 1"}
        for name in ("samples", "curves", "latents", "lost")
    ]
    put(run, "figures/index.json", index)
    page = read(run)
    images = page.all("img")
    assert [image["alt"] for image in images] == ["Samples", "Latents", "Learning curves"]
    # The first stands ahead of the numbers, the others after them.
    heads = re.findall(r"<h[23]>(.*?)</h[23]>", (run / "report.html").read_text())
    assert heads[:4] == ["Samples", "Results", "Figures", "Latents"]
    kind, _, blob = images[0]["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(blob) == (run / "figures" / "samples.png").read_bytes()
    assert (images[0]["width"], images[0]["height"]) == ("36", "24")
    assert "about samples < 1" in page.text
    assert "lost.png is listed, but not in the folder" in page.text


def test_an_index_shows_nothing_from_elsewhere_and_no_other_kind_of_file(run: Path) -> None:
    (run / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    put(run, "figures/index.json", [{"file": "../secret.png"}, {"file": "text.png"}])
    (run / "figures" / "text.png").write_text("no picture")
    page = read(run)
    assert [image["alt"] for image in page.all("img")] == ["Learning curves"]
    assert "secret.png is listed, but not in the folder" in page.text
    assert "text: not a PNG" in page.text


def test_hostile_names_are_text(run: Path) -> None:
    put(run, "spec.json", RunSpec().replace(data=HOSTILE, epochs=1).to_dict())
    put(run, "data.json", {"name": HOSTILE, HOSTILE: HOSTILE})
    put(run, "environment.json", {"processor": HOSTILE, "nested": {HOSTILE: [HOSTILE]}})
    put(
        run, "run.json", {"recipe": HOSTILE, "own_parts": [HOSTILE], "outcome": {"reason": HOSTILE}}
    )
    hostile = Estimate(HOSTILE, 1.0, 0.1, 0.1, 1, 1, HOSTILE, HOSTILE, HOSTILE, 0).to_dict()
    put(run, "evaluation/test.json", {"estimates": {HOSTILE: hostile}})
    figures.save(figures.canvas(1, 1, 1, 1)[0], run / "figures" / "a.png", dpi=20)
    put(run, "figures/index.json", [{"file": "a.png", "title": HOSTILE, "caption": HOSTILE}])
    put(run, "figures/points.json", {**POINTS, "title": HOSTILE, "names": [HOSTILE] * 3, "classes": [HOSTILE] * 2})
    text = write_report(run).read_text()
    page = Page(text)
    # Ours, and what it reads.
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    told = text.partition('<script type="application/json">')[2].partition("</script>")[0]
    assert json.loads(told)["names"] == [HOSTILE] * 3
    assert "<" not in told
    assert len(page.all("img")) == 3
    assert page.text.count("<script>alert('x')</script>") >= 8


def test_nothing_is_fetched(quick: Path) -> None:
    put(quick, "figures/points.json", POINTS)
    put(quick, "figures/film.json", FILM)
    text = write_report(quick).read_text()
    page = Page(text)
    assert not re.search(r"https?:", text)
    addresses = [value for _, own in page.tags for name, value in own.items() if name in ("src", "href")]
    assert all(value.startswith("data:image/") for value in addresses)
    assert not page.all("link")
    assert "@import" not in text
    assert "url(" not in text
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert len(page.all("img")) == 4


def test_a_page_runs_our_script_alone(quick: Path) -> None:
    text = write_report(quick).read_text()
    policy = next(meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta)
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_every_picture_has_words_headings_come_in_order_and_ids_are_unique(quick: Path) -> None:
    put(quick, "figures/points.json", POINTS)
    put(quick, "figures/film.json", FILM)
    page = read(quick)
    assert all("alt" in image for image in page.all("img"))
    # What stands behind another picture of the same says nothing itself.
    assert [image.get("class") for image in page.all("img") if not image["alt"]] == ["under"]
    for tag in ("svg", "canvas"):
        drawn = [one for one in page.all(tag) if one.get("role") == "img"]
        assert drawn
        assert all(one.get("aria-label") for one in drawn)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_points_stand_where_they_are_and_tell_what_they_are_of(quick: Path) -> None:
    put(quick, "figures/points.json", POINTS)
    text = write_report(quick).read_text()
    page = Page(text)
    circles = [circle for circle in page.all("circle") if "data-i" in circle]
    assert [int(circle["data-i"]) for circle in circles] == [0, 2, 1]
    # The window is −2 … 2 in both directions, 398 units wide, from 52 and 10 on; upwards is less.
    assert [(float(c["cx"]), float(c["cy"])) for c in circles] == [(52 + 199, 10 + 199), (52, 408), (450, 10)]
    told = json.loads(text.partition('<script type="application/json">')[2].partition("</script>")[0])
    assert told["sheet"] == {"across": 3, "width": 4, "height": 4}
    assert [told["classes"][label] for label in told["labels"]] == ["cat", "dog", "cat"]
    assert told["rows"] == [["1", "a"], ["2", "b"], ["3", "missing"]]
    assert "cat" in page.text
    assert "weight" in text
    # The picture of the same is left out.
    assert "Latents" in page.text
    heads = re.findall(r"<h[23]>(.*?)</h[23]>", text)
    assert heads[:2] == ["Latents", "Results"]


def test_a_film_shows_its_target_and_its_last_frame(quick: Path) -> None:
    put(quick, "figures/film.json", FILM)
    text = write_report(quick).read_text()
    page = Page(text)
    (slider,) = page.all("input")
    assert (slider["min"], slider["max"]) == ("0", "2")
    assert "2 draws of q, fitted to U1, after 400 steps" in [image["alt"] for image in page.all("img")]
    told = json.loads(text.partition('<script type="application/json">')[2].partition("</script>")[0])
    assert told == [{"steps": [0, 200, 400], "draws": 2, "places": FILM["places"]}]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("points", {"labels": [0, 1]}),
        ("points", {"labels": [0, 1, 2]}),
        ("points", {"rows": [["1", "a"]]}),
        ("points", {"panels": [{**POINTS["panels"][0], "window": [1, 1, 0, 2]}]}),
        ("points", {"sheet": {**POINTS["sheet"], "source": "data:text/html;base64,PHA+"}}),
        ("film", {"steps": [0, 200]}),
        ("film", {"target": "http://evil.example/a.png"}),
        ("film", {"places": "?"}),
    ],
)
def test_points_and_films_that_do_not_fit_together_are_refused(quick: Path, name: str, changes) -> None:
    held = POINTS if name == "points" else FILM
    put(quick, f"figures/{name}.json", {**held, **changes})
    with pytest.raises(RunError, match=f"{name}.json: not what varflow wrote"):
        write_report(quick)


def test_changed_settings_are_marked(quick: Path) -> None:
    text = write_report(quick).read_text()
    marked = re.findall(r'<tr class="changed"><td[^>]*>(.*?)</td>', text)
    assert marked == ["data", "latent", "flow", "epochs"]
    assert "<td>mnist</td>" in text


def test_parts_given_in_python_are_told(quick: Path) -> None:
    put(quick, "run.json", {"own_parts": ["likelihood"], "data_given": True})
    text = read(quick).text
    assert "Given in Python: likelihood" in text
    assert "call varflow.fit with the same objects" in text


def test_a_line_cut_off_by_a_crash_is_left_out(run: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "split": "validation", "elb')
    assert "at step 20" in read(run).text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spec.json", "{", "cannot be read as JSON"),
        ("spec.json", "[1]", "holds a list"),
        ("evaluation/test.json", "{}", "no estimates"),
        ("evaluation/test.json", '{"estimates": {"elbo": {"value": 1}}}', "missing or unknown"),
    ],
)
def test_damaged_files_are_named(run: Path, name: str, content: str, message: str) -> None:
    write_report(run)
    before = (run / "report.html").read_text()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content)
    with pytest.raises(RunError, match=message):
        write_report(run)
    assert (run / "report.html").read_text() == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize("recipe", ["digits", "planar-2d", None])
def test_the_command_repeats_the_spec_exactly(recipe: str | None, monkeypatch, tmp_path) -> None:
    from varflow.cli import main
    from varflow.runs import fitting

    spec = RunSpec().replace(
        data="digits", latent=3, flow="iaf", amortized=True, network="conv", weight_norm=True, flip=False,
        base_moments="fixed", scale=0.5, clip=2.5, steps=7, data_dir=str(tmp_path / "with space"),
    )  # fmt: skip
    fitted = []

    def catch(what, **options):
        fitted.append(what)
        raise RunError("seen")

    monkeypatch.setattr(fitting, "fit", catch)
    words = shlex.split(command(spec.to_dict(), recipe))
    assert words[:2] == ["varflow", "fit"]
    with pytest.raises(SystemExit):
        main(words[1:])
    assert fitted == [spec]


def test_command_of_defaults_is_the_recipe_alone() -> None:
    from varflow.settings.recipes import find

    assert command(find("digits").spec.to_dict(), "digits") == "varflow fit digits"
    assert page.command is command


def test_a_budget_in_epochs_stands_alone_where_the_recipe_has_steps() -> None:
    from varflow.settings.recipes import find

    assert find("density").spec.training.steps is not None
    text = command(find("density").spec.replace(epochs=7, steps=None).to_dict(), "density")
    assert text == "varflow fit density --epochs 7"
    text = command(find("density").spec.replace(epochs=7.0, lr=0.5, steps=None).to_dict(), "density")
    assert text == "varflow fit density --lr 0.5 --epochs 7"
