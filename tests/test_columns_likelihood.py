"""The likelihood of tables: scipy's densities, sums and integrals of one, missing cells, a factor model."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

import varflow as vf
from varflow.core import random
from varflow.core.columns import Column
from varflow.core.errors import ShapeError, SpecError
from varflow.core.form import Form
from varflow.likelihoods import Columns, Gaussian
from varflow.likelihoods import negative_binomial as nb
from varflow.likelihoods.heads import Categories, Counts, Normal, Ordered, StudentT
from varflow.likelihoods.student_t import log_normalizer
from varflow.networks import MLP, ColumnFeatures, TableEncoder
from varflow.runs import assemble
from varflow.settings.spec import RunSpec

double = torch.float64
TABLE = (
    Column("town", "category", tuple("abcd"), missing=0.1),
    Column("age", "real"),
    Column("visits", "count", loc=1.0, scale=0.8),
    Column("smokes", "binary", ("no", "yes")),
    Column("income", "positive"),
    Column("grade", "ordinal", ("low", "middle", "high")),
    Column("debt", "real", tail=3.0),
    Column("street", "category", tuple(f"s{i}" for i in range(30))),
    Column("side", "category", ("left", "right")),
    Column("born", "date"),
    Column("stars", "ordinal", tuple("12345"), missing=0.2),
    Column("calls", "count", loc=3.0, scale=0.4),
)
SCALES = ("learned", "decoded")
scales = pytest.mark.parametrize("column_scale", SCALES)


class Given(nn.Module):
    """A decoder that puts out z itself."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z


def made(columns=TABLE, latent: int = 3, dtype=double, **options) -> Columns:
    torch.manual_seed(0)
    shape = Columns.decoder_shape(len(columns), columns, **options)
    likelihood = Columns(MLP(latent, shape, (6,), activation="tanh"), len(columns), columns, **options)
    for parameter in likelihood.heads.parameters():
        nn.init.normal_(parameter, float(parameter.detach().mean()) if parameter.numel() else 0.0, 0.3)
    return likelihood.to(dtype)


def rows(columns, *batch: int, dtype=double) -> torch.Tensor:
    x = torch.randn(*batch, len(columns), dtype=dtype)
    for place, column in enumerate(columns):
        if not column.continuous:
            x[..., place] = torch.randint(0, len(column.categories) or 40, batch).to(dtype)
    return x


def alone(column: Column, out, **options) -> tuple[Columns, torch.Tensor]:
    """A table of one column, and the z at which its head reads ``out``."""
    likelihood = Columns(Given(), 1, [column], **options).to(double)
    return likelihood, torch.as_tensor(out, dtype=double)


# -- each head against its formula ---------------------------------------------------------------------


@scales
def test_every_column_is_that_of_scipy(column_scale):
    likelihood = made(column_scale=column_scale)
    x, z = rows(TABLE, 6), torch.randn(6, 3, dtype=double)
    with torch.no_grad():
        found = likelihood.log_prob_each(x, z)
        outs = {type(head): (head, own) for head, own in likelihood._outs(z)}
    normal, out = outs[Normal]
    centre, log_scale = (p.detach() for p in normal.parameters_at(out))
    expected = stats.norm.logpdf(x[:, [1, 4, 9]], centre, log_scale.exp())
    torch.testing.assert_close(found[:, [1, 4, 9]], torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    heavy, out = outs[StudentT]
    centre, log_scale = (p.detach() for p in heavy.parameters_at(out))
    expected = stats.t.logpdf(x[:, [6]], heavy.log_freedom.detach().exp(), centre, log_scale.exp())
    torch.testing.assert_close(found[:, [6]], torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    counts, out = outs[Counts]
    log_mean, log_dispersion = (p.detach() for p in counts.parameters_at(out))
    r, share = (-log_dispersion).exp(), torch.sigmoid(-log_mean - log_dispersion)
    expected = stats.nbinom.logpmf(x[:, [2, 11]], r, share)
    torch.testing.assert_close(found[:, [2, 11]], torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
    for place in (0, 3, 5, 7, 8, 10):
        masses = likelihood.probabilities(z, TABLE[place].name).detach()
        expected = masses.gather(-1, x[:, [place]].long()).log()[:, 0]
        torch.testing.assert_close(found[:, place], expected, rtol=1e-12, atol=1e-12)


def test_a_positive_column_is_a_log_normal_of_the_table():
    """log N(x; m, σ) of x = (log v − loc)/scale, with log|dx/dv| = −log(v scale)."""
    column = Column("income", "positive", loc=2.0, scale=0.6)
    likelihood, z = alone(column, [[0.3], [-1.0], [0.0]])
    v = torch.tensor([[5.0], [0.1], [40.0]], dtype=double)
    found = likelihood.log_prob((v.log() - 2.0) / 0.6, z).detach() - (v * 0.6).log()[:, 0]
    expected = stats.lognorm.logpdf(v[:, 0], 0.6, scale=(2.0 + 0.6 * z[:, 0]).exp())
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_one_gaussian_column_is_the_gaussian_likelihood():
    x, z = torch.randn(7, 1, dtype=double), torch.randn(4, 7, 3, dtype=double)
    for scale, other in (("learned", "per-dimension"), ("decoded", "decoder")):
        likelihood = made([Column("v", "real")], column_scale=scale)
        gaussian = Gaussian(likelihood.decoder, 1, other).to(double)
        if scale == "learned":
            gaussian.log_scale.data.copy_(likelihood.heads[0].log_scale)
        torch.testing.assert_close(likelihood.log_prob(x, z), gaussian.log_prob(x, z), rtol=1e-15, atol=1e-15)
        assert torch.equal(likelihood.mean(z), gaussian.mean(z))
        with random.stream(1):
            one = likelihood.sample(z)
        with random.stream(1):
            assert torch.equal(one, gaussian.sample(z))


@pytest.mark.parametrize("column", [TABLE[1], TABLE[4], TABLE[6], TABLE[9]], ids=lambda c: c.name)
@scales
def test_densities_integrate_to_one(column, column_scale):
    out = [[0.7, -0.4]] if column_scale == "decoded" else [[0.7]]
    likelihood, z = alone(column, out, column_scale=column_scale)
    # x = sinh(s) reaches tails of a Student-t, and the trapezoids stay exact.
    s = torch.linspace(-40, 40, 8001, dtype=double)
    mass = (likelihood.log_prob(s.sinh()[:, None], z).exp() * s.cosh()).sum() * (s[1] - s[0])
    assert abs(mass.item() - 1) < 1e-9


@pytest.mark.parametrize("level", [0.0, 1.0, 30.0, 800.0, 1e6])
@scales
def test_probabilities_of_codes_sum_to_one_at_any_parameters(column_scale, level):
    columns = [column for column in TABLE if column.categories]
    torch.manual_seed(3)
    shape = Columns.decoder_shape(len(columns), columns, column_scale=column_scale)
    likelihood = Columns(Given(), len(columns), columns, column_scale=column_scale).to(double)
    for parameter in likelihood.heads.parameters():
        nn.init.normal_(parameter, std=min(level, 30.0))
    z = level * torch.randn(20, *shape, dtype=double)
    for column in columns:
        masses = likelihood.probabilities(z, column.name)
        assert masses.shape == (20, len(column.categories))
        assert masses.isfinite().all()
        # A cut point of 1e12 is rounded to 1e-4 of a gap between its neighbours.
        loose = level > 1 and column.kind == "ordinal"
        within = 1e-3 if loose else 1e-12
        torch.testing.assert_close(masses.sum(-1), torch.ones(20, dtype=double), rtol=0, atol=within)


@pytest.mark.parametrize(("mean", "dispersion"), [(3.0, 0.5), (0.01, 5.0), (40.0, 1e-9), (12.0, 1e-40), (0.3, 200.0)])
def test_probabilities_of_counts_sum_to_one(mean, dispersion):
    log_mean, log_dispersion = torch.tensor([mean, dispersion], dtype=double).log()
    k = torch.arange(200_000, dtype=double)
    masses = nb.log_prob(k, log_mean, log_dispersion).exp()
    assert abs(masses.sum().item() - 1) < 1e-10
    assert abs((masses * k).sum().item() / mean - 1) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_counts_are_right_from_poisson_to_beyond_geometric(dtype):
    """Against 60 digits, in units of what rounding log μ alone does."""
    mpmath = pytest.importorskip("mpmath")
    counts, dispersions = (0, 1, 9, 10, 1000, 10**6, 10**9), (-80.0, -20.0, -3.0, 0.0, 0.7, 20.0, 60.0)
    for k, log_dispersion in itertools.product(counts, dispersions):
        for log_mean in (-50.0, 0.0, math.log(k + 0.5), math.log(k + 1) + 0.3, 14.0):
            a, b = (torch.tensor(v, dtype=dtype) for v in (log_mean, log_dispersion))
            found = nb.log_prob(torch.tensor(float(k), dtype=dtype), a, b).item()
            with mpmath.workdps(90):
                mean, alpha = mpmath.exp(mpmath.mpf(a.item())), mpmath.exp(mpmath.mpf(b.item()))
                r = 1 / alpha
                exact = mpmath.loggamma(k + r) - mpmath.loggamma(r) - mpmath.loggamma(k + 1)
                exact += k * mpmath.log(alpha * mean) - (k + r) * mpmath.log1p(alpha * mean)
                slope = abs(float((k - mean) / (1 + alpha * mean)))
                size = max(1.0, abs(float(exact)), slope * max(1.0, abs(log_mean), math.log(k + 1)))
                error = abs(float(found - exact)) / size
            assert error < 20 * torch.finfo(dtype).eps, (k, log_mean, log_dispersion)


def test_counts_without_dispersion_are_poisson():
    k, log_mean = torch.tensor([0.0, 1.0, 7.0, 1e4], dtype=double), torch.tensor([0.2, 1.0, 1.5, 9.2], dtype=double)
    expected = torch.distributions.Poisson(log_mean.exp()).log_prob(k)
    for log_dispersion in (-40.0, -700.0, -1e4):
        found = nb.log_prob(k, log_mean, torch.tensor(log_dispersion, dtype=double))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_gradients_of_counts_are_finite_and_right():
    k = torch.tensor([0.0, 0.0, 1.0, 1.0, 9.0, 10.0, 300.0, 3.0], dtype=double)
    log_mean = torch.tensor([0.0, -3.0, 0.0, 2.0, 2.2, 0.1, 5.7, 1.0], dtype=double, requires_grad=True)
    log_dispersion = torch.tensor([0.0, 1.0, 0.0, -1.0, -5.0, 3.0, -2.0, -300.0], dtype=double, requires_grad=True)
    inputs = (log_mean, log_dispersion)
    assert torch.autograd.gradcheck(lambda a, b: nb.log_prob(k, a, b), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: nb.log_prob(k, a, b), inputs)
    extremes = torch.cartesian_prod(
        torch.tensor([0.0, 1.0, 50.0, 1e6]),
        torch.tensor([-1e4, -80.0, 0.0, 60.0]),
        torch.tensor([-1e4, -88.0, 0.0, 88.0, 1e4]),
    )
    k, log_mean, log_dispersion = (part.clone().requires_grad_() for part in extremes.unbind(1))
    value = nb.log_prob(k.detach(), log_mean, log_dispersion)
    assert value.isfinite().all()
    assert (value <= 0).all()
    for slope in torch.autograd.grad(value.sum(), (log_mean, log_dispersion)):
        assert slope.isfinite().all()


def test_quantiles_of_a_poisson_variable_are_those_of_scipy():
    rate = torch.cat([torch.zeros(1, dtype=double), torch.logspace(-4, 5, 60, dtype=double)])
    share = torch.special.ndtr(torch.linspace(-8, 8, 81, dtype=double))
    u, rate = torch.meshgrid(share, rate, indexing="ij")
    found, expected = nb.poisson_quantile(u, rate), torch.from_numpy(stats.poisson.ppf(u, rate))
    sure = (rate <= 200) | ((u - 0.5).abs() < 0.49999)
    assert torch.equal(found[sure], expected[sure])
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize("dispersion", [1e-30, 0.02, 1.0, 8.0])
@pytest.mark.parametrize("mean", [0.2, 5.0, 3e4])
def test_samples_of_counts_have_their_distribution(mean, dispersion):
    n = 20_000
    log_mean, log_dispersion = torch.tensor([mean, dispersion], dtype=double).log()
    with random.stream(4):
        k = nb.sample(log_mean.expand(n), log_dispersion.expand(n), 0)
    r = 1 / dispersion
    law = stats.poisson(mean) if dispersion < 1e-20 else stats.nbinom(r, r / (r + mean))
    assert abs(k.mean() - mean) < 4.5 * law.std() / math.sqrt(n)
    for share in (0.1, 0.5, 0.9, 0.99):
        at = law.ppf(share)
        p = law.cdf(at)
        assert abs((k <= at).to(double).mean() - p) <= 4.5 * math.sqrt(p * (1 - p) / n) + 1e-12


def test_the_constant_of_a_student_t_keeps_its_digits():
    mpmath = pytest.importorskip("mpmath")
    for log_freedom in (-8.0, 0.0, 3.0, 3.6, 3.7, 4.0, 9.0, 30.0, 700.0):
        with mpmath.workdps(400):
            nu = mpmath.exp(log_freedom)
            exact = float(mpmath.loggamma((nu + 1) / 2) - mpmath.loggamma(nu / 2) - mpmath.log(nu * mpmath.pi) / 2)
        for dtype in (torch.float32, double):
            found = log_normalizer(torch.tensor(log_freedom, dtype=dtype)).item()
            assert abs(found - exact) < 60 * torch.finfo(dtype).eps * max(1, abs(exact))


def test_ordered_codes_are_differences_of_cumulative_probabilities():
    likelihood = made([replace(TABLE[10], missing=0.0)])
    head = likelihood.heads[0]
    assert isinstance(head, Ordered)
    z = torch.randn(50, 3, dtype=double)
    location = head.parameters_at(likelihood.decode(z))[0]
    cuts = head.cuts()[0][0]
    assert (cuts.diff() > 0).all()
    cumulative = torch.sigmoid(torch.cat([cuts, torch.full((1,), math.inf, dtype=double)]) - location)
    expected = cumulative.diff(dim=-1, prepend=torch.zeros(50, 1, dtype=double))
    torch.testing.assert_close(likelihood.probabilities(z, "stars"), expected, rtol=1e-12, atol=1e-12)


def test_ordered_codes_with_cut_points_side_by_side_have_their_tiny_probability():
    """A gap of e^−60 cannot be seen in the difference of two sigmoids; its probability is the density times it."""
    likelihood, z = alone(Column("stars", "ordinal", ("a", "b", "c")), [[0.4]])
    with torch.no_grad():
        likelihood.heads[0].first_cut.fill_(1.0)
        likelihood.heads[0].log_gap.fill_(-60.0)
    found = likelihood.log_prob(torch.ones(1, 1, dtype=double), z).item()
    share = torch.sigmoid(torch.tensor(0.6, dtype=double)).item()
    assert found == pytest.approx(math.log(share * (1 - share)) - 60, abs=1e-12)


# -- missing cells ---------------------------------------------------------------------------------------


@scales
@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf, 1e30, -1.0])
def test_a_missing_cell_counts_for_nothing(hidden, column_scale):
    likelihood = made(column_scale=column_scale)
    x, z = rows(TABLE, 9), torch.randn(4, 9, 3, dtype=double, requires_grad=True)
    mask = torch.rand(9, len(TABLE)) > 0.4
    mask[0], mask[1] = True, False
    learned = [z, *likelihood.parameters()]
    results = []
    for other in (0.0, hidden):
        given = torch.where(mask, x, other).requires_grad_()
        value = likelihood.log_prob(given, z, mask)
        slopes = torch.autograd.grad(value.sum(), [*learned, given], allow_unused=True)
        assert (slopes[-1][~mask] == 0).all()
        results.append([value, *slopes])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert two.isfinite().all()
    each = likelihood.log_prob_each(x, z)
    assert each.shape == (4, 9, len(TABLE))
    value = results[1][0]
    assert torch.equal(value, torch.where(mask, each, 0.0).sum(-1))
    assert torch.equal(value[:, 0], likelihood.log_prob(x, z)[:, 0])
    assert torch.equal(value[:, 1], torch.zeros(4, dtype=double))


@pytest.mark.parametrize("place", range(len(TABLE)))
def test_a_head_that_overflows_in_a_missing_cell_is_not_heard(place):
    likelihood = Columns(Given(), len(TABLE), TABLE, column_scale="decoded").to(double)
    z = torch.zeros(2, len(likelihood._owner), dtype=double)
    z[:, likelihood._owner == place] = -1e4
    z.requires_grad_()
    mask = torch.ones(2, len(TABLE), dtype=torch.bool)
    mask[:, place] = False
    value = likelihood.log_prob(rows(TABLE, 2), z, mask)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert (slope[:, likelihood._owner == place] == 0).all()


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"mask: shape \(2, 3\); this Columns needs \[\.\.\., 12\]"):
        made().log_prob(rows(TABLE, 2), torch.zeros(2, 3, dtype=double), torch.ones(2, 3, dtype=torch.bool))


@scales
def test_gradients_under_a_mask_are_right(column_scale):
    likelihood = made(column_scale=column_scale)
    x, mask = rows(TABLE, 3), torch.rand(3, len(TABLE)) > 0.3
    z = torch.randn(2, 3, 3, dtype=double, requires_grad=True)
    names = dict(likelihood.named_parameters())

    def value(z, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(likelihood, named, (x, z)) + likelihood.log_prob(x, z, mask)

    inputs = (z, *names.values())
    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, inputs, fast_mode=True)


def test_many_likelihoods_with_their_buffers_in_one_program():
    several = [made(column_scale="decoded") for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(several)
    x, z = rows(TABLE, 3, 5), torch.randn(3, 2, 5, 3, dtype=double)
    together = torch.func.vmap(lambda p, b, x, z: torch.func.functional_call(several[0], (p, b), (x, z)))(
        parameters, buffers, x, z
    )
    expected = torch.stack([one.log_prob(a, b) for one, a, b in zip(several, x, z, strict=True)])
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-12)


# -- what stands for a cell ------------------------------------------------------------------------------


@scales
def test_samples_of_every_column_have_their_moments_and_values(column_scale):
    likelihood, n = made(column_scale=column_scale), 20_000
    z = torch.randn(3, dtype=double)
    with random.stream(11):
        x = likelihood.sample(z.expand(n, 3))
    law = likelihood.distribution(z)
    error = (x.mean(0) - law.mean) / (law.variance / n).sqrt()
    assert error.abs().max() < 4.5
    likelihood.check(x)
    for column, values in zip(TABLE, x.unbind(1), strict=True):
        if column.categories:
            p = likelihood.probabilities(z, column.name)
            shares = torch.bincount(values.long(), minlength=len(p)) / n
            assert ((shares - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1e-12).all()


def test_what_stands_for_a_cell():
    likelihood, z = made(), torch.randn(40, 3, dtype=double)
    mean = likelihood.mean(z)
    for place, column in enumerate(TABLE):
        found, law = mean[:, place], likelihood.distribution(z, column.name)
        if column.kind in ("category", "binary"):
            assert torch.equal(found, likelihood.probabilities(z, column.name).argmax(-1).to(double))
        elif column.kind == "ordinal":
            below = likelihood.probabilities(z, column.name).cumsum(-1)
            code = found.long()[:, None]
            assert (below.gather(-1, code) >= 0.5).all()
            assert ((code == 0) | (below.gather(-1, (code - 1).clamp(min=0)) < 0.5)).all()
        else:
            torch.testing.assert_close(found, law.mean)


def test_at_outputs_of_zero_a_head_is_near_its_columns():
    columns = (
        Column("visits", "count", loc=2.0, scale=0.5),
        Column("rare", "count", loc=0.0, scale=0.1),
        Column("odd", "count", loc=700.0, scale=300.0),
        Column("stars", "ordinal", tuple("12345")),
        Column("debt", "real", tail=2.5),
        Column("age", "real"),
    )
    likelihood = Columns(Given(), 6, columns, real_tails="student-t").to(double)
    z = torch.zeros(6, dtype=double)
    # E k and var k of log(1 + k) ~ N(2, ½²).
    law = likelihood.distribution(z, "visits")
    raised = math.exp(2 + 0.125)
    assert law.mean.item() == pytest.approx(raised - 1, rel=1e-6)
    assert law.variance.item() == pytest.approx(math.expm1(0.25) * raised**2, rel=1e-5)
    assert likelihood.mean(z)[1].item() == pytest.approx(0.01, rel=1e-5)
    assert all(bool(p.isfinite().all()) for p in [*likelihood.parameters(), *likelihood.buffers()])
    even = torch.full((5,), 0.2, dtype=double)
    torch.testing.assert_close(likelihood.probabilities(z, "stars"), even, rtol=1e-6, atol=0)
    assert likelihood.distribution(z, "debt").df.item() == pytest.approx(2.5)
    assert likelihood.distribution(z, "age").df.item() == pytest.approx(5.0)
    plain = Columns(Given(), 6, columns, real_tails="gaussian")
    assert not any(isinstance(head, StudentT) for head in plain.heads)


def test_columns_of_a_kind_share_their_operations():
    """Forty columns are as many heads as there are kinds, and categories are filled up at most fourfold."""
    columns = [replace(TABLE[i % 12], name=str(i)) for i in range(40)]
    assert len(made(columns).heads) == 7
    sizes = [2, 3, 4, 9, 30, 31, 200]
    wide = made([Column(str(k), "category", tuple(map(str, range(k)))) for k in sizes])
    assert sum(len(head.columns) for head in wide.heads) == 7
    for head in wide.heads:
        assert isinstance(head, Categories)
        assert max(head.sizes) <= 4 * min(head.sizes)


def test_columns_of_one_value_say_nothing():
    columns = [Column("a", "category", ("x",)), Column("b", "ordinal", ("x",)), Column("c", "ordinal", ("x", "y"))]
    likelihood = made(columns)
    z = torch.randn(4, 3, dtype=double)
    each = likelihood.log_prob_each(torch.zeros(4, 3, dtype=double), z)
    assert torch.equal(each[:, :2], torch.zeros(4, 2, dtype=double))
    torch.testing.assert_close(likelihood.probabilities(z, "c").sum(-1), torch.ones(4, dtype=double))


# -- a model with known answers --------------------------------------------------------------------------


def test_a_linear_gaussian_factor_model_with_missing_cells():
    """log p(x observed) = log N(x_o; b_o, W_o W_oᵀ + Σ_o); E[w/p] = 1 by importance samples."""
    torch.manual_seed(5)
    columns = [Column(str(i), "real", missing=0.3) for i in range(5)]
    likelihood = Columns(MLP(2, 5, ()), 5, columns).to(double)
    head = likelihood.heads[0]
    nn.init.normal_(head.log_scale, -0.5, 0.2)
    weight, bias, scale = likelihood.decoder.last.weight, likelihood.decoder.last.bias, head.log_scale.exp()
    n, samples = 12, 100_000
    with torch.no_grad():
        x = torch.randn(n, 2, dtype=double) @ weight.T + bias + scale * torch.randn(n, 5, dtype=double)
        mask = torch.rand(n, 5) > 0.4
        mask[0] = False
        ones = torch.ones(2, dtype=double)
        for row, there in zip(x, mask, strict=True):
            w, spread = weight[there], scale[there]
            covariance = w @ w.T + torch.diag(spread**2)
            law = torch.distributions.MultivariateNormal(bias[there], covariance) if there.any() else None
            exact = law.log_prob(row[there]) if law else torch.zeros((), dtype=double)
            precision = torch.diag(ones) + (w / spread[:, None] ** 2).T @ w
            centre = torch.linalg.solve(precision, w.T @ ((row[there] - bias[there]) / spread**2))
            # Half as wide again as the posterior, so that the weights are bounded.
            q = torch.distributions.MultivariateNormal(centre, 2.25 * torch.linalg.inv(precision))
            z = q.sample((samples,))
            prior = torch.distributions.Independent(torch.distributions.Normal(0 * ones, ones), 1)
            hidden = torch.where(there, row, math.nan)
            log_w = likelihood.log_prob(hidden, z, there) + prior.log_prob(z) - q.log_prob(z)
            ratio = (log_w - exact).exp()
            assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(samples)
            exactly = torch.distributions.MultivariateNormal(centre, precision_matrix=precision)
            z = exactly.sample((5,))
            log_w = likelihood.log_prob(hidden, z, there) + prior.log_prob(z) - exactly.log_prob(z)
            torch.testing.assert_close(log_w, exact.expand(5), rtol=0, atol=1e-9)


# -- in a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["auto", "columns"])
def test_a_spec_builds_it_with_an_encoder_that_reads_the_mask(likelihood):
    spec = RunSpec().replace(likelihood=likelihood, hidden=8, layers=1, latent=2)
    spec = spec.replace(column_scale="decoded", real_tails="gaussian")
    model = assemble.build(spec, Form((len(TABLE),), "columns", None, TABLE))
    assert isinstance(model.likelihood, Columns)
    assert model.likelihood.column_scale == "decoded"
    assert not any(isinstance(head, StudentT) for head in model.likelihood.heads)
    encoder = model.posterior.encoder
    assert isinstance(encoder, TableEncoder)
    assert encoder.reads_mask
    assert model.likelihood.reads == ("mask",)
    assert encoder.network.in_shape == (ColumnFeatures(TABLE).features,)
    terms = model.terms(rows(TABLE, 5, dtype=torch.float32), samples=3)
    assert terms.log_weight.shape == (3, 5)
    assert terms.log_weight.isfinite().all()


def test_its_settings_are_checked_and_belong_to_it():
    spec = vf.RunSpec().replace(likelihood="columns")
    assert spec.likelihood.protocol == "columns"
    with pytest.raises(SpecError, match="real_tails: unknown value 'heavy'"):
        spec.replace(real_tails="heavy").validate()
    with pytest.raises(SpecError, match="column_scale: unknown value 'both'"):
        spec.replace(column_scale="both").validate()
    with pytest.raises(SpecError, match=r"column_scale: is a setting of likelihood=auto, columns"):
        vf.RunSpec().replace(likelihood="gaussian", column_scale="decoded")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: assemble.build(RunSpec().replace(likelihood="columns"), Form((3,), "real")),
            "likelihood: columns is of a table.*data are real; use protocol=columns",
        ),
        (lambda: Columns(MLP(2, 3), 3), "columns: were none"),
        (lambda: Columns(MLP(2, 3), 3, TABLE[:2]), r"event_shape: was \(3,\) with 2 columns; use \(2,\)"),
        (lambda: Columns(MLP(2, 3), 2, TABLE[:2]), r"puts out \(3,\).*Columns.*\(5,\)"),
        (lambda: Columns(MLP(2, 3), 2, TABLE[:2], real_tails="heavy"), "real_tails: unknown value 'heavy'"),
        (lambda: Columns(MLP(2, 3), 2, TABLE[:2], column_scale="z"), "column_scale: unknown value 'z'"),
        (lambda: Columns(MLP(2, 1), 1, [Column("n", "count", scale=0.0)]), "scale of column 'n': was 0"),
        (lambda: made().probabilities(torch.zeros(3, dtype=double), "tow"), "column: unknown value 'tow'; .*'town'"),
        (lambda: made().probabilities(torch.zeros(3, dtype=double), "age"), r"'age' is real .* use distribution"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_refused(call, words):
    with pytest.raises(SpecError, match=words):
        call()


def test_an_unknown_kind_is_refused():
    column = Column("n", "real")
    object.__setattr__(column, "kind", "complex")
    with pytest.raises(SpecError, match="kind of column 'n': unknown value 'complex'"):
        Columns(MLP(2, 1), 1, [column])


def test_a_density_of_the_data_themselves_refuses_a_table_of_kinds():
    form = Form((len(TABLE),), "columns", None, TABLE)
    with pytest.raises(SpecError, match=r"data: are a table.*use protocol=table, or likelihood=columns"):
        assemble.build(RunSpec().replace(likelihood="identity", prior="maf"), form)


def test_learned_pseudo_inputs_refuse_a_table_of_kinds():
    form = Form((len(TABLE),), "columns", None, TABLE)
    with pytest.raises(SpecError, match=r"prior: the inputs of a VampPrior .* use prior=mixture or a flow"):
        assemble.build(RunSpec().replace(likelihood="columns", prior="vamp"), form)


def test_training_finds_what_columns_have_in_common():
    """Columns of every kind that one hidden number moves: after a few steps they tell it of each other."""
    torch.manual_seed(2)
    columns = (
        Column("a", "real", missing=0.2),
        Column("b", "count", loc=1.5, scale=0.6, missing=0.2),
        Column("c", "category", tuple("xyz"), missing=0.2),
        Column("d", "ordinal", tuple("1234"), missing=0.2),
        Column("e", "binary", ("n", "y"), missing=0.2),
    )
    t = torch.randn(1000, 1)
    noise = torch.rand(1000, 2)
    parts = [
        t + 0.3 * torch.randn(1000, 1),
        torch.poisson(torch.exp(1.2 + 0.7 * t)),
        (t + 0.3 * torch.logit(noise[:, :1]) > torch.tensor([-0.7, 0.7])).sum(-1, keepdim=True),
        (t + 0.3 * torch.logit(noise[:, 1:]) > torch.tensor([-1.0, 0.0, 1.0])).sum(-1, keepdim=True),
        (t > 0.3 * torch.randn(1000, 1)),
    ]
    x, mask = torch.cat([part.float() for part in parts], -1), torch.rand(1000, 5) > 0.2
    spec = RunSpec().replace(likelihood="columns", hidden=16, layers=1, latent=1)
    model = assemble.build(spec, Form((5,), "columns", None, columns))
    encoder, moments = model.posterior.encoder, model.posterior.moments
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    bounds = []
    for _ in range(150):
        mean, log_scale = moments(encoder(x, mask)).chunk(2, -1)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        kl = (0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale).sum(-1)
        bound = (model.likelihood.log_prob(x, z, mask) - kl).mean()
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
        bounds.append(bound.item())
    assert bounds[-1] > bounds[0] + 1
    with torch.no_grad():
        z = moments(encoder(x, mask)).chunk(2, -1)[0]
        found = model.likelihood.mean(z)
    hidden = ~mask[:, 4]
    assert (found[hidden, 4] == x[hidden, 4]).float().mean() > 0.75
    hidden = ~mask[:, 0]
    assert torch.corrcoef(torch.stack([found[hidden, 0], x[hidden, 0]]))[0, 1] > 0.75


def test_discrete_heads_start_at_the_shares_of_the_training_rows():
    """With a decoder that puts out zeros the probabilities are the shares."""
    shares = (0.7, 0.2, 0.1)
    columns = [
        Column("a", "category", ("x", "y", "z"), shares=shares),
        Column("b", "ordinal", ("low", "middle", "high"), shares=shares),
        Column("c", "binary", ("no", "yes"), shares=(0.9, 0.1)),
    ]
    decoder = MLP(2, Columns.decoder_shape(3, columns=columns), hidden=())
    for parameter in decoder.parameters():
        nn.init.zeros_(parameter)
    likelihood = Columns(decoder, 3, columns).double()
    z = torch.zeros(1, 2, dtype=torch.float64)
    for name, expected in (("a", shares), ("b", shares), ("c", (0.9, 0.1))):
        found = likelihood.probabilities(z, name)[0]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    with random.stream(0):
        drawn = likelihood.sample(torch.zeros(4000, 2, dtype=torch.float64))
    error = 5 * (0.25 / 4000) ** 0.5
    assert abs(float((drawn[:, 0] == 0).double().mean()) - 0.7) < error
    assert abs(float(drawn[:, 2].mean()) - 0.1) < error
