"""Evaluations: every number with its errors, saved whole, compared in pairs."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core.errors import NonFiniteError, RunError, SpecError
from varflow.evaluation import Estimate, Evaluation, Progress, evaluate, importance_sample, paired

from .conftest import tiny


@pytest.fixture
def dataset(binary):
    rows = torch.cat([binary, binary.flip(0), binary.roll(1, 1)])
    return vf.data.from_tensor(rows.to(torch.uint8), levels=2, name="bits").to("cpu", torch.float64)


@pytest.fixture
def result(dataset):
    return evaluate(tiny(), dataset, samples=50)


def test_estimates_are_means_of_the_per_example_values(dataset, result):
    x = dataset.batch("test", torch.arange(90)).x
    found = importance_sample(tiny(), x, 50)
    for name, array in {"elbo": "elbo", "kl": "kl", "log_likelihood": "log_likelihood"}.items():
        assert result.estimates[name].value == pytest.approx(getattr(found, array).mean().item())
    nll = result.estimates["nll"]
    assert nll.value == pytest.approx(-found.log_px.mean().item(), abs=1e-12)
    assert nll.standard_error == pytest.approx(found.log_px.std().item() / math.sqrt(90))
    assert nll.monte_carlo_error == pytest.approx(found.log_px_variance.sum().sqrt().item() / 90)
    assert (nll.samples, nll.points, nll.unit, nll.seed) == (50, 90, "nats", 0)
    assert nll.khat == (found.khat > 0.7).double().mean().item()
    assert nll.ess == pytest.approx(found.ess.mean().item())
    bits = result.estimates["bits_per_dim"]
    assert bits.value == pytest.approx(nll.value / (6 * math.log(2)))
    assert bits.standard_error == pytest.approx(nll.standard_error / (6 * math.log(2)))
    assert bits.monte_carlo_error == pytest.approx(nll.monte_carlo_error / (6 * math.log(2)))
    assert result.estimates["elbo"].khat is None
    assert result.estimates["ladj"].value == 0
    assert result.data["split"] == "test"
    assert result.data["name"] == "bits"


def test_a_uniform_model_scores_the_number_of_bits_of_a_level(dataset):
    model = tiny()
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.zero_()
    result = evaluate(model, dataset, samples=300, limit=40)
    bits = result.estimates["bits_per_dim"]
    assert abs(bits.value - 1) < 4 * bits.monte_carlo_error
    assert result.estimates["log_likelihood"].value == pytest.approx(-6 * math.log(2))


def test_dequantized_pictures_have_bits_and_real_tables_none():
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (60, 2, 2), dtype=torch.uint8)
    dataset = vf.data.from_tensor(pictures, protocol="logit")
    shape = dataset.event_shape
    model = vf.Model(
        vf.priors.StandardNormal(2),
        vf.likelihoods.Gaussian(vf.networks.MLP(2, shape, hidden=(4,)), shape),
        vf.posteriors.Gaussian(2, vf.networks.MLP(shape, hidden=(4,))),
    )
    result = evaluate(model, dataset, samples=30)
    log_px = result.per_example["log_px"]
    # log p of the levels, whose bins are one wide.
    expected = -log_px / (4 * math.log(2))
    np.testing.assert_allclose(result.per_example["bits_per_dim"], expected, rtol=1e-12)
    assert result.estimates["bits_per_dim"].value == pytest.approx(expected.mean())
    table = vf.data.from_tensor(torch.randn(60, 3))
    model = vf.Model(
        vf.priors.StandardNormal(2),
        vf.likelihoods.Gaussian(vf.networks.MLP(2, 3, hidden=(4,)), 3),
        vf.posteriors.Gaussian(2, vf.networks.MLP(3, hidden=(4,))),
    )
    assert "bits_per_dim" not in evaluate(model, table, samples=3).estimates


def test_saved_and_loaded_evaluations_are_equal(result, tmp_path):
    path = result.save(tmp_path)
    assert path == tmp_path / "evaluation" / "test.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["test.json", "test.npz"]
    again = Evaluation.load(tmp_path)
    assert again.estimates == result.estimates
    assert list(again.estimates) == list(result.estimates)
    assert (again.data, again.notes) == (json.loads(json.dumps(result.data)), result.notes)
    for group in ("per_example", "per_latent"):
        one, two = getattr(again, group), getattr(result, group)
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == np.float64
            np.testing.assert_array_equal(one[name], two[name])
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_damaged_evaluations_are_refused(result, tmp_path):
    with pytest.raises(RunError, match="missing"):
        Evaluation.load(tmp_path)
    path = result.save(tmp_path)
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(RunError, match="damaged"):
        Evaluation.load(tmp_path)
    path.with_suffix(".npz").unlink()
    with pytest.raises(RunError, match=r"npz: missing; the results of single examples do not travel"):
        Evaluation.load(tmp_path)
    path.write_text('{"version": 99}')
    with pytest.raises(RunError, match="no evaluation of version 1"):
        Evaluation.load(tmp_path)


def test_the_table_shows_every_estimate_with_its_errors(result):
    text = result.table()
    for name, estimate in result.estimates.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert "±" in row
        assert estimate.figures() in row
        assert f"{name}: {estimate.estimator}" in text
    assert "bits test, threshold; 90 points, 50 samples each, seed 0" in text


def test_one_sample_and_one_point_work_and_say_what_is_missing(dataset):
    one = evaluate(tiny(), dataset, samples=1, limit=1)
    nll = one.estimates["nll"]
    assert nll.value == -one.estimates["elbo"].value
    assert (nll.standard_error, nll.monte_carlo_error, nll.khat) == (None, None, None)
    assert "± unknown" in str(nll)
    assert any("1 are too few for Pareto k̂; use 25 or more" in note for note in one.notes)
    assert any("no standard error" in note for note in one.notes)
    assert "active_units" not in one.estimates
    assert one.per_example["log_px"].shape == (1,)


def test_heavy_tails_are_noted(dataset):
    model = tiny()
    with torch.no_grad():
        model.posterior.moments.bias[2:] = -3.0
    result = evaluate(model, dataset, samples=100)
    assert result.estimates["nll"].khat > 0.5
    assert any("log p(x) is underestimated" in note for note in result.notes)
    assert "k̂ > 0.7 at" in str(result.estimates["nll"])


def test_seeds_repeat_and_memory_and_limit_do_not_matter(dataset, result):
    again = evaluate(tiny(), dataset, samples=50, memory=4000)
    np.testing.assert_allclose(
        again.per_example["log_px"], result.per_example["log_px"], atol=1e-10
    )
    other = evaluate(tiny(), dataset, samples=50, seed=1)
    assert (other.per_example["log_px"] != result.per_example["log_px"]).all()


def test_what_cannot_be_evaluated_is_refused(dataset):
    model = tiny()
    with pytest.raises(SpecError, match="limit: was 91; bits has 90 test points"):
        evaluate(model, dataset, limit=91)
    with pytest.raises(SpecError, match="limit: was 0"):
        evaluate(model, dataset, limit=0)
    with pytest.raises(SpecError, match="samples: was 0"):
        evaluate(model, dataset, samples=0)
    with pytest.raises(SpecError, match="split: unknown value 'tets'; did you mean 'test'"):
        evaluate(model, dataset, "tets")
    with pytest.raises(SpecError, match="likelihood: Bernoulli takes binary values"):
        evaluate(model, vf.data.from_tensor(torch.randn(50, 6)))
    with torch.no_grad():
        model.posterior.moments.bias.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="log_q: was NaN at point 0"):
        evaluate(model, dataset)


def test_pairs_have_the_error_of_their_difference(dataset, result):
    other = evaluate(tiny(seed=5), dataset, samples=50)
    estimate = paired(result, other)
    gap = result.per_example["log_px"] - other.per_example["log_px"]
    assert estimate.value == pytest.approx(gap.mean())
    assert estimate.standard_error == pytest.approx(gap.std(ddof=1) / math.sqrt(90))
    errors = [r.estimates["nll"].monte_carlo_error for r in (result, other)]
    assert estimate.monte_carlo_error == pytest.approx(math.hypot(*errors))
    assert estimate.khat == max(r.estimates["nll"].khat for r in (result, other))
    nothing = paired(result, result)
    assert (nothing.value, nothing.standard_error) == (0, 0)
    assert paired(result, other, "elbo").khat is None
    assert paired(result, other, "kl").value == pytest.approx(
        result.estimates["kl"].value - other.estimates["kl"].value
    )


def test_other_points_are_not_compared(dataset, result):
    with pytest.raises(SpecError, match="b: has 80 points, a has 90"):
        paired(result, evaluate(tiny(), dataset, samples=50, limit=80))
    with pytest.raises(SpecError, match="b: has split 'validation', a has 'test'"):
        paired(result, evaluate(tiny(), dataset, "validation", samples=5))
    renamed = dataclasses.replace(result, data={**result.data, "protocol": "dynamic"})
    with pytest.raises(SpecError, match="b: has protocol 'dynamic', a has 'threshold'"):
        paired(result, renamed)
    flipped = {**result.per_example, "x_mean": 1 - result.per_example["x_mean"]}
    with pytest.raises(SpecError, match="other values of x"):
        paired(result, dataclasses.replace(result, per_example=flipped))
    with pytest.raises(SpecError, match="name: unknown value 'log_py'; did you mean 'log_px'"):
        paired(result, result, "log_py")


def estimate(**changes) -> Estimate:
    plain = Estimate(
        "nll", 90.123456, 0.51, 0.0213, 100, 250, "nats", "IS", "digits", 3, 0.125, 0.4
    )
    return dataclasses.replace(plain, **changes)


def test_an_estimate_prints_all_that_belongs_to_it():
    assert str(estimate()) == (
        "nll = 90.12 ± 0.51 nats (MC ± 0.021; 100 samples, 250 points; "
        "k̂ > 0.7 at 12.5 % of points; ESS 40 %; IS; digits; seed 3)"
    )
    assert "± unknown" in str(estimate(standard_error=None))
    assert estimate(standard_error=0.0, monte_carlo_error=0.0).figures() == "90.1235 ± 0"
    assert estimate(standard_error=52.0).figures() == "90 ± 52"
    assert estimate(standard_error=None).figures() == "90.123 ± unknown"
    assert estimate(value=8.0, standard_error=0.0).figures() == "8 ± 0"
    assert estimate(value=-math.inf, standard_error=math.nan).figures() == "-inf ± nan"


@pytest.mark.parametrize("value", [1.5, -math.inf, math.inf])
def test_an_estimate_survives_strict_json(value):
    before = estimate(value=value, khat=None)
    text = json.dumps(before.to_dict(), allow_nan=False)
    assert Estimate.from_dict(json.loads(text)) == before


def test_unknown_fields_of_an_estimate_are_refused():
    with pytest.raises(RunError, match=r"\['sigma'\]"):
        Estimate.from_dict({**estimate().to_dict(), "sigma": 1})


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_goes_to_standard_error_unless_quiet(dataset, capsys, quiet):
    with Progress(quiet=quiet, every=0) as progress:
        evaluate(tiny(), dataset, samples=2, progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("points/s" in captured.err) != quiet


@pytest.mark.parametrize("what", ["evaluate", "curve"])
def test_an_interrupted_one_goes_on(what, tmp_path):
    """What is left after a stop is not computed again, and the numbers are those of one go."""
    rows = (torch.rand(300, 6) < 0.5).to(torch.uint8)
    data = vf.data.from_tensor({"train": rows, "validation": rows, "test": rows}, levels=2)
    data, model = data.to("cpu", torch.float64), tiny()
    asked = {"samples": 20, "seed": 3}

    def go(**more):
        call = evaluate if what == "evaluate" else vf.evaluation.bound_curve
        return call(model, data, **asked, **more)

    def stop(done, total):
        if done > 128:
            raise KeyboardInterrupt

    whole = go()
    with pytest.raises(KeyboardInterrupt):
        go(folder=tmp_path, progress=stop)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    dates = [path.stat().st_mtime_ns for path in kept]
    again = go(folder=tmp_path)
    assert [path.stat().st_mtime_ns for path in kept] == dates
    assert len(list(tmp_path.iterdir())) == 3
    for name, values in whole.per_example.items():
        np.testing.assert_array_equal(values, again.per_example[name])
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    go(folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
