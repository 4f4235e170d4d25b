"""Any callable is a target, and its mistakes show at construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow.core.errors import NonFiniteError, ShapeError, SpecError
from varflow.targets import Callable, integrate
from varflow.targets.quadrature import grid


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


def test_answers_by_quadrature() -> None:
    target = Callable(normal, 2, box=(-10.0, 10.0, -10.0, 10.0)).double()
    assert target.log_normalizer == pytest.approx(math.log(2 * math.pi), abs=1e-10)
    assert target.entropy == pytest.approx(1 + math.log(2 * math.pi), abs=1e-10)
    torch.testing.assert_close(target.covariance, torch.eye(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(target.mean, torch.zeros(2).double(), rtol=0, atol=1e-9)
    assert target.window == (-10.0, 10.0, -10.0, 10.0)


def test_answers_that_are_given_or_unknown() -> None:
    given = Callable(normal, 3, log_normalizer=1.5 * math.log(2 * math.pi)).double()
    z = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(given.log_density(z), expected)
    unknown = Callable(normal, 3)
    assert unknown.log_normalizer is None
    assert unknown.entropy is None
    assert unknown.mean is None
    with pytest.raises(SpecError, match="log Z of this Callable is not known"):
        unknown.log_density(z)
    with pytest.raises(SpecError, match="no exact sampler"):
        unknown.sample((3,))


def test_a_module_is_registered() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, z: Tensor) -> Tensor:
            return normal(z * (-self.log_scale).exp())

    target = Callable(Scaled(), 2)
    assert [name for name, _ in target.named_parameters()] == ["function.log_scale"]
    assert target.double().log_prob(torch.zeros(2).double()).dtype == torch.float64


def test_functions_are_told_apart_in_the_repr() -> None:
    assert repr(Callable(normal, 2)) != repr(Callable(lambda z: normal(z), 2))


def test_it_checks_at_the_points_it_is_given() -> None:
    def half_plane(z: Tensor) -> Tensor:
        return z[..., 0].log() + normal(z)

    with pytest.raises(NonFiniteError, match=r"log_prob: is nan at z = \["):
        Callable(half_plane, 2)
    points = torch.tensor([[1.0, 0.0], [0.5, -2.0]], dtype=torch.float64)
    assert Callable(half_plane, 2, points=points).features == 2


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda z: normal(z) * math.nan, NonFiniteError, "log_prob: is nan at z"),
        (lambda z: normal(z) / 0, NonFiniteError, "log_prob: is -inf at z"),
        (lambda z: normal((z - z.detach()).sqrt()), NonFiniteError, "log_prob: the gradient: is"),
        (lambda z: -0.5 * z.square(), ShapeError, r"returned shape \(8, 2\) for z of shape \(8, 2\)"),
        (lambda z: normal(z).sum(), ShapeError, r"returned shape \(\)"),
        (lambda z: normal(z)[..., None], ShapeError, r"returned shape \(8, 1\)"),
        (lambda z: -0.5 * z.square().sum(1), ShapeError, r"returned shape \(2, 2\)"),
        (lambda z: normal(z).double(), ShapeError, "returned torch.float64 for z of torch.float32"),
        (lambda z: 0.0, ShapeError, "returned a float; return a tensor"),
        (lambda z: np.zeros(len(z)), ShapeError, "returned a ndarray; return a tensor"),
        (lambda z: normal(z.detach()), SpecError, "does not depend on z differentiably"),
        (lambda z: normal(z).round().detach(), SpecError, "does not depend on z differentiably"),
        (
            lambda z: torch.zeros(z.shape[:-1], requires_grad=True) * 1,
            SpecError,
            "result does not depend on z",
        ),
        (lambda z: normal(z - z.mean(0)), SpecError, "for a point among others"),
        (3.0, SpecError, "log_prob: was a float; pass a function"),
    ],
)  # fmt: skip
def test_mistakes_are_named(function: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Callable(function, 2)  # type: ignore[arg-type]


def test_a_box_needs_two_features() -> None:
    with pytest.raises(SpecError, match="box: integrates in the plane"):
        Callable(normal, 3, box=(-1.0, 1.0, -1.0, 1.0))


def test_quadrature_names_the_node_that_is_not_finite() -> None:
    rule = grid((-1, 1), (-1, 1))
    with pytest.raises(NonFiniteError, match=r"log_prob: is nan at z = \["):
        integrate(lambda z: z[..., 0].log(), rule)
    # −∞ is a density of zero: the right half of a uniform square.
    half = integrate(
        lambda z: torch.where(z[..., 0] > 0, 0.0, -math.inf).to(z), grid((-1, 0, 1), (-1, 1))
    )
    assert half.log_normalizer == pytest.approx(math.log(2), abs=1e-12)
    assert half.entropy == pytest.approx(math.log(2), abs=1e-12)


#: A correlated normal through a product with a matrix, which torch refuses for two dtypes.
WHITEN = torch.tensor([[1.0, 0.5], [0.0, 2.0]])


class Whitened(nn.Module):
    """The matrix as a buffer, a parameter, or a plain tensor that stays float32."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "buffer":
            self.register_buffer("matrix", WHITEN.clone())
        else:
            self.matrix = nn.Parameter(WHITEN.clone()) if kind == "parameter" else WHITEN.clone()

    def forward(self, z: Tensor) -> Tensor:
        return normal(z @ self.matrix)


CAPTURING = {
    "lambda": lambda: lambda z: normal(z @ WHITEN),
    "converting": lambda: lambda z: normal(z.float() @ WHITEN).to(torch.float32),
    **{kind: lambda kind=kind: Whitened(kind) for kind in ("buffer", "parameter", "plain")},
}
LOG_Z = math.log(2 * math.pi) - math.log(2)


@pytest.mark.parametrize("kind", CAPTURING)
def test_functions_of_one_dtype_serve_both(kind: str) -> None:
    target = Callable(CAPTURING[kind](), 2, box=(-12.0, 12.0, -8.0, 8.0))
    assert target.log_normalizer == pytest.approx(LOG_Z, abs=1e-5)
    covariance = torch.linalg.inv(WHITEN @ WHITEN.T)
    torch.testing.assert_close(target.covariance, covariance, rtol=1e-4, atol=1e-4)
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    value = target.log_prob(z)
    assert value.dtype == torch.float64
    (gradient,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(gradient, -z.detach() @ (WHITEN @ WHITEN.T).double(), rtol=1e-5, atol=1e-5)
    # A parameter and a buffer move with the target, and float32 points are served then too.
    moved = target.double()
    assert moved.log_prob(z.detach().float()).dtype == torch.float32
    torch.testing.assert_close(moved.log_prob(z), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CAPTURING)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_functions_of_one_dtype_are_fitted_and_evaluated(kind: str, precision: str, tmp_path) -> None:
    target = Callable(CAPTURING[kind](), 2, box=(-12.0, 12.0, -8.0, 8.0)).requires_grad_(False)
    model = vf.Model(target, None, vf.posteriors.Gaussian(2, flow=vf.flows.Triangular))
    run = vf.fit(
        model, precision=precision, samples=32, steps=300, lr=0.05, keep="last", quiet=True, threads=1, out=tmp_path
    )
    found = run.evaluate(samples=2000)
    assert abs(found.estimates["kl_q_p"].value) < 0.05


def test_answers_follow_what_a_module_has_learned() -> None:
    target = Callable(Whitened("parameter"), 2, box=(-30.0, 30.0, -20.0, 20.0))
    before = target.log_normalizer
    with torch.no_grad():
        target.function.matrix.mul_(0.5)
    assert target.log_normalizer - before == pytest.approx(2 * math.log(2), abs=1e-5)


def test_functions_of_both_dtypes_keep_their_digits() -> None:
    target = Callable(lambda z: normal(z), 2)
    z = torch.tensor([1.0 + 1e-12, 0.0], dtype=torch.float64)
    assert target.log_prob(z).item() == -0.5 * (1.0 + 1e-12) ** 2
    wide = Callable(Whitened("buffer").double(), 2)
    assert wide.log_prob(z).item() == normal(z @ WHITEN.double()).item()
