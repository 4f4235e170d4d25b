"""Which weights are kept, when a fit stops, and how long a duration is."""

import math

import pytest
import torch

import varflow as vf
from varflow.core.durations import DURATION, PATIENCE, VALIDATION
from varflow.core.errors import SpecError
from varflow.core.paired import gain
from varflow.training.stopping import Best


def offered(*bounds: torch.Tensor) -> Best:
    best = Best()
    for step, each in enumerate(bounds):
        best.offer(step, each, {"w": torch.tensor(float(step))})
    return best


def test_a_gain_within_its_standard_error_keeps_the_weights():
    gains = torch.tensor([3.0, -2.0, 1.5, -2.0], dtype=torch.float64)
    mean, error = gain(gains, torch.zeros(4))
    assert (mean, error) == (pytest.approx(0.125), pytest.approx(gains.std().item() / 2))
    best = offered(torch.zeros(4), gains)
    assert (best.step, best.value) == (0, 0.0)
    best = offered(torch.zeros(4), gains + error)
    assert (best.step, best.value) == (1, pytest.approx(0.125 + error))
    assert best.weights == {"w": torch.tensor(1.0)}


def test_small_gains_count_when_they_have_added_up():
    noise = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0], dtype=torch.float64)
    gains = [0.1 * step + noise * (step % 2) for step in range(8)]
    best = offered(*gains)
    assert best.step >= 6


def test_a_plateau_ends_and_a_climb_goes_on():
    generator = torch.Generator().manual_seed(0)
    plateau = [torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(300)]
    best, records = Best(), []
    for step, bounds in enumerate(plateau):
        if best.offer(step, bounds, {}):
            records.append(step)
    # The best of k tries grows like √(2 log k) standard errors: steps to a better one become ever rarer.
    assert len(records) <= 4
    climb = [bounds + 0.02 * step for step, bounds in enumerate(plateau)]
    best = offered(*climb)
    assert best.step > 250


def test_a_single_example_has_no_error():
    assert gain(torch.tensor([2.0]), torch.tensor([1.0])) == (1.0, 0.0)


def test_patience_counts_updates_after_the_weight_has_settled():
    best = offered(torch.zeros(3))
    assert not best.is_over(10, None)
    assert best.is_over(10, 10)
    assert not best.is_over(9, 10)
    assert not best.is_over(14, 10, settled=5)
    assert best.is_over(15, 10, settled=5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("10 epochs", 70), ("1 epoch", 7), ("0.5 epochs", 4), ("2000 steps", 2000), ("1 step", 1), ("3steps", 3),
     ("0 steps", 0), ("0.01 epochs", 1), ("auto", 1000)],
)  # fmt: skip
def test_durations(value, expected):
    assert PATIENCE.steps("patience", value, 7) == expected


def test_auto_is_the_longer_of_epochs_and_steps():
    assert PATIENCE.steps("patience", "auto", 500) == 5000
    assert VALIDATION.steps("validate_every", "auto", 3) == 100
    assert VALIDATION.steps("validate_every", "auto", 300) == 300


@pytest.mark.parametrize("value", [20, 20.0, "20", "20 epochs", " 20 epoch "])
def test_a_number_without_a_unit_counts_epochs(value):
    assert DURATION.steps("warmup", value, 7) == 140


@pytest.mark.parametrize("name", ["warmup", "patience", "validate_every", "prior_patience"])
@pytest.mark.parametrize("value", ["20 days", -1, True])
def test_what_is_no_duration_is_refused_by_name(name, value):
    with pytest.raises(SpecError, match=rf"{name}: was .*; give a number with its unit"):
        vf.fit("vq-pixelcnn", **{name: value})


@pytest.mark.parametrize("value", ["-1 epochs", "ten epochs", "3 days", "", "auto"])
def test_durations_that_are_none(value):
    with pytest.raises(SpecError, match="warmup: was"):
        DURATION.steps("warmup", value, 7)


@pytest.mark.slow
def test_records_are_in_the_units_of_the_data():
    # A thousandth of the unit: a density is a thousand times as large in every dimension.
    x = torch.randn(400, 3)
    settings = {"protocol": "standardize", "prior": "maf", "prior_length": 1, "steps": 20, "quiet": True}
    small, large = (vf.fit("density", x * scale, **settings) for scale in (1.0, 1000.0))
    for one, other in zip(small.metrics, large.metrics, strict=True):
        assert one["elbo"] - other["elbo"] == pytest.approx(3 * math.log(1000), abs=1e-3)
        assert one["elbo"] == pytest.approx(one["log_likelihood"] - one["kl"], abs=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["loss"] == pytest.approx(one["preprocessing_ladj"] - one["elbo"], abs=1e-4)
    assert small.outcome["best_elbo"] - large.outcome["best_elbo"] == pytest.approx(3 * math.log(1000), abs=1e-3)
