"""The triangular flow: every Gaussian, and nothing else."""

from __future__ import annotations

import torch
from torch.distributions import MultivariateNormal

from varflow.flows import Triangular
from varflow.posteriors import Gaussian


def test_density_is_a_gaussian_with_full_covariance() -> None:
    torch.manual_seed(0)
    flow = Triangular(4).double()
    with torch.no_grad():
        flow.static.normal_()
    posterior = Gaussian(4, flow=flow, base="fixed").double()
    jacobian = torch.func.jacrev(lambda z: flow(z)[0])(torch.zeros(4).double())
    mean = flow(torch.zeros(4).double())[0]
    expected = MultivariateNormal(mean, jacobian @ jacobian.T)
    z = torch.randn(20, 4, dtype=torch.float64)
    torch.testing.assert_close(posterior().log_prob(z), expected.log_prob(z))


def test_jacobian_is_lower_triangular_and_every_entry_is_free() -> None:
    flow = Triangular(5).double()
    with torch.no_grad():
        flow.static.copy_(torch.arange(1, 21) / 20)
    jacobian = torch.func.jacrev(lambda z: flow(z)[0])(torch.zeros(5).double())
    assert torch.equal(jacobian.triu(1), torch.zeros(5, 5).double())
    below = jacobian[tuple(torch.tril_indices(5, 5, -1))]
    assert (jacobian.diagonal() > 0).all()
    assert below.unique().numel() == 10
    assert sum(p.numel() for p in flow.parameters()) == 20


def test_length_is_one_map() -> None:
    assert Triangular(3, length=5).static.shape == Triangular(3).static.shape


def test_each_example_has_its_own_map() -> None:
    torch.manual_seed(0)
    flow = Triangular(3, context_features=2).double()
    with torch.no_grad():
        flow.head.weight.normal_()
    z, context = torch.randn(6, 4, 3).double(), torch.randn(4, 2).double()
    out, ladj = flow(z, context)
    for i in range(4):
        own = Triangular(3).double()
        with torch.no_grad():
            own.static.copy_(flow.head(context[i]))
        torch.testing.assert_close((out[:, i], ladj[:, i]), own(z[:, i]))
