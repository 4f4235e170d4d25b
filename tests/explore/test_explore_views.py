"""What stands behind the explorer's page: points decoded, grids bent, rows scored, codes drawn."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import varflow as vf
from varflow.core.errors import DataError, SpecError
from varflow.explore import app, bending, drawing, draws, examples, latent, trajectories
from varflow.explore.opened import Opened
from varflow.flows import Flow
from varflow.runs.scores import score_training_rows


def scores_kept(run: vf.Run) -> None:
    """Score some training rows, as a fit of more than a moment does."""
    dataset: Any = run.dataset
    given = None if dataset.conditions is None else dataset.conditions.values["train"][:1]
    run.scores(dataset.raw("train")[:1], training_rows=40, given=given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Opened:
    """A VAE of pictures with a plane of latents and an amortized flow."""
    run = vf.fit(
        "digits", latent=2, hidden=32, flow="planar", length=3, amortized=True, steps=60, quiet=True,
        out=folder / "pictures",
    )  # fmt: skip
    scores_kept(run)
    return Opened(vf.load(folder / "pictures"))


@pytest.fixture(scope="module")
def alone(pictures: Opened, folder: Path) -> Opened:
    """The same run without its data, and without what it keeps of training rows."""
    bare = folder / "alone"
    pictures.run.copy(bare)
    for name in ("training_scores.json", "embeddings.safetensors"):
        (bare / name).unlink(missing_ok=True)
    return Opened(vf.load(bare))


@pytest.fixture(scope="module")
def hamiltonian(folder: Path) -> Opened:
    run = vf.fit("digits", latent=4, hidden=16, leapfrog=3, steps=20, quiet=True, out=folder / "hvae")
    return Opened(run)


@pytest.fixture(scope="module")
def energy() -> Opened:
    return Opened(vf.fit("energy", length=4, steps=60, quiet=True))


@pytest.fixture(scope="module")
def table_file(folder: Path) -> Path:
    g = np.random.default_rng(0)
    rows = [
        f"{g.choice(['f', 'm'])},{g.integers(0, 4)},{g.normal(50, 10):.3f},{np.exp(g.normal()):.4f}"
        for _ in range(300)
    ]
    path = folder / "table.csv"
    path.write_text("sex,dose,age,marker\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def conditional(table_file: Path, folder: Path) -> Opened:
    run = vf.fit(
        "conditional-density", table_file, condition=("sex", "dose"), prior_length=2, prior_hidden=16, steps=30,
        quiet=True, out=folder / "conditional",
    )  # fmt: skip
    scores_kept(run)
    return Opened(vf.load(folder / "conditional"))


@pytest.fixture(scope="module")
def mixed(table_file: Path) -> Opened:
    """Columns each of their kind, with latents."""
    return Opened(vf.fit("table", table_file, latent=3, hidden=8, steps=20, quiet=True))


@pytest.fixture(scope="module")
def coded() -> Opened:
    spec = vf.recipes.find("vq-pixelcnn").spec.preset(
        blocks=1, scales=1, codes=6, code_features=4, steps=6, batch=16, prior_channels=8, prior_length=1,
        prior_kernel=3, prior_hidden=8, prior_epochs=1, classes=3,
    )  # fmt: skip
    x = torch.randint(0, 256, (48, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Opened(vf.fit(spec, vf.data.from_tensor(x, torch.arange(48) % 3, protocol="symmetric"), quiet=True))


def decoded_png(text: str) -> np.ndarray[Any, Any]:
    """The first picture in a text."""
    found = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


# -- drawings -----------------------------------------------------------------------------------------


def test_a_png_holds_the_picture() -> None:
    grey = np.linspace(0, 1, 12).reshape(1, 3, 4)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(drawing.png(grey)))), (grey[0] * 255 + 0.5) // 1)
    colour = np.random.default_rng(0).random((3, 5, 7))
    np.testing.assert_allclose(
        np.asarray(Image.open(io.BytesIO(drawing.png(colour)))).transpose(2, 0, 1) / 255, colour, atol=0.5 / 255
    )


def test_a_sheet_is_in_reading_order() -> None:
    pictures = np.arange(6, dtype=float)[:, None, None, None] * np.ones((6, 1, 2, 2))
    sheet = drawing.sheet(pictures, 3)
    assert sheet.shape == (1, 4, 6)
    np.testing.assert_array_equal(sheet[0, ::2, ::2], [[0, 1, 2], [3, 4, 5]])


def test_names_cannot_become_markup() -> None:
    """A column of somebody's file is text, whatever it is called."""
    name = '<img src=x onerror="alert(1)">'
    texts = [drawing.table({name: [name]}, [name]), drawing.said(name), drawing.trouble(name)]
    texts += [drawing.picture(np.zeros((1, 2, 2)), name), drawing.Plot((0, 1, 0, 1), name, name).text()]
    for text in texts:
        assert "<img src=x" not in text
        assert "&lt;img" in text


def test_cells_are_short() -> None:
    assert [drawing.cell_text(v) for v in (3.0, 1.23456, float("nan"), None, "a", np.ma.masked, 2)] == [
        "3", "1.235", "", "", "a", "", "2",
    ]  # fmt: skip


def test_a_histogram_holds_all_values_and_the_mark() -> None:
    text = drawing.histogram(np.arange(100.0), [(250.0, 5.0, "yours", "#C24500")], "nats")
    assert text.count("<rect") >= 40
    assert "yours" in text
    # Up to the mark, with a margin of 4 %.
    assert ">260<" in text


def test_a_place_in_a_plot_has_y_upwards() -> None:
    plot = drawing.Plot((-1, 1, 0, 2))
    np.testing.assert_allclose(plot.place(np.array([[-1.0, 0.0], [1.0, 2.0]])), [[0, 400], [400, 0]])


# -- which tabs ---------------------------------------------------------------------------------------


def test_a_tab_is_there_where_the_model_has_what_it_needs(
    pictures: Opened, hamiltonian: Opened, energy: Opened, conditional: Opened, mixed: Opened, coded: Opened
) -> None:
    rows = ["Your own", "Draws"]
    assert app.applying(pictures) == ["Latents", "A to B", "Flow", *rows]
    assert app.applying(hamiltonian) == ["Latents", "A to B", "Trajectories", *rows]
    assert app.applying(energy) == ["Flow"]
    assert app.applying(conditional) == ["Latents", "A to B", "Flow", *rows]
    assert app.applying(mixed) == ["Latents", "A to B", *rows]
    assert app.applying(coded) == rows
    assert coded.classes == ("0", "1", "2")


def test_without_the_data_and_what_is_kept_of_them_it_is_said_what_is_left_out(alone: Opened) -> None:
    scores, latents = alone.missing()
    assert "keeps no scores of training rows" in scores
    assert "keeps no latents of training rows" in latents
    example = examples.drawn(alone, 3)
    found = examples.answer(alone, example)
    assert found.rank is None
    assert "log p(x) = " in examples.score_text(alone, found)
    assert examples.neighbours(alone, example) is None


def test_what_it_is_called_names_no_folder_of_the_machine(mixed: Opened, table_file: Path) -> None:
    assert mixed.about().startswith("table.csv: rows of 4")
    assert str(table_file.parent) not in mixed.about()


def test_fits_that_were_trained_together_are_opened_one_by_one() -> None:
    run = vf.fit("energy", length=2, steps=3, fits=3, quiet=True)
    opened = app.opened_fits(run, "energy")
    assert [each.name for each in opened] == [f"energy, fit {k} of 3" for k in (1, 2, 3)]
    ways = [bending.bending(each, "posterior").centre[-1].tolist() for each in opened]
    assert len({tuple(way) for way in ways}) == 3


# -- latent space -------------------------------------------------------------------------------------


def test_the_picture_of_a_point_is_the_likelihoods_mean(pictures: Opened) -> None:
    point = [0.7, -0.4]
    shown = decoded_png(latent.view(pictures, point))
    with torch.no_grad():
        mean = pictures.model.decode(torch.tensor([point]), mean=True)[0, 0]
    assert shown.shape == (8, 8)
    np.testing.assert_allclose(shown / 255, mean.numpy(), atol=0.6 / 16)


def test_the_plane_has_each_picture_where_its_point_is(pictures: Opened) -> None:
    side = 5
    sheet = latent.decoded_plane(pictures, [0, 1], [0.0, 0.0], side=side)
    x0, x1, y0, y1 = latent.frame(pictures, [0, 1])
    # Row 1 from above, column 3.
    z = [x0 + (x1 - x0) * 3.5 / side, y1 - (y1 - y0) * 1.5 / side]
    one = pictures.shown(pictures.decode(torch.tensor([z], dtype=torch.float64)))[0]
    np.testing.assert_allclose(sheet[:, 8:16, 24:32], one, atol=1e-6)


def test_the_other_latents_stay_where_they_are(hamiltonian: Opened) -> None:
    point = latent.moved([1.0, 2.0, 3.0, 4.0], [3, 1], [-1, -2])
    assert point == [1.0, -2.0, 3.0, -1.0]
    assert sorted(hamiltonian.order) == [0, 1, 2, 3]


def test_a_marker_stands_at_its_point(pictures: Opened) -> None:
    x0, x1, _, y1 = latent.frame(pictures, [0, 1])
    assert 'cx="50.00" cy="0.00"' in latent.marker(pictures, [0, 1], [(x0 + x1) / 2, y1])
    assert latent.two_markers(pictures, [0, 1], [[0, 0]]).count("<circle") == 1
    assert "<path" in latent.two_markers(pictures, [0, 1], [[0, 0], [1, 1]])


def test_the_way_between_two_points_ends_in_them(pictures: Opened) -> None:
    a, b = [-1.0, 0.5], [1.5, 0.0]
    tiles = re.findall(r"<figure.*?</figure>", latent.way_between(pictures, a, b, 5))
    assert len(tiles) == 5
    np.testing.assert_array_equal(decoded_png(tiles[0]), decoded_png(latent.view(pictures, a)))
    np.testing.assert_array_equal(decoded_png(tiles[-1]), decoded_png(latent.view(pictures, b)))


def test_an_example_goes_to_the_centre_of_its_posterior(pictures: Opened) -> None:
    x, _ = pictures.row(2)
    np.testing.assert_allclose(latent.at_example(pictures, x), pictures.run.embed(x, "centre")[0], rtol=1e-6)


def test_rows_decode_to_their_columns(conditional: Opened, mixed: Opened) -> None:
    text = latent.view(conditional, [0.5, 0.5], {"sex": "f", "dose": 2})
    assert "<th>age</th>" in text
    with torch.no_grad():
        row = conditional.decode(torch.tensor([[0.5, 0.5]]), {"sex": "f", "dose": 2})
        context = conditional.context({"sex": "f", "dose": 2}, 1)
        x = conditional.model.prior.decode(torch.tensor([[0.5, 0.5]]), context)  # type: ignore[operator]
    torch.testing.assert_close(row, conditional.run.preprocessing.stored_means(x))  # type: ignore[union-attr]
    assert re.search(r"<td>[fm]</td>", latent.view(mixed, [0.0, 0.0, 0.0]))
    assert "<path" in latent.points_plane(mixed, [0, 2])


# -- flows and trajectories ---------------------------------------------------------------------------


def test_the_grid_of_an_amortized_flow_ends_where_its_draws_do(pictures: Opened) -> None:
    x, _ = pictures.row(0)
    bent = bending.bending(pictures, "posterior", x)
    assert bent.steps == 3
    assert bent.follows
    assert bent.lines.shape[:1] == bent.ladj.shape[:1] == bent.draws.shape[:1] == (4,)
    np.testing.assert_allclose(bent.centre[-1], pictures.run.embed(x, "centre")[0], rtol=1e-5)
    assert np.abs(bent.ladj[0]).max() == 0
    steps = [bending.drawn(bent, k) for k in range(4)]
    assert len(set(steps)) == 4
    assert "After step 3 of 3." in steps[3]
    assert "before the 3 steps" in steps[0]
    with pytest.raises(SpecError, match="x: missing; this flow depends on x"):
        bending.bending(pictures, "posterior")
    with pytest.raises(SpecError, match="which: was 'prior'; this model has posterior"):
        bending.bending(pictures, "prior")


def test_the_flow_of_an_energy_has_its_target_behind_it(energy: Opened) -> None:
    bent = bending.bending(energy, "posterior")
    assert bent.behind is not None
    with torch.no_grad():
        q = energy.model.infer()
        moved = energy.gaussian.flow.push(q.mean[None])[0][0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(bent.centre[-1], moved, rtol=1e-5)
    text = bending.drawn(bent, 2, lambda part: part == "grid")
    assert "<image" in text
    assert len(text) < len(bending.drawn(bent, 2))


@pytest.mark.parametrize("prior", ["maf", "planar"])
def test_a_flow_prior_goes_from_its_base_to_what_it_scores(prior: str) -> None:
    """Either way round: with a fast inverse, and inverted."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
        [1.0, 2, 3]
    )
    run = vf.fit("density", x.numpy(), prior=prior, prior_length=2, prior_base="normal", steps=20, quiet=True)
    opened = Opened(run)
    bent = bending.bending(opened, "prior", directions=(0, 2))
    flow: Any = run.model.prior  # type: ignore[union-attr]
    assert isinstance(flow.flow, Flow)
    with torch.no_grad():
        end = flow.decode(torch.zeros(1, 3))[0]
    np.testing.assert_allclose(bent.centre[0], 0, atol=1e-5)
    np.testing.assert_allclose(bent.centre[-1], end[[0, 2]], atol=1e-4)
    # log|det| of the whole way is that of the density.
    with torch.no_grad():
        e = flow.base.sample((5,))
        z = flow.decode(e)
        whole = flow.base.log_prob(e) - flow.log_prob(z) if not flow.defensive else None
    assert whole is None or whole.isfinite().all()
    np.testing.assert_allclose(bent.ladj[0], 0, atol=1e-4)


def test_a_flow_that_all_share_moves_training_rows(folder: Path) -> None:
    run = vf.fit("digits", latent=2, hidden=16, flow="radial", length=2, steps=20, quiet=True, out=folder / "static")
    bent = bending.bending(Opened(run), "posterior")
    assert bent.labels is not None
    held = Opened(run).latents
    assert held is not None
    np.testing.assert_allclose(bent.draws[-1], held.points[: len(bent.draws[-1])], atol=1e-4)


def test_trajectories_start_at_the_base_and_decode(hamiltonian: Opened) -> None:
    x, _ = hamiltonian.row(0)
    path = trajectories.trajectories(hamiltonian, x, samples=6)
    assert path.shape == (4, 6, 4)
    assert not torch.equal(path, trajectories.trajectories(hamiltonian, x, seed=1, samples=6))
    steps = [trajectories.drawn(hamiltonian, path, (0, 1), k) for k in range(4)]
    assert len(set(steps)) == 4
    strip = trajectories.along(hamiltonian, path)
    assert strip.count("<figure ") == 4
    np.testing.assert_array_equal(
        decoded_png(strip), decoded_png(latent.view(hamiltonian, path[0, 0].double().tolist()))
    )


def test_trajectories_of_another_posterior_are_refused(pictures: Opened) -> None:
    with pytest.raises(SpecError, match="its posterior takes no leapfrog steps"):
        trajectories.trajectories(pictures)


# -- examples -----------------------------------------------------------------------------------------


def test_a_row_of_the_data_is_scored_as_the_run_scores_it(pictures: Opened) -> None:
    example = examples.of_row(pictures, 1)
    found = examples.answer(pictures, example)
    direct = pictures.run.scores(example.x, anomaly=True)
    np.testing.assert_allclose(found.log_prob, direct.log_prob)
    assert direct.rank is not None
    np.testing.assert_allclose(found.rank, direct.rank)
    text = examples.score_text(pictures, found)
    assert f"of {found.among} training rows" in text
    assert "<svg" in text
    assert "as the model is given it" in examples.shown(pictures, example, found)


def test_a_picture_of_any_size_and_colour_becomes_the_models(pictures: Opened) -> None:
    pixels = np.zeros((80, 60, 3), np.uint8)
    pixels[:, :30] = (255, 10, 10)
    example = examples.from_picture(pictures, pixels)
    assert tuple(example.x.shape) == (1, 1, 8, 8)
    assert example.x.dtype == torch.uint8
    assert int(example.x.max()) <= 16
    assert example.note == "The picture was resized from 60 × 80 to 8 × 8, colours turned to grey."
    swapped = examples.from_picture(pictures, pixels, swap=True)
    np.testing.assert_allclose(example.x.double() + swapped.x.double(), 16, atol=1)


def test_a_picture_that_fits_is_left_as_it_is(pictures: Opened) -> None:
    x, _ = pictures.row(0)
    levels = (pictures.shown(x)[0, 0] * 255).round().astype(np.uint8)
    example = examples.from_picture(pictures, levels)
    torch.testing.assert_close(example.x, x)
    assert example.note == ""


def test_neighbours_of_a_training_row_begin_with_itself(pictures: Opened) -> None:
    dataset = pictures.dataset
    assert dataset is not None
    held = pictures.latents
    assert held is not None
    assert held.origins is not None
    where = dataset.origins("train", torch.arange(dataset.sizes["train"])).index(held.origins[0])  # type: ignore[arg-type]
    near = examples.neighbours(pictures, examples.Example(dataset.raw("train")[where][None]), 3)
    assert near is not None
    assert near.names[0] == str(held.origins[0])
    assert near.distance[0] == pytest.approx(0, abs=1e-5)
    assert near.themselves
    assert examples.near_text(pictures, near).count("<figure ") == 3


def test_typed_rows_are_read_with_and_without_a_head(conditional: Opened) -> None:
    with_head = examples.from_text(conditional, "age,marker,dose,sex\n50,1.5,2,f\n60,2.5,0,m")
    without = examples.from_text(conditional, "f,2,50,1.5\nm,0,60,2.5")
    torch.testing.assert_close(with_head.x, without.x)
    assert isinstance(with_head.given, torch.Tensor)
    torch.testing.assert_close(with_head.given, without.given)
    chosen = examples.from_text(conditional, "50,1.5", {"sex": "f", "dose": 2})
    found = [examples.answer(conditional, each).log_prob[0] for each in (with_head, chosen)]
    assert found[0] == pytest.approx(found[1])
    assert "row 1" in examples.scores_table(conditional, with_head, examples.answer(conditional, with_head))


def test_an_example_and_its_text_are_the_same_row(conditional: Opened, mixed: Opened) -> None:
    for opened in (conditional, mixed):
        example = examples.drawn(opened, 4)
        again = examples.from_text(
            opened, opened.text(example.x, example.given if isinstance(example.given, dict) else None)
        )
        np.testing.assert_allclose(again.x.double(), example.x.double(), rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "row: is empty; give age, marker"), ("age,weight\n1,2", "weight|marker"), ("age,marker\nold,2", "age")],
)
def test_rows_that_are_none_are_refused_without_a_file_that_nobody_knows(
    conditional: Opened, text: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as refused:
        examples.from_text(conditional, text)
    assert "typed.csv" not in str(refused.value)


def test_a_missing_cell_is_filled_in(mixed: Opened) -> None:
    example = examples.from_text(mixed, "sex,dose,age,marker\nf,1,,1.5")
    text = examples.shown(mixed, example, examples.answer(mixed, example))
    assert "filled in" in text


def test_pictures_and_rows_are_not_taken_for_each_other(pictures: Opened, mixed: Opened) -> None:
    with pytest.raises(SpecError, match="this run was fitted to rows"):
        examples.from_picture(mixed, np.zeros((4, 4), np.uint8))
    with pytest.raises(SpecError, match="this run was fitted to pictures"):
        examples.from_text(pictures, "1,2")


def test_two_answers_differ_with_their_error(pictures: Opened, hamiltonian: Opened) -> None:
    example = examples.of_row(pictures, 0)
    a, b = (examples.answer(opened, example) for opened in (pictures, hamiltonian))
    said = examples.difference(a, b)
    assert f"{a.log_prob[0] - b.log_prob[0]:+.2f} ± " in said


# -- draws --------------------------------------------------------------------------------------------


def test_draws_are_those_of_the_run(pictures: Opened, conditional: Opened) -> None:
    x, log_prob = draws.draws(pictures, 5, seed=3)
    assert log_prob is None
    torch.testing.assert_close(x, pictures.run.sample(5, 3))
    given = {"sex": "f", "dose": 3}
    rows, _ = draws.draws(conditional, 4, 1, given=given)
    torch.testing.assert_close(rows.double(), torch.as_tensor(conditional.run.sample(4, 1, given=given)).double())
    assert draws.drawn(conditional, rows).count("<tr>") == 5


def test_codes_are_drawn_at_a_temperature_and_of_a_class(coded: Opened) -> None:
    x, warm = draws.draws(coded, 6, 0)
    assert warm is not None
    assert x.shape == (6, 1, 8, 8)
    _, cold = draws.draws(coded, 6, 0, temperature=0.1, label=1)
    assert cold is not None
    with vf.random.stream(0):
        labels = torch.full((6,), 1)
        _, direct = coded.model.prior.sample_and_log_prob((6,), 0.1, labels=labels)  # type: ignore[operator]
    torch.testing.assert_close(cold, direct.double())
    assert "nats" in draws.drawn(coded, x, warm)
    with pytest.raises(SpecError, match="label: was 3; this prior has 3 classes"):
        draws.draws(coded, 2, label=3)
    with pytest.raises(SpecError, match="temperature: was 0"):
        draws.draws(coded, 2, temperature=0)


def test_a_run_without_kept_scores_is_scored_where_it_is_asked_for(pictures: Opened) -> None:
    """The histogram is of what the folder keeps, which is what the run ranks among."""
    assert pictures.scores is not None
    assert len(pictures.scores) == 40
    found, _ = score_training_rows(pictures.run, rows=40)
    torch.testing.assert_close(pictures.scores, found)


def test_the_base_of_a_conditional_density_follows_its_conditions(conditional: Opened) -> None:
    """It starts at a mixture that reads the conditions, so the plane before the first step is one of them."""
    assert conditional.model.prior.base.reads == ("context",)
    found = bending.bending(conditional, "prior", given={"sex": "f", "dose": 2})
    other = bending.bending(conditional, "prior", given={"sex": "m", "dose": 2})
    assert found.steps == 2
    assert not np.array_equal(np.asarray(found.draws[0]), np.asarray(other.draws[0]))
