"""The Student-t likelihood: torch's density, exact samples, its setting from the command line to a loaded run."""

from __future__ import annotations

import json
import math

import pytest
import torch

import varflow as vf
from varflow.cli import main
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.likelihoods import Gaussian, StudentT
from varflow.networks import MLP

double = torch.float64


def made(freedom: float | str = "learned", events: int = 3, scale: float = 0.7) -> StudentT:
    torch.manual_seed(0)
    likelihood = StudentT(MLP(2, events, hidden=(5,)), events, freedom)
    torch.nn.init.constant_(likelihood.log_scale, math.log(scale))
    return likelihood.to(double)


@pytest.mark.parametrize("freedom", [0.5, 1.0, 3.0, 200.0, "learned"])
def test_log_prob_and_its_gradients_are_those_of_torch(freedom):
    likelihood = made(freedom)
    x, z = 3 * torch.randn(6, 3, dtype=double), torch.randn(4, 6, 2, dtype=double)
    found, expected = likelihood.log_prob(x, z), likelihood.distribution(z).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = list(likelihood.parameters())
    assert len(parameters) == 4 + 1 + (freedom == "learned")
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    )


def test_with_many_degrees_of_freedom_it_is_a_gaussian():
    likelihood = made(1e8, scale=1.0)
    gaussian = Gaussian(likelihood.decoder, 3).to(double)
    x, z = torch.randn(6, 3, dtype=double), torch.randn(6, 2, dtype=double)
    torch.testing.assert_close(likelihood.log_prob(x, z), gaussian.log_prob(x, z), rtol=1e-6, atol=0)


def test_a_value_far_off_pulls_with_less_and_less_force():
    likelihood = made(3.0, events=1)
    x = torch.tensor([[10.0], [100.0], [1e6]], dtype=double, requires_grad=True)
    pull = torch.autograd.grad(likelihood.log_prob(x, torch.zeros(3, 2, dtype=double)).sum(), x)[0].abs()
    assert (pull.diff(dim=0) < 0).all()


@pytest.mark.parametrize("freedom", [0.7, 3.0, 50.0])
def test_samples_have_its_distribution(freedom):
    likelihood = made(freedom, events=1)
    z = torch.zeros(40_000, 2, dtype=double)
    with random.stream(3), torch.no_grad():
        drawn = likelihood.sample(z)[:, 0]
        again = torch.distributions.StudentT(freedom, likelihood.mean(z[:1])[0, 0], 0.7).sample((40_000,))
    for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        below = (drawn < again.quantile(share)).to(double).mean()
        # Both are shares of 40,000 draws.
        assert abs(below - share) < 4.5 * math.sqrt(2 * share * (1 - share) / 40_000)
    assert drawn.isfinite().all()


@pytest.mark.parametrize("freedom", [0.0, -1.0, math.inf, "heavy"])
def test_what_is_no_number_of_degrees_is_refused(freedom):
    with pytest.raises(SpecError, match="freedom: "):
        StudentT(MLP(2, 3), 3, freedom)


def test_its_setting_goes_from_the_command_line_to_the_loaded_run(tmp_path, capsys):
    flags = ["--likelihood", "student-t", "--freedom", "2.5", "--latent", "2", "--hidden", "8", "--layers", "1"]
    words = ["fit", "vae-2d", *flags, "--steps", "3", "--threads", "1", "--quiet", "--no-report", "--out"]
    with pytest.raises(SystemExit) as end:
        main([*words, str(tmp_path / "run")])
    assert end.value.code == 0, capsys.readouterr().err
    stored = json.loads((tmp_path / "run" / "spec.json").read_text())["likelihood"]
    assert stored == {"likelihood": "student-t", "freedom": 2.5}
    run = vf.load(tmp_path / "run")
    assert isinstance(run.model.likelihood, StudentT)
    assert run.model.likelihood.log_freedom.exp().item() == pytest.approx(2.5)


def test_its_setting_is_checked_and_belongs_to_it_alone():
    spec = vf.RunSpec().replace(likelihood="student-t")
    with pytest.raises(SpecError, match=r"freedom: was -1\.0; use a number above 0"):
        spec.replace(freedom=-1.0).validate()
    with pytest.raises(SpecError, match=r"freedom: unknown value 'heavy'; .*learned"):
        spec.replace(freedom="heavy").validate()
    with pytest.raises(SpecError, match=r"freedom: is a setting of likelihood=student-t, and .*=auto has none"):
        vf.RunSpec().replace(freedom=3.0)
    with pytest.raises(SpecError, match=r"scale: is a setting of likelihood=auto, gaussian, and .*=student-t"):
        spec.replace(scale=0.5)


def test_freedom_is_learned_where_tails_are_heavy():
    """1.5 degrees of freedom in the data: the fit goes there from 5, and ends above a Gaussian."""
    torch.manual_seed(1)
    x = torch.distributions.StudentT(1.5).sample((2000, 1))
    settings = {"latent": 1, "hidden": 8, "layers": 1, "steps": 400, "batch": 200, "lr": 0.02, "protocol": "none",
                "threads": 1, "quiet": True, "warmup": "0 steps"}  # fmt: skip
    heavy = vf.fit("digits", x, likelihood="student-t", **settings)
    assert heavy.model.likelihood.log_freedom.exp().item() < 3
    light = vf.fit("digits", x, likelihood="gaussian", **settings)
    assert heavy.outcome["best_elbo"] > light.outcome["best_elbo"] + 0.05
