"""Runs under a condition: columns of a table or labels, from fit to every verb."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.cli import main
from varflow.cli.common import conditions_of
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.data.conditions import listed

QUICK = {"hidden": 16, "layers": 1, "latent": 2, "quiet": True, "threads": 1}
NOISE = (50.0, 3.0)


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """y = 100 (±dose) + 50 ε, w = y/10 + 3 ε: p(y, w | dose, sex) is known."""
    rng = np.random.default_rng(seed)
    dose, sex = rng.choice([0.5, 1.0, 2.0], count), rng.choice(["f", "m"], count)
    y = 100 * np.where(sex == "f", 1.0, -1.0) * dose + NOISE[0] * rng.standard_normal(count)
    return {"dose": dose, "sex": sex, "y": y, "w": y / 10 + NOISE[1] * rng.standard_normal(count)}


def exact(held: dict[str, np.ndarray]) -> np.ndarray:
    mean = 100 * np.where(held["sex"] == "f", 1.0, -1.0) * held["dose"]
    constant = -math.log(2 * math.pi) - math.log(NOISE[0] * NOISE[1])
    squares = ((held["y"] - mean) / NOISE[0]) ** 2 + ((held["w"] - held["y"] / 10) / NOISE[1]) ** 2
    return constant - 0.5 * squares


def write(path: Path, held: dict[str, np.ndarray], order: list[str] | None = None) -> Path:
    names = order or list(held)
    lines = [",".join(names), *(",".join(str(v) for v in row) for row in zip(*(held[n] for n in names), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def density(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("density")
    vf.fit(
        "conditional-density", data=str(write(folder / "t.csv", rows(2000))), condition=("dose,sex",), steps=60,
        lr=5e-3, decay="cosine", prior_length=3, prior_hidden=32, quiet=True, threads=1, out=folder / "run",
    )  # fmt: skip
    (folder / "t.csv").unlink()
    return folder / "run"


def test_a_density_reaches_the_known_conditional_one(density, tmp_path):
    """New rows of a file, without the data of training: the mean of log p*(x|c) − log p(x|c) is KL, small and ≥ 0."""
    run, held = vf.load(density), rows(2000, seed=5)
    given = {"dose": held["dose"], "sex": list(held["sex"])}
    found = run.log_prob(np.stack([held["y"], held["w"]], 1), given=given)
    gap = exact(held) - found
    assert -4 * gap.std() / math.sqrt(2000) < gap.mean() < 0.1
    # Under the wrong condition the rows are much less likely.
    other = run.log_prob(
        np.stack([held["y"], held["w"]], 1), given={**given, "sex": list(np.where(held["sex"] == "f", "m", "f"))}
    )
    assert (found - other).mean() > 1


def test_samples_are_those_of_the_condition(density):
    run = vf.load(density)
    x = run.sample(4000, given={"dose": 2, "sex": "m"}).double()
    assert abs(float(x[:, 0].mean()) + 200) < 5 * NOISE[0] / math.sqrt(4000) + 10
    assert abs(float(x[:, 0].std()) - NOISE[0]) < 6
    each = run.sample(3, given={"dose": [0.5, 1.0, 2.0], "sex": "f"})
    assert each.shape == (3, 2)


def test_files_frames_and_what_is_given_agree(density, tmp_path, capsys):
    run, held = vf.load(density), rows(50, seed=6)
    expected = run.log_prob(
        np.stack([held["y"], held["w"]], 1), given={"dose": held["dose"], "sex": list(held["sex"])}
    )
    path = write(tmp_path / "new.csv", held, ["w", "sex", "y", "dose"])
    assert call("score", density, path, "--out", tmp_path / "s.csv", "--quiet", "--threads", "1") == 0
    scores = np.loadtxt(tmp_path / "s.csv", delimiter=",", skiprows=1)[:, 1]
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    pandas = pytest.importorskip("pandas")
    np.testing.assert_allclose(run.log_prob(pandas.DataFrame(held)).to_numpy(), expected, atol=1e-9)
    alone = pandas.DataFrame({"w": held["w"], "y": held["y"]})
    assert call("sample", density, "--given", "dose=1,sex=f", "--count", "3", "--out", tmp_path / "x.csv") == 0
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == "y,w"
    with pytest.raises(SpecError, match=r"given: missing; this run is conditioned on dose, sex"):
        run.log_prob(alone)
    assert call("sample", density, "--count", "3") == 2
    assert "given: missing" in capsys.readouterr().err


def test_values_with_commas_stand_in_quotes():
    assert conditions_of('place="a, b",dose=3') == {"place": "a, b", "dose": 3.0}
    assert conditions_of('code="007"') == {"code": "007"}
    with pytest.raises(SpecError, match="given: was 'place=a, b'; use name=value"):
        conditions_of("place=a, b")


def test_a_condition_at_the_end_of_the_world_is_refused():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    conditions = vf.data.from_tensor(x, context=x[:, :1]).conditions
    with pytest.raises(DataError, match=r"given: 'c0' is 1e\+30 in row 2 .* scales away from the training rows"):
        conditions.of({"c0": [0.1, 1e30]}, 2)


def test_a_row_has_one_score_alone_and_among_others():
    """Its latents are drawn by what it holds, not by where it stands."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((150, 3))
    model = vf.fit("table", x, latent=2, steps=5, quiet=True, threads=1)
    among = model.log_prob(x, samples=20)
    np.testing.assert_allclose(model.log_prob(x[140:141], samples=20), among[140:141], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.log_prob(x[::-1].copy(), samples=20), among[::-1], rtol=1e-5, atol=1e-5)


def test_what_is_given_wrongly_is_refused(density):
    run, x = vf.load(density), np.zeros((3, 2))
    with pytest.raises(SpecError, match=r"given: 'doze' is no condition of this run; did you mean 'dose'"):
        run.log_prob(x, given={"doze": 1, "sex": "f"})
    with pytest.raises(SpecError, match=r"given: 'sex' is missing"):
        run.log_prob(x, given={"dose": 1})
    with pytest.raises(DataError, match=r"column 'sex' has 'x' in row 1 .* none of its values: f, m"):
        run.sample(1, given={"dose": 1, "sex": "x"})
    with pytest.raises(DataError, match=r"given: 'sex' is missing in row 2"):
        run.log_prob(x, given={"dose": 1, "sex": ["f", None, "m"]})
    with pytest.raises(ShapeError, match=r"given: 'dose' has 2 values, and there are 3 rows; give one value, or 3"):
        run.log_prob(x, given={"dose": [1.0, 2.0], "sex": "f"})
    with pytest.raises(DataError, match=r"given: column 'dose' has inf in row 1 .* no finite number"):
        run.log_prob(x, given={"dose": np.inf, "sex": "f"})
    with pytest.raises(SpecError, match=r"distribution: this run is conditioned on dose, sex"):
        run.distribution()


def test_conditions_are_named_before_anything_is_fitted(tmp_path):
    path = str(write(tmp_path / "t.csv", rows(100)))
    with pytest.raises(SpecError, match=r"condition: .* has no column 'size'"):
        vf.fit("conditional-density", data=path, condition=("size",), steps=1, quiet=True)
    with pytest.raises(SpecError, match=r"condition: .* has no other columns"):
        vf.fit("conditional-density", data=path, condition=("dose,sex,y,w",), steps=1, quiet=True)
    with pytest.raises(SpecError, match=r"condition: the prior normal cannot be conditioned; use a flow prior"):
        vf.fit("conditional-density", data=path, condition=("dose,sex",), prior="normal", steps=1, quiet=True)
    with pytest.raises(SpecError, match=r"condition: was dose; these data have no columns by name"):
        vf.fit("digits", condition=("dose",), steps=1, quiet=True)
    held = {**rows(100), "dose": np.ones(100)}
    with pytest.raises(DataError, match=r"condition: column 'dose' cannot be conditioned on|does not vary"):
        vf.fit(
            "conditional-density",
            data=str(write(tmp_path / "u.csv", held)),
            condition=("dose,sex",),
            steps=1,
            quiet=True,
        )
    assert listed(("a, b", "c")) == ("a", "b", "c")
    with pytest.raises(SpecError, match=r"condition: 'a' is given twice"):
        listed(("a,b", "a"))


@pytest.mark.parametrize(
    "prior", [pytest.param({}, marks=pytest.mark.slow), {"prior": "maf", "prior_length": 1, "prior_context": True}]
)
def test_pictures_under_their_labels(tmp_path, prior):
    """p(x|z, y) of digits: fitted, resumed, evaluated, annealed and refined under their classes."""
    from varflow.evaluation import Annealing, Refinement, annealed_likelihood, inference_gaps

    run = vf.fit("digits", condition=("label",), steps=60, out=tmp_path / "run", **QUICK, **prior)
    assert run.conditions.names == ("label",)
    assert run.model.conditioned
    again = vf.resume(tmp_path / "run", steps=80, quiet=True)
    whole = vf.fit("digits", condition=("label",), steps=80, **QUICK, **prior)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    found = again.evaluate(samples=20)
    assert math.isfinite(found.estimates["nll"].value)
    annealed = annealed_likelihood(
        again.model, again.dataset, points=5, settings=Annealing(chains=2, temperatures=5, warmup=20)
    )
    refined = inference_gaps(again.model, again.dataset, points=5, settings=Refinement(steps=5, evaluation=20),
                   annealing=Annealing(chains=2, temperatures=5, warmup=20))  # fmt: skip
    assert math.isfinite(annealed.estimates["nll"].value)
    assert "amortization_gap" in refined.estimates
    copy = vf.load(tmp_path / "run")
    pictures = copy.sample(4, given={"label": [0, 1, 2, 3]})
    assert pictures.shape == (4, 1, 8, 8)
    x, y = again.dataset.raw("test")[:6], again.dataset.labels("test")[:6]
    under = copy.log_prob(x, given={"label": y}, samples=50)
    wrong = copy.log_prob(x, given={"label": (y + 1) % 10}, samples=50)
    assert not torch.equal(under, wrong)
    assert copy.embed(x, given={"label": y}).shape == (6, 2)
    assert copy.reconstruct(x, given={"label": y}).shape == x.shape
    assert copy.interpolate(x[0], x[1], 3, given={"label": 4}).shape == (3, 1, 8, 8)
    assert copy.nearest(x, 2, given={"label": y}).distance.shape == (6, 2)
    assert run.report().exists()


def test_a_category_is_summed_out():
    """p(x) = Σ π_k p(x|k), exact for a density; integrates to 1 on a grid."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (600,), generator=generator)
    x = (y.float() - 1)[:, None] * 2 + 0.5 * torch.randn(600, 1, generator=generator)
    data = vf.data.from_tensor(x, protocol="standardize", context=y, column=("c0:category",))
    run = vf.fit("conditional-density", data=data, steps=100, lr=1e-2, prior="triangular", quiet=True, threads=1)
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    density = run.log_prob(grid, given="marginal").exp()
    assert abs(float(torch.trapezoid(density, grid[:, 0])) - 1) < 1e-3
    column = run.conditions.columns[0]
    each = torch.stack([run.log_prob(grid, given={"c0": k}) for k in range(3)])
    expected = (each + torch.tensor(column.shares).log()[:, None]).logsumexp(0)
    torch.testing.assert_close(density.log(), expected)
    with pytest.raises(SpecError, match=r"given: was 'all'; use name → value, or 'marginal'"):
        run.log_prob(grid, given="all")


def test_a_table_of_kinds_under_some_of_its_columns(tmp_path):
    held = {**rows(300), "visits": np.random.default_rng(3).poisson(2.0, 300)}
    path = write(tmp_path / "t.csv", held)
    run = vf.fit("table", data=str(path), condition=("sex",), steps=30, out=tmp_path / "run", **QUICK)
    assert [column.name for column in run.dataset.column_kinds] == ["dose", "y", "w", "visits"]
    path.unlink()
    copy = vf.load(tmp_path / "run")
    drawn = copy.sample(5, given={"sex": "f"}, stored=True)
    with pytest.raises(SpecError, match=r"count: was 100000000000; so many draws do not fit into memory"):
        copy.sample(10**11, given={"sex": "f"})
    assert drawn.shape == (5, 4)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(held).iloc[:7]
    frame.loc[2, "y"] = np.nan
    scores = copy.log_prob(frame)
    assert np.isfinite(scores).all()
    rest = frame.drop(columns="sex")
    np.testing.assert_array_equal(copy.log_prob(rest, given={"sex": frame["sex"]}), scores)
    with pytest.raises(DataError, match=r"x: column 'w' has 1e\+300 in row 1 .* scales away from the training rows"):
        copy.log_prob(frame.assign(w=1e300))
    again = vf.fit("table", pandas.DataFrame(held), condition=("sex",), steps=2, **QUICK)
    assert isinstance(again.sample(3, given={"sex": "m"}), pandas.DataFrame)
    assert list(copy.reconstruct(frame).columns) == ["dose", "y", "w", "visits"]
    with pytest.raises(SpecError, match=r"x: column 'sex' is missing|given: missing"):
        copy.log_prob(frame.drop(columns="sex"))


def test_a_context_of_ones_own_beside_a_tensor():
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(400, 2, generator=generator)
    x = c @ torch.tensor([[1.0, 0.5], [0.0, 2.0]]) + 0.3 * torch.randn(400, 2, generator=generator)
    data = vf.data.from_tensor(x, protocol="standardize", context=c)
    assert [column.name for column in data.context] == ["c0", "c1"]
    run = vf.fit(
        "conditional-density", data=data, steps=60, lr=1e-2, prior_length=2, prior_hidden=16, quiet=True, threads=1
    )
    found, wrong = (run.log_prob(x[:50], given=held[:50]) for held in (c, c.roll(1, 0)))
    assert float((found - wrong).mean()) > 0.5


def test_several_processes_and_rows_at_once_see_the_same(density):
    run, held = vf.load(density), rows(40, seed=7)
    x, given = np.stack([held["y"], held["w"]], 1), {"dose": held["dose"], "sex": list(held["sex"])}
    whole = run.log_prob(x, given=given)
    each = [float(run.log_prob(x[i : i + 1], given={n: v[i : i + 1] for n, v in given.items()})[0]) for i in range(5)]
    np.testing.assert_allclose(each, whole[:5], atol=1e-5)
