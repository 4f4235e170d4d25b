"""Examples without their condition: the sum over its values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import varflow as vf
from varflow.condition_sum import ConditionSum
from varflow.core import random
from varflow.core.columns import Column
from varflow.core.errors import DataError, SpecError
from varflow.core.observed import Observed, parts_of
from varflow.evaluation.importance import importance_sample
from varflow.networks.context import ContextEncoder
from varflow.objectives import ELBO, ImportanceWeighted

SHARES = (0.5, 0.2, 0.3)
D, X = 2, 4


def summing(shares: tuple[float, ...] = SHARES) -> ConditionSum:
    column = Column("y", "category", ("a", "b", "c"), missing=0.5, shares=shares, summed=True)
    return ConditionSum([Column("dose", "real"), column])


def model() -> vf.Model:
    """p(x|z, c) with a dose and a class in c: four numbers."""
    torch.manual_seed(3)
    decoder = vf.networks.MLP(D + 4, X, hidden=(8,))
    decoder.context_features = 4
    posterior = vf.posteriors.Gaussian(D, ContextEncoder(vf.networks.MLP(X + 4, hidden=(8,)), (X,), 4))
    likelihood = vf.likelihoods.Gaussian(decoder, X, scale=0.7)
    made = vf.Model(vf.priors.StandardNormal(D), likelihood, posterior, summing()).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made


@pytest.fixture
def rows() -> Observed:
    """Six rows; the second, third and sixth have no class."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, X, generator=generator, dtype=torch.float64)
    dose = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    y = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 1, 2]), 3).double()
    y[[1, 2, 5]] = 0
    return Observed(x, torch.cat([dose, y], 1))


UNKNOWN = torch.tensor([False, True, True, False, False, True])


def test_one_weight_comes_of_all_values(rows):
    made, total = model(), summing().double()
    with random.stream(0):
        found = made.terms(rows, samples=7).log_weight
    with random.stream(0):
        each = made._terms(total.each(rows), 7).log_weight.unflatten(1, (3, 6))
    log_pi = torch.tensor(SHARES, dtype=torch.float64).log()[:, None]
    torch.testing.assert_close(found[:, UNKNOWN], (each + log_pi).logsumexp(1)[:, UNKNOWN])
    known = parts_of(rows)[1][:, 1:].argmax(1)
    for row in (~UNKNOWN).nonzero()[:, 0].tolist():
        torch.testing.assert_close(found[:, row], each[:, known[row], row])


@pytest.mark.parametrize("objective", [ELBO(), ImportanceWeighted()])
def test_gradients_are_those_of_the_sum(rows, objective):
    made, total = model(), summing().double()
    log_pi = torch.tensor(SHARES, dtype=torch.float64).log()[:, None]

    def gradient(loss: Tensor) -> Tensor:
        made.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])

    only = rows[UNKNOWN]
    with random.stream(0):
        found = gradient(objective(made.terms(only, samples=5), 1.0))
    with random.stream(0):
        each = made._terms(total.each(only), 5).log_weight.unflatten(1, (3, 3))
    log_w = (each + log_pi).logsumexp(1)
    wanted = log_w.mean() if isinstance(objective, ELBO) else (log_w.logsumexp(0) - math.log(5)).mean()
    torch.testing.assert_close(found, gradient(-wanted))


def test_known_conditions_keep_their_control_variate(rows):
    made = model()
    with random.stream(0):
        control = made.terms(rows, samples=3).draw.control
    assert control is not None
    assert bool((control[:, UNKNOWN] == 0).all())
    assert bool((control[:, ~UNKNOWN] != 0).all())


def test_importance_samples_find_the_sum(rows):
    made, samples = model(), 3000
    found = importance_sample(made, rows, samples)
    total = made.condition_sum
    each = [importance_sample(made, total.having(rows, k), samples) for k in range(3)]
    joint = torch.stack([part.log_px for part in each]) + torch.tensor(SHARES).double().log()[:, None]
    error = found.log_px_variance.sqrt()
    assert bool(((found.log_px - joint.logsumexp(0))[UNKNOWN].abs() < 8 * error[UNKNOWN]).all())
    torch.testing.assert_close(found.log_px[~UNKNOWN], each[0].log_px[~UNKNOWN])
    assert bool((found.elbo < found.log_px + 1e-9).all())
    torch.testing.assert_close(found.elbo, found.log_likelihood + found.log_prior - found.log_q)
    torch.testing.assert_close(found.kl, found.log_q - found.log_prior)


def test_keys_follow_their_rows(rows):
    made, keys = model(), [11, 12, 13, 14, 15, 16]
    among = importance_sample(made, rows, 50, keys=keys)
    alone = importance_sample(made, rows[[2]], 50, keys=keys[2:3])
    torch.testing.assert_close(among.log_px[2:3], alone.log_px, rtol=1e-9, atol=1e-9)


def test_the_likeliest_value_completes(rows):
    made = model()
    context = parts_of(made.completed(rows))[1]
    assert torch.equal(context[~UNKNOWN], parts_of(rows)[1][~UNKNOWN])
    assert bool((context[:, 1:].sum(1) == 1).all())
    assert torch.equal(context[:, 0], parts_of(rows)[1][:, 0])


def test_draws_follow_the_shares():
    context = torch.zeros(20_000, 4, dtype=torch.float64)
    with random.stream(4):
        drawn = summing().drawn(context)[:, 1:].mean(0)
    wanted = torch.tensor(SHARES, dtype=torch.float64)
    assert bool(((drawn - wanted).abs() < 6 * (wanted * (1 - wanted) / 20_000).sqrt()).all())


def test_what_has_no_sum_says_so(rows):
    made = model()
    with pytest.raises(SpecError, match="use free_bits=0 and gradient=total"):
        made.terms(rows, hold=True)
    with pytest.raises(SpecError, match=r"gaps: row 2 \(counted from 1\) has no 'y'"):
        made.condition_sum.refuse(rows, "gaps")


@pytest.fixture(scope="module")
def classes() -> tuple[Tensor, Tensor, Tensor]:
    """Three classes apart in the plane; all labels, and one in ten of them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (1500,), generator=generator)
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    x = centres[y] + 0.5 * torch.randn(1500, 2, generator=generator, dtype=torch.float64)
    known = torch.where(torch.rand(1500, generator=generator) < 0.1, y, -1)
    return x, y, known


def test_a_tenth_of_the_labels_is_enough(classes, tmp_path):
    x, y, known = classes
    data = vf.data.from_tensor(
        x, labels=known, condition=("label",), condition_gaps="sum", continuous=True
    )
    run = vf.fit("conditional-density", data, quiet=True, steps=60, threads=1, out=tmp_path / "run")
    again = vf.load(tmp_path / "run")
    each = torch.stack([torch.as_tensor(again.log_prob(x, given={"label": k})) for k in range(3)])
    assert float((each.argmax(0) == y).double().mean()) > 0.99
    summed = torch.as_tensor(again.log_prob(x, given={"label": -1}))
    marginal = torch.as_tensor(again.log_prob(x, given="marginal"))
    torch.testing.assert_close(summed, marginal, atol=1e-5, rtol=1e-5)
    entropy = math.log(3) + 1 + math.log(2 * math.pi) + 2 * math.log(0.5)
    assert float(-summed.mean()) == pytest.approx(entropy, abs=0.1)
    assert again.sample(4, given={"label": None}).shape == (4, 2)
    nll = run.evaluate().estimates["nll"].value
    assert 1.4 < nll < 3


def test_a_table_with_gaps_in_its_condition(tmp_path):
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    sex = rng.choice(["f", "m"], 300)
    frame = pandas.DataFrame({"height": np.where(sex == "f", 165.0, 178.0) + 6 * rng.standard_normal(300)})
    frame["weight"] = 0.9 * frame["height"] - 90 + 8 * rng.standard_normal(300)
    frame["sex"] = np.where(rng.random(300) < 0.5, sex, None)
    frame.loc[:30, "weight"] = np.nan
    run = vf.fit(
        "table", frame, condition=("sex",), condition_gaps="sum", latent=2, steps=30, quiet=True, threads=1
    )
    assert run.model.condition_sum.name == "sex"
    scores = run.log_prob(frame)
    assert bool(np.isfinite(scores).all())
    assert run.embed(frame).shape == (300, 2)
    assert list(run.reconstruct(frame).columns) == ["height", "weight"]
    with pytest.raises(SpecError, match="has no 'sex'"):
        run.impute(frame)


def test_what_cannot_be_summed_over_is_refused():
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.standard_normal((60, 3)), columns=["x", "age", "weight"])
    frame.loc[::3, "age"] = np.nan
    with pytest.raises(DataError, match=r"condition_gaps: was sum.*age \(real\)"):
        vf.data.from_tensor(
            frame, protocol="columns", condition=("age",), condition_gaps="sum"
        )
