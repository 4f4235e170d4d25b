"""Missing cells against closed forms: a linear factor model, whose every conditional is Gaussian."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow.core.columns import Column
from varflow.core.errors import SpecError
from varflow.core.observed import Observed
from varflow.data.columns import Columns
from varflow.evaluation import importance_sample, removed_cells
from varflow.evaluation.imputing import cell_scores, completions, moments, weighted
from varflow.evaluation.removed import Loss, of_model, remove
from varflow.evaluation.table_baselines import BASELINES, predictions
from varflow.likelihoods import Columns as ColumnsLikelihood

LATENT, SIZE, ROWS = 2, 5, 12
COLUMNS = tuple(Column(f"x{j}", "real", loc=10.0 * j, scale=2.0 + j, missing=0.3) for j in range(SIZE))
SCALE = torch.linspace(0.3, 0.9, SIZE, dtype=torch.float64)
WIDER = 1.2


def weights() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(SIZE, LATENT, generator=generator, dtype=torch.float64)
    return w, 0.5 * torch.randn(SIZE, generator=generator, dtype=torch.float64)


class Exact(nn.Module):
    """The exact mean of q(z|x_observed), and the best scales of a diagonal q, a little wider."""

    reads_mask, features, couples_examples, context_features = True, 2 * LATENT, False, 0

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        w, b = weights()
        there = torch.ones_like(x) if mask is None else mask.to(x.dtype)
        x = torch.where(there > 0, x, 0.0)
        each = torch.einsum("bj,jk,jl->bkl", there / SCALE**2, w, w)
        precision = torch.eye(LATENT, dtype=x.dtype) + each
        pulled = torch.einsum("bj,jk->bk", there * (x - b) / SCALE**2, w)
        mean = torch.linalg.solve(precision, pulled[..., None])[..., 0]
        return torch.cat([mean, math.log(WIDER) - 0.5 * precision.diagonal(dim1=-2, dim2=-1).log()], -1)


def factor_model() -> vf.Model:
    """x = W z + b + σ ε, z ~ N(0, I)."""
    w, b = weights()
    decoder: Any = nn.Linear(LATENT, SIZE)
    decoder.out_shape = (SIZE,)
    likelihood = ColumnsLikelihood(decoder, SIZE, COLUMNS)
    posterior = vf.posteriors.Gaussian(LATENT, Exact())
    model = vf.Model(vf.priors.StandardNormal(LATENT), likelihood, posterior).double()
    with torch.no_grad():
        decoder.weight.copy_(w)
        decoder.bias.copy_(b)
        likelihood.heads[0].log_scale.copy_(SCALE.log())
        posterior.moments.weight.copy_(torch.eye(2 * LATENT))
        posterior.moments.bias.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> vf.Model:
    return factor_model()


@pytest.fixture(scope="module")
def rows() -> Observed:
    generator = torch.Generator().manual_seed(1)
    w, b = weights()
    z = torch.randn(ROWS, LATENT, generator=generator, dtype=torch.float64)
    x = z @ w.T + b + SCALE * torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64)
    mask = torch.rand(ROWS, SIZE, generator=generator) > 0.4
    mask[0], mask[1] = True, False
    return Observed(torch.where(mask, x, torch.nan), None, mask)


def exact(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(observed) of a row, and mean and covariance of all cells given these."""
    w, b = weights()
    covariance = w @ w.T + torch.diag(SCALE**2)
    there, gone = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    if not len(there):
        return torch.zeros((), dtype=torch.float64), b, covariance
    own = covariance[there][:, there]
    log_p = torch.distributions.MultivariateNormal(b[there], own).log_prob(x[there])
    gain = torch.linalg.solve(own, covariance[there][:, gone]).T
    mean, left = x.clone(), torch.zeros(SIZE, SIZE, dtype=torch.float64)
    mean[gone] = b[gone] + gain @ (x[there] - b[there])
    left[gone[:, None], gone] = covariance[gone][:, gone] - gain @ covariance[there][:, gone]
    return log_p, mean, left


def every(rows: Observed) -> tuple[Tensor, Tensor, Tensor]:
    assert rows.mask is not None
    return tuple(torch.stack(parts) for parts in zip(*map(exact, rows.x, rows.mask), strict=True))  # type: ignore[return-value]


KEPT = Columns("columns", None, COLUMNS, ("number",) * SIZE)
LOC = torch.tensor([column.loc for column in COLUMNS], dtype=torch.float64)
UNIT = torch.tensor([column.scale for column in COLUMNS], dtype=torch.float64)


def test_log_p_of_the_observed_cells_and_its_bounds(model, rows):
    log_p, _, _ = every(rows)
    found = importance_sample(model, rows, 4000)
    assert bool(((found.log_px - log_p).abs() < 4 * found.log_px_variance.sqrt() + 1e-9).all())
    assert bool((found.elbo < log_p + 4 * found.elbo_variance.sqrt() + 1e-9).all())
    assert float(found.log_px[1].abs()) < 0.05, "nothing is observed"
    # The bound of k samples comes from below, and its gap falls with k.
    many = Observed(rows.x.repeat(200, 1), None, rows.mask.repeat(200, 1))
    gaps = []
    for k in (1, 5, 50):
        bound = importance_sample(model, many, k).log_px.reshape(200, ROWS)
        gap = log_p - bound.mean(0)
        error = bound.std(0) / math.sqrt(200)
        assert bool((gap > -4 * error - 1e-9).all())
        gaps.append(float(gap.mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.01


def test_means_and_spreads_of_missing_cells(model, rows):
    _, mean, covariance = every(rows)
    found = [moments(model, KEPT, weighted(model, rows, 400, seed=seed)) for seed in range(30)]
    gone = ~rows.mask
    wanted = {"value": LOC + UNIT * mean, "spread": UNIT * covariance.diagonal(dim1=-2, dim2=-1).sqrt()}
    for name, value in wanted.items():
        each = torch.stack([getattr(one, name) for one in found])[:, gone]
        error = each.std(0) / math.sqrt(len(each))
        off = (each.mean(0) - value[gone]) / error
        assert float(off.abs().max()) < 4.5, name
        assert float(off.square().mean()) < 2, name
        # A single one is as close.
        assert bool(((each[0] - value[gone]).abs() < 5 * each.std(0)).all())


def test_draws_have_the_conditional_mean_and_covariance(model, rows):
    few = rows[2:6]
    _, mean, covariance = every(few)
    draws = 20_000
    found = weighted(model, few, 20_000, seed=3)
    x = completions(model, found, draws, seed=4)
    for number in range(len(few)):
        gone = ~few.mask[number]
        own, exact_covariance = x[:, number, gone], covariance[number][gone][:, gone]
        # Draws share the samples of z, which are as many.
        error = (2 / draws) ** 0.5
        scale = exact_covariance.diagonal().sqrt()
        assert bool(((own.mean(0) - mean[number, gone]).abs() < 5 * error * scale).all())
        bound = 6 * error * scale[:, None] * scale
        assert bool(((own.T.cov().reshape(exact_covariance.shape) - exact_covariance).abs() < bound).all())


def test_log_p_of_removed_cells_given_the_rest(model, rows):
    w, b = weights()
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(ROWS, LATENT, generator=generator, dtype=torch.float64)
    x = z @ w.T + b + SCALE * torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64)
    gone = torch.rand(ROWS, SIZE, generator=generator) < 0.3
    rest = Observed(torch.where(gone, 0.0, x), None, ~gone)
    whole = torch.stack([exact(row, torch.ones(SIZE, dtype=torch.bool))[0] for row in x])
    wanted = whole - torch.stack([exact(row, ~hole)[0] for row, hole in zip(x, gone, strict=True)])
    found = cell_scores(model, weighted(model, rest, 20_000, seed=1), x, gone)
    assert bool(((found.joint - wanted).abs() < 5 * found.variance.sqrt() + 1e-9).all())
    torch.testing.assert_close(found.continuous, found.joint)
    # One cell by itself.
    row, column = (int(i) for i in gone.nonzero()[0])
    _, mean, covariance = exact(rest.x[row], rest.mask[row])
    own = torch.distributions.Normal(mean[column], covariance[column, column].sqrt()).log_prob(x[row, column])
    assert abs(float(found.each[row, column] - own)) < 0.05
    assert float(found.each[~gone].abs().max()) == 0


def test_a_row_has_the_same_values_alone_and_among_others(model, rows):
    keys = list(range(ROWS))
    whole = weighted(model, rows, 100, seed=2, keys=keys)
    alone = weighted(model, rows[4:5], 100, seed=2, keys=keys[4:5])
    torch.testing.assert_close(alone.z[:, 0], whole.z[:, 4])
    torch.testing.assert_close(moments(model, KEPT, alone).value[0], moments(model, KEPT, whole).value[4])
    torch.testing.assert_close(
        completions(model, alone, 7, 1, keys[4:5])[:, 0], completions(model, whole, 7, 1, keys)[:, 4]
    )
    small = weighted(model, rows, 100, memory=5000, seed=2, keys=keys)
    torch.testing.assert_close(moments(model, KEPT, small).value, moments(model, KEPT, whole).value)


def test_the_mean_of_a_positive_column_is_that_of_a_log_normal():
    columns = (Column("pay", "positive", loc=2.0, scale=0.5, missing=0.1), Column("n", "count", loc=1.0, scale=0.5))
    decoder: Any = nn.Linear(1, 2)
    decoder.out_shape = (2,)
    likelihood = ColumnsLikelihood(decoder, 2, columns)
    encoder: Any = nn.Linear(2, 2)
    encoder.features = 2
    encoder.forward = lambda x, mask=None: torch.zeros(len(x), 2, dtype=x.dtype)  # type: ignore[method-assign]
    encoder.reads_mask = True
    model = vf.Model(vf.priors.StandardNormal(1), likelihood, vf.posteriors.Gaussian(1, encoder)).double()
    with torch.no_grad():
        for parameter in (decoder.weight, decoder.bias, model.posterior.moments.bias):
            parameter.zero_()
        decoder.weight[0, 0] = 0.8
        likelihood.heads[0].log_scale.fill_(math.log(0.6))
    seen = Observed(torch.zeros(1, 2, dtype=torch.float64), None, torch.zeros(1, 2, dtype=torch.bool))
    kept = Columns("columns", None, columns, ("number", "whole"))
    found = moments(model, kept, weighted(model, seen, 20_000))
    # log v ~ N(2, 0.25·(0.8² + 0.6²)) = N(2, 0.5²).
    mean, spread = math.exp(2 + 0.125), math.exp(2 + 0.125) * math.sqrt(math.expm1(0.25))
    assert float(found.value[0, 0]) == pytest.approx(mean, rel=0.02)
    assert float(found.spread[0, 0]) == pytest.approx(spread, rel=0.06)
    counts = likelihood.distribution(torch.zeros(1, 1, dtype=torch.float64)).cells[1]
    assert float(found.value[0, 1]) == pytest.approx(float(counts.mean[0].detach()), rel=1e-6)


@pytest.mark.slow
def test_training_with_missing_cells_reaches_the_exact_log_likelihood():
    """table-missing on rows of the factor model: log p of the observed cells of held-out rows, in table units."""
    generator = torch.Generator().manual_seed(9)
    w, b = weights()
    x = torch.randn(6000, LATENT, generator=generator, dtype=torch.float64) @ w.T + b
    x = x + SCALE * torch.randn(6000, SIZE, generator=generator, dtype=torch.float64)
    v = torch.where(torch.rand(x.shape, generator=generator) > 0.3, 10 + 3 * x, torch.nan)
    kinds = tuple(f"x{j}:real" for j in range(SIZE))
    run = vf.fit("table-missing", v.numpy(), column=kinds, latent=LATENT, hidden=32, steps=3000, quiet=True)
    held = run.dataset.raw("test").double()
    seen, there = (held - 10) / 3, ~held.isnan()
    wanted = torch.stack([exact(row, own)[0] for row, own in zip(seen, there, strict=True)])
    short = wanted - math.log(3) * there.sum(1) - run.log_prob(held, 1000)
    error = float(short.std()) / math.sqrt(len(short))
    assert -3 * error < float(short.mean()) < 0.05
    found = run.imputations(held, 300)
    means = torch.stack([exact(row, own)[1] for row, own in zip(seen, there, strict=True)])
    off = ((found.values - 10) / 3 - means)[~there]
    assert float(off.square().mean().sqrt()) < 0.15


# -- removed cells --------------------------------------------------------------------------------------


def table(count: int = 900) -> Any:
    """A data set whose x is that of the factor model, but for what standardizes it."""
    generator = torch.Generator().manual_seed(7)
    w, b = weights()
    z = torch.randn(count, LATENT, generator=generator, dtype=torch.float64)
    x = z @ w.T + b + SCALE * torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    v = LOC + UNIT * x
    v[torch.rand(v.shape, generator=generator) < 0.1] = torch.nan
    return vf.data.from_tensor(v.numpy(), protocol="columns").under(KEPT).to("cpu", torch.float64)


@pytest.fixture(scope="module")
def dataset() -> Any:
    return table()


def test_the_right_model_is_calibrated(model, dataset):
    held = remove(dataset, "train", 0.3, seed=1)
    found = of_model(model, held, 300)
    rank = found.rank[held.gone]
    assert abs(float(rank.mean()) - 0.5) < 5 * (1 / 12 / len(rank)) ** 0.5
    result = removed_cells(model, dataset, 0.3, "train", 300, seed=1)
    for width in (50, 80, 90, 95):
        one = result.estimates[f"coverage_{width}"]
        assert abs(one.value - width / 100) < 5 * one.standard_error
    # −log p of the removed cells is their entropy given the rest, on average.
    gone = held.gone.any(1)
    wanted = []
    for row, rest in zip(held.whole[gone], held.rest[gone], strict=True):
        x, there = (row - LOC) / UNIT, ~row.isnan()
        log_p = exact(x, there)[0] - exact(x, ~rest.isnan())[0] - UNIT[there & rest.isnan()].log().sum()
        wanted.append(-float(log_p))
    assert result.estimates["removed_nll"].value == pytest.approx(sum(wanted) / len(wanted), abs=0.01)


@pytest.mark.slow
def test_baselines_on_the_same_cells(model, dataset):
    pytest.importorskip("sklearn")
    result = removed_cells(model, dataset, 0.3, samples=200, baselines=tuple(BASELINES))
    # The truth is of the model's kind, and no other method has less loss beyond chance.
    for name in BASELINES:
        gap = result.estimates[f"removed_rmse less {name}"]
        assert gap.value < 3 * gap.standard_error
    gap = result.estimates["removed_rmse less independent"]
    assert gap.value < -3 * gap.standard_error
    gap = result.estimates["removed_nll less independent"]
    assert gap.value < -3 * gap.standard_error
    gap = result.estimates["removed_nll_continuous less mixture"]
    assert abs(gap.value) < 0.15, "one Gaussian is the truth"


def test_a_mixture_of_one_component_is_the_gaussian_of_the_rows(dataset):
    held = remove(dataset, "test", 0.3, seed=0)
    found = predictions("mixture", dataset, held)
    right = torch.stack([exact((row - LOC) / UNIT, ~row.isnan())[1] for row in held.rest])
    off = (found.value - (LOC + UNIT * right))[held.gone] / UNIT.expand_as(held.gone)[held.gone]
    assert float(off.square().mean().sqrt()) < 0.25


def test_errors_take_the_cells_of_a_row_together():
    total, cells = (torch.tensor(v, dtype=torch.float64) for v in ([2.0, 0.0, 4.0], [2.0, 1.0, 2.0]))
    loss = Loss(total, cells)
    mean = 6 / 5
    wanted = math.sqrt(sum((float(t) - mean * float(n)) ** 2 for t, n in zip(total, cells, strict=True))) / 5
    assert loss.value == pytest.approx(mean)
    assert loss.error == pytest.approx(wanted)
    assert Loss(total, cells, root=True).error == pytest.approx(wanted / (2 * math.sqrt(mean)))
    assert loss.less(loss) == (0.0, 0.0)


def test_refusals(model, dataset):
    with pytest.raises(SpecError, match=r"removed: was 1\.5; use a share of the cells"):
        removed_cells(model, dataset, 1.5)
    with pytest.raises(SpecError, match="baseline"):
        removed_cells(model, dataset, 0.3, samples=50, baselines=("nearest",))
    with pytest.raises(SpecError, match="removed: only of a table with likelihood=columns"):
        remove(vf.data.from_tensor(torch.randn(30, 2)), "test", 0.3, 0)
