"""What notebooks show: well-formed HTML with the numbers of the tables, names escaped, nothing heavy imported."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import varflow as vf
from varflow.core import display
from varflow.core.columns import Column
from varflow.core.errors import SpecError
from varflow.evaluation import Evaluation
from varflow.runs.comparison import compare
from varflow.runs.impute import Imputations
from varflow.runs.latent_space import Neighbours
from varflow.runs.scores import Scores
from wellformed import Page

HOSTILE = "<script>alert('x')</script>\"><img src=x>"
SMALL = {"latent": 2, "hidden": 8, "layers": 1, "steps": 12, "threads": 1, "quiet": True}


def shown(thing) -> Page:
    """The HTML of a thing: nothing of it is a script or lies elsewhere, and its plain form is one line."""
    page = Page(thing._repr_html_())
    assert not {"script", "style", "link", "iframe"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert "style" not in attributes or "#" not in str(attributes["style"]), "a colour of its own"
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert "href" not in attributes
    return page


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, vf.Run]:
    folder = tmp_path_factory.mktemp("runs")
    found = {
        "plain": vf.fit("digits", out=folder / "plain", **SMALL),
        "planar": vf.fit("digits", flow="planar", length=2, out=folder / "planar", **SMALL),
    }
    for run in found.values():
        run.evaluate(samples=30, limit=30)
    return found


def test_an_evaluation_has_the_numbers_of_its_table(runs) -> None:
    found = Evaluation.load(runs["planar"].folder)
    words = shown(found).text
    for _, *cells in found.rows()[1:]:
        assert all(cell in words for cell in cells)
    for line in found.table().splitlines()[1 : len(found.estimates) + 1]:
        assert all(number in words for number in re.findall(r"-?\d[\d.]*", line))
    assert "−log p(x)" in words
    assert found.estimates["nll"].figures() in repr(found)
    assert "\n" not in repr(found)
    assert found.estimates["nll"].figures() in shown(found.estimates["nll"]).text


def test_a_comparison_has_the_numbers_of_its_tables(runs) -> None:
    found = compare([run.folder for run in runs.values()])
    words = shown(found).text
    for row in [*found.rows(), *found.difference_rows()]:
        assert all(cell in words for cell in row)
    assert repr(found).startswith("Comparison(plain, planar; digits test")
    hostile = replace(found, names=[HOSTILE, "b"])
    assert HOSTILE in shown(hostile).text


def test_a_run_shows_data_parts_estimates_and_curves(runs) -> None:
    run = runs["planar"]
    page = shown(run)
    nll = Evaluation.load(run.folder).estimates["nll"].figures()
    parts = f"{sum(p.numel() for p in run.model.parameters()):,}"
    for said in ("digits, dynamic, of shape 1×8×8", "1,297 train", "Planar(features=2", "12 updates", nll, parts):
        assert said in page.text, said
    assert "svg" in [tag for tag, _ in page.tags]
    assert "\n" not in repr(run)
    alone = vf.fit("digits", **SMALL)
    assert "Run in memory" in shown(alone).text
    assert "Not evaluated" in shown(alone).text
    density = vf.fit("density", torch.randn(60, 2), prior_length=1, steps=2, quiet=True)
    assert "density p(x)" in shown(density).text
    assert "likelihood p(x|z)" not in shown(density).text


def test_a_sweep_shows_its_trials() -> None:
    from varflow.runs.sweep import Sweep, Trial

    plan = SimpleNamespace(space={HOSTILE: (1, 2)}, name="digits", sampler="tpe", seed=0, storage="a file")
    trials = [
        Trial(number=0, settings={HOSTILE: 1}, state="complete", value=-25.5, step=10, folder=None, note="done"),
        Trial(number=1, settings={HOSTILE: 2}, state="refused", value=None, step=0, folder=None, note="no"),
    ]
    found = Sweep(plan, trials)  # type: ignore[arg-type]
    words = shown(found).text
    assert all(cell in words for row in found.rows() for cell in row)
    assert "best 0000, validation bound -25.50 nats" in repr(found)


def test_a_model_is_a_tree_of_its_parts(runs) -> None:
    model = runs["planar"].model
    page = shown(model)
    count = sum(p.numel() for p in model.parameters())
    assert f"\n{count:,}\n" in page.text
    assert "u 2×2, w 2×2, b 2" in page.text
    flow = shown(vf.flows.MaskedAutoregressive(2, length=2, hidden=(8,)))
    assert "MaskedAutoregressive(features=2" in flow.text
    several = vf.fit("energy", target="u1", length=2, samples=8, steps=2, fits=2, quiet=True)
    assert "2 fits, trained together" in shown(several.model).text
    assert "2, trained together" in shown(several).text


def test_a_parameter_at_two_places_counts_once_and_deep_trees_end() -> None:
    layer = torch.nn.Linear(2, 2)
    words = shown(_Tree(torch.nn.Sequential(layer, torch.nn.Sequential(torch.nn.Identity(), layer)))).text
    # Names and counts of the parts in their order; the layer's parameters stand at its first place.
    assert re.findall(r"^\d+$", words, re.M) == ["6", "0", "6", "1", "0", "0", "0", "1", "0"]
    deep = torch.nn.Sequential(*(torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(30))) for _ in range(3)))
    words = shown(_Tree(deep)).text
    assert "90 parts further inside are not shown" in words


class _Tree:
    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def _repr_html_(self) -> str:
        return display.tree(self.module)


def test_scores_and_neighbours(runs) -> None:
    run = runs["planar"]
    x = run.dataset.raw("test")[: display.ROWS + 3]
    scores = run.scores(x, samples=100, anomaly=True)
    words = shown(scores).text
    assert f"{float(scores.log_prob[0]):.2f}" in words
    assert "and 3 more rows" in words
    assert "\n" not in repr(scores)
    exact = Scores(torch.zeros(2), torch.zeros(2), torch.full((2,), torch.nan), None, 0, "density of x")
    assert "nothing sampled" in shown(exact).text
    near = run.nearest(x, k=2)
    assert f"{near.rows[0][0]} (label" in shown(near).text
    files = Neighbours([[HOSTILE]], torch.zeros(1, 1), None)
    assert HOSTILE in shown(files).text
    assert "\n" not in repr(near)


def test_imputations_show_what_was_filled_in(runs) -> None:
    values = torch.tensor([[1.5, 1.0, 18262.0], [2.5, 0.0, 18262.5]], dtype=torch.float64)
    missing = torch.tensor([[True, True, False], [False, False, True]])
    spread = torch.where(missing, torch.tensor([[0.25, 0.1, 0.0], [0.0, 0.0, 2.0]]), torch.nan).double()
    columns = (Column(HOSTILE, "real"), Column("sex", "binary", ("f", "m")), Column("when", "date"))
    khat = torch.tensor([0.2, 0.9])
    found = Imputations(values, missing, spread, torch.empty(0, 2, 3), torch.ones(2), khat, 100, columns)
    words = shown(found).text
    for said in (HOSTILE, "1.5", "± 0.25", "m", "(10 % another)", "2020-01-01", "2020-01-01T12:00:00", "± 2 days"):
        assert said in words, said
    assert "k̂ above 0.7 in 1 rows" in words
    assert repr(found) == f"Imputations({found.summary()})"
    complete = replace(found, missing=torch.zeros_like(missing))
    assert "no cell missing" in shown(complete).text


def test_figures_show_themselves(runs, tmp_path) -> None:
    run = runs["planar"]
    assert {"samples", "latents", "flow", "curves", "weights"} <= set(run.figures)
    figure = run.figure("curves")
    page = shown(figure)
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [int(image[side]) for side in ("width", "height")] == list(struct.unpack(">II", figure.image[16:24]))
    assert figure.caption in page.text
    assert figure._repr_png_() == figure.image
    assert "\n" not in repr(figure)
    assert figure.save(tmp_path / "a.svg").read_text().startswith("<?xml")
    drawn, axes = vf.figures.canvas()
    axes[0, 0].plot([0, 1])
    assert drawn._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_256_colours_are_taken_where_they_are_as_good() -> None:
    from PIL import Image

    from varflow.figures.illustration import png

    def mode(values: torch.Tensor) -> str:
        figure, axes = vf.figures.canvas(1, 1, 2, 2)
        axes[0, 0].imshow(values.numpy(), vmin=0, vmax=1)
        return Image.open(io.BytesIO(png(figure))).mode

    assert mode(torch.linspace(0, 1, 400).reshape(20, 20)) == "P"
    assert mode(torch.rand(100, 100, 3)) == "RGBA"


def test_figures_that_do_not_apply_are_refused_by_name(runs) -> None:
    with pytest.raises(SpecError, match=r"name: .*'latent'.*latents"):
        runs["plain"].figure("latent")
    with pytest.raises(SpecError, match="'flow' does not apply to this run; it has samples"):
        runs["plain"].figure("flow")
    with pytest.raises(SpecError, match=r"'imputed' does not apply .*run.removed_cells\(\)"):
        runs["plain"].figure("imputed")


def test_figures_of_a_target_and_its_film(tmp_path) -> None:
    run = vf.fit("energy", target="u1", length=2, samples=16, steps=420, quiet=True, out=tmp_path / "run")
    assert run.figures == ("densities", "flow", "bound", "training")
    film = run.figure("training")
    assert film.image[:3] == b"GIF"
    (image,) = [attributes for tag, attributes in shown(film).tags if tag == "img"]
    assert str(image["src"]).startswith("data:image/gif;base64,")
    assert film._repr_png_() is None
    assert film.save(tmp_path / "a.gif").read_bytes() == film.image
    with pytest.raises(SpecError, match=r"path: was a.png; training is written as .gif"):
        film.save(tmp_path / "a.png")
    assert not (run.folder / "figures").exists()
    alone = vf.fit("energy", target="u1", length=2, samples=16, steps=5, quiet=True)
    with pytest.raises(SpecError, match="snapshots in the folder of a run"):
        alone.figure("training")


def test_curves_leave_out_what_is_not_finite_and_may_be_none() -> None:
    assert display.curves({"a": ([0], [1.0])}, "nats") == ""
    drawn = display.curves({"a<b": ([0, 1, 2], [1.0, float("nan"), 3.0])}, "nats")
    assert "nan" not in Page(drawn).text
    assert "a<b" in Page(drawn).text


def test_nothing_heavy_is_imported_to_show_a_result() -> None:
    script = (
        "import sys, torch, varflow as vf\n"
        "run = vf.fit('digits', latent=2, hidden=8, layers=1, steps=2, quiet=True)\n"
        "for thing in (run, run.model, run.evaluate(samples=2, limit=4)):\n"
        "    thing._repr_html_()\n"
        "print([name for name in ('matplotlib', 'IPython', 'pandas') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
