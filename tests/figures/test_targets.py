"""Densities on one colour scale, bounds below their exact value, errors by dimension, the film."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from varflow import figures
from varflow.core.errors import DataError, RunError, ShapeError, SpecError
from varflow.evaluation import Evaluation
from varflow.figures import targets as film

WINDOW = (-2.0, 4.0, -1.0, 1.0)


def test_a_grid_has_x_to_the_right_and_y_upwards() -> None:
    values = figures.density_on_grid(lambda z: z[:, 0] + 10 * z[:, 1], WINDOW, size=4)
    x, y = np.array([-1.25, 0.25, 1.75, 3.25]), np.array([-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(values, np.exp(x[None] + 10 * y[:, None]), rtol=1e-12)
    like = torch.zeros((), dtype=torch.float32)
    seen = []
    figures.density_on_grid(lambda z: seen.append(z.dtype) or z.sum(-1), WINDOW, 3, like)
    assert seen == [torch.float32]


def test_a_histogram_is_a_density_of_all_samples_also_of_those_outside() -> None:
    z = torch.tensor([[-1.9, -0.9], [-1.9, -0.9], [3.9, 0.9], [50.0, 0.0]])
    values = figures.density_of_samples(z, WINDOW, 4)
    cell = 1.5 * 0.5
    assert values[0, 0] == pytest.approx(0.5 / cell)
    assert values[3, 3] == pytest.approx(0.25 / cell)
    assert values.sum() * cell == pytest.approx(0.75)
    with pytest.raises(ShapeError, match="z: is empty"):
        figures.density_of_samples(torch.zeros(0, 2), WINDOW)


def test_histogram_and_log_prob_agree() -> None:
    torch.manual_seed(0)
    z = torch.randn(400_000, 2, dtype=torch.float64)
    window = (-3.0, 3.0, -3.0, 3.0)
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = figures.density_on_grid(lambda z: normal.log_prob(z).sum(-1), window, 12)
    found = figures.density_of_samples(z, window, 12)
    # A cell of mass p has a standard error of √(p/n)/area; the curvature inside a cell adds 1 %.
    error = np.sqrt(exact * 0.25 / 400_000) / 0.25
    assert (np.abs(found - exact) < 5 * error + 0.03 * exact).all()


def panels(rows: int = 2, columns: int = 3) -> list[list[np.ndarray]]:
    source = np.random.default_rng(0)
    return [[source.random((5, 4)) * (i + 1) for _ in range(columns)] for i in range(rows)]


def test_one_colour_scale_which_the_targets_set() -> None:
    densities = panels()
    densities[1][2] = 9 * densities[1][2]
    figure, axes = figures.canvas(2, 3)
    names = ["target", "K = 2", "K = 8"]
    notes = [[None, "KL = 0.1", "KL = 0.2"], [None, None, None]]
    drawn = figures.density_grid(densities, axes, WINDOW, names, ["U1", "U2"], notes)
    top = max(densities[0][0].max(), densities[1][0].max())
    for i in range(2):
        for j in range(3):
            image = drawn[i, j].images[0]
            assert image.get_clim() == (0, top)
            assert tuple(image.get_extent()) == WINDOW
            assert image.origin == "lower"
            np.testing.assert_array_equal(image.get_array(), densities[i][j])
            assert [t.get_text() for t in drawn[i, j].texts] == [n for n in [notes[i][j]] if n]
    assert [a.get_title() for a in drawn[0]] == names
    assert [a.get_ylabel() for a in drawn[:, 0]] == ["U1", "U2"]
    assert len(figure.axes) == 7


def test_zero_is_white_and_more_is_darker() -> None:
    _, axes = figures.canvas()
    image = figures.density(np.array([[0.0, 0.1], [0.5, 1.0]]), axes[0, 0], WINDOW)
    shades = image.cmap(np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert shades[0] == pytest.approx(1)
    assert (np.diff(shades) < 0).all()
    assert shades[-1] < 0.02


def test_a_missing_fit_leaves_its_panel_empty() -> None:
    densities = panels(1, 2)
    densities[0][1] = None
    _, axes = figures.canvas(1, 2)
    drawn = figures.density_grid(densities, axes, WINDOW, ["target", "none"])
    assert not drawn[0, 1].images
    assert not drawn[0, 1].axison


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["target"]}, "densities: 2 rows of"),
        ({"rows": ["U1"]}, "rows: 1 for 2 rows"),
        ({"windows": [WINDOW]}, "windows: 1 for 2 rows"),
        ({"notes": [["a"], ["b"]]}, "densities: 2 rows of"),
        ({"densities": [[None] * 3] * 2}, "no target in the first column"),
        ({"densities": [[-np.ones((2, 2))] * 3] * 2}, "a density is not negative"),
    ],
)
def test_grids_that_do_not_fit_are_refused(change, message) -> None:
    given = {"densities": panels(), "windows": WINDOW, "columns": ["a", "b", "c"], **change}
    with pytest.raises(ShapeError, match=message):
        figures.density_grid(axes=figures.canvas(2, 3)[1], **given)


def records(elbos, **more):
    return [
        {"split": "train", "step": 100 * (k + 1), "elbo": e, **{n: v[k] for n, v in more.items()}}
        for k, e in enumerate(elbos)
    ]


def test_the_bound_is_drawn_below_its_exact_value() -> None:
    rows = records([-3.0, 1.0, 1.5, 2.01])
    rows += [
        {"split": "validation", "step": 400, "elbo": 9.0},
        {"split": "train", "step": 500, "elbo": math.nan},
    ]
    _, axes = figures.canvas(1, 2)
    left, right = figures.bound_curves({"q": rows}, axes[0], 2.0)
    np.testing.assert_allclose(
        left.lines[0].get_xydata(), [[100, -3], [200, 1], [300, 1.5], [400, 2.01]]
    )
    assert list(left.lines[1].get_ydata()) == [2.0, 2.0]
    low, high = left.get_ylim()
    assert low < 1.0
    assert high > 2.01
    np.testing.assert_allclose(right.lines[0].get_ydata(), [5.0, 1.0, 0.5, math.nan])
    assert right.get_yscale() == "log"
    assert "log Z" in right.get_ylabel()


def test_a_reference_of_each_record_is_followed_and_means_over_fits_are_taken() -> None:
    rows = records([-9.0, -5.0], log_evidence=[[-4.0, -6.0], -3.0])
    _, axes = figures.canvas(1, 2)
    left, right = figures.bound_curves(
        {"a": rows, "b": rows}, axes[0], "log_evidence", "log p(D)", {"best": -2.5}
    )
    np.testing.assert_allclose(left.lines[1].get_ydata(), [-5.0, -3.0])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [4.0, 2.0])
    assert list(left.lines[-1].get_ydata()) == [-2.5, -2.5]
    names = [t.get_text() for t in left.get_legend().get_texts()]
    assert names == ["a", "log p(D) at these parameters", "b", "best"]
    with pytest.raises(DataError, match="no training row"):
        figures.bound_curves({"a": []}, axes[0], 1.0)
    with pytest.raises(DataError, match="no training row"):
        figures.bound_curves({"a": records([1.0])}, axes[0], "log_evidence")


def rows_by_dimension():
    return [
        {
            "family": family,
            "dimensions": d,
            "shift_error": scale * d * factor,
            "scale_error": scale * 1e-3 * d,
            "kl_q_p": 0.0 if family == "VB" and d == 50 else scale * d,
            "scale_floor": 1e-4 * d,
        }
        for family, scale in (("VB", 1e-3), ("planar", 1.0))
        for d in (25, 50, 100)
        for factor in (0.5, 2.0)
    ]


def test_errors_by_dimension_have_their_references_drawn_in() -> None:
    _, axes = figures.canvas(1, 3)
    drawn = figures.error_by_dimension(
        rows_by_dimension(), axes[0], {"closed form": {25: 24.0, 100: 99.0}}
    )
    lines = [{line.get_label(): line.get_xydata() for line in panel.lines} for panel in drawn]
    # √(0.5 · 2) = 1: the geometric mean.
    np.testing.assert_allclose(lines[0]["planar"], [[25, 25], [50, 50], [100, 100]])
    np.testing.assert_allclose(lines[0]["VB"][:, 1], [0.025, 0.05, 0.1])
    np.testing.assert_allclose(lines[1]["maximum likelihood"][:, 1], [2.5e-3, 5e-3, 1e-2])
    np.testing.assert_allclose(lines[2]["closed form"], [[25, 24], [100, 99]])
    # What is 0 has no place on the scale: no line through it, a mark at the edge instead.
    np.testing.assert_allclose(lines[2]["VB"], [[25, 0.025], [100, 0.1]])
    edge = [
        line for line in drawn[2].lines if line.get_marker() == "v" and line.get_xdata()[0] == 50
    ]
    assert len(edge) == 2
    assert all(panel.get_yscale() == panel.get_xscale() == "log" for panel in drawn)
    names = [t.get_text() for t in drawn[0].figure.legends[0].get_texts()]
    assert names == ["VB", "planar", "maximum likelihood", "closed form"]
    assert [t.get_text() for t in drawn[0].get_xticklabels()] == ["25", "50", "100"]


def test_an_evaluation_becomes_rows_one_a_fit() -> None:
    arrays = {
        "index": np.arange(2.0),
        "kl_q_p": np.array([1.0, 2.0]),
        "shift_error": np.array([3.0, 4.0]),
    }
    rows = figures.rows_of(Evaluation({"split": "target"}, {}, arrays), "VB", 25)
    assert rows == [
        {"family": "VB", "dimensions": 25, "shift_error": 3.0, "kl_q_p": 1.0},
        {"family": "VB", "dimensions": 25, "shift_error": 4.0, "kl_q_p": 2.0},
    ]
    figures.error_by_dimension(rows, figures.canvas(1, 3)[1][0])


def test_results_that_cannot_be_drawn_are_refused() -> None:
    axes = figures.canvas(1, 3)[1][0]
    with pytest.raises(DataError, match="there are none"):
        figures.error_by_dimension([], axes)
    with pytest.raises(DataError, match="it needs family and dimensions"):
        figures.error_by_dimension([{"family": "VB"}], axes)
    with pytest.raises(ShapeError, match="axes: 2 of them"):
        figures.error_by_dimension(rows_by_dimension(), axes[:2])


def gif(path):
    from PIL import Image

    return Image.open(path)


def test_a_film_has_a_frame_a_step_on_one_scale_and_goes_round(tmp_path) -> None:
    target = np.outer(np.arange(1.0, 5.0), np.ones(4))
    frames = [(0, target * 0), (10, target), (20, 3 * target)]
    path = figures.animate(target, iter(frames), WINDOW, tmp_path / "a" / "film.gif", dpi=60)
    pictures = []
    durations = []
    with gif(path) as shown:
        assert shown.n_frames == 3
        assert shown.info["loop"] == 0
        for k in range(3):
            shown.seek(k)
            durations.append(shown.info["duration"])
            pictures.append(np.asarray(shown.convert("RGB")).astype(int))
    assert durations == [120, 120, 2000]
    half = pictures[0].shape[1] // 2
    inside = slice(pictures[0].shape[0] // 3, None)
    # The left half stays; the middle one of the right half is the target again.
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture[inside, :half], pictures[0][inside, :half])
    dark = [p[inside, half:].mean() for p in pictures]
    assert dark[0] > dark[1] > dark[2]
    left, right = pictures[1][inside, :half], pictures[1][inside, half:]
    assert abs(left.mean() - right.mean()) < 3
    assert list((tmp_path / "a").iterdir()) == [path]


def test_a_film_appears_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    target = np.ones((3, 3))
    path = tmp_path / "film.gif"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        figures.animate(
            target, ((k, target / (1 - k) if k < 1 else 1 / 0) for k in range(2)), WINDOW, path
        )
    assert path.read_bytes() == b"old"
    with pytest.raises(ShapeError, match="frames: there are none"):
        figures.animate(target, [], WINDOW, path)
    with pytest.raises(SpecError, match=r"ends in \.gif"):
        figures.animate(target, [(0, target)], WINDOW, tmp_path / "film.png")
    with pytest.raises(ShapeError, match="frames: shape"):
        figures.animate(target, [(0, np.ones((2, 2)))], WINDOW, path)

    def full(path, write):
        raise RunError("disk full")

    monkeypatch.setattr(film, "write_atomically", full)
    with pytest.raises(RunError, match="disk full"):
        figures.animate(target, [(0, target)], WINDOW, path)
    assert path.read_bytes() == b"old"
