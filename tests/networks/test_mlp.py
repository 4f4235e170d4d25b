"""Facts about the MLP."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from varflow.core.errors import ShapeError, SpecError
from varflow.networks import MLP, Linear
from varflow.networks.mlp import ACTIVATIONS, ActivationName

double = torch.float64


def test_the_spec_and_the_network_know_the_same_activations():
    assert set(get_args(ActivationName)) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_layers_are_linear_maps_with_the_named_activation_between(activation):
    network = MLP(3, 2, hidden=(5, 4), activation=activation).to(double)
    reference = getattr(F, activation, None) or getattr(torch, activation)
    first, second = network.layers
    x = torch.randn(7, 3, dtype=double)
    h = reference(x @ first.weight.T + first.bias)
    h = reference(h @ second.weight.T + second.bias)
    expected = h @ network.last.weight.T + network.last.bias
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-14)


def test_a_gated_layer_is_a_linear_map_times_the_sigmoid_of_another():
    network = MLP(3, hidden=(5,), gated=True, activation="tanh").to(double)
    weight, bias = network.layers[0].weight, network.layers[0].bias
    x = torch.randn(7, 3, dtype=double)
    value = x @ weight[:5].T + bias[:5]
    gate = x @ weight[5:].T + bias[5:]
    torch.testing.assert_close(network(x), value * torch.sigmoid(gate), rtol=0, atol=1e-14)


def test_without_hidden_layers_a_decoder_is_linear():
    network = MLP(3, (2, 2), hidden=()).to(double)
    x, y = torch.randn(2, 3, dtype=double)
    assert [type(m) for m in network.modules()].count(Linear) == 1
    torch.testing.assert_close(
        network(x + y) + network(torch.zeros(3, dtype=double)), network(x) + network(y)
    )


LEADS = [(), (4,), (3, 4), (2, 3, 4), (0,), (3, 0)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("lead", LEADS)
def test_leading_dimensions_are_batch(lead, gated):
    encoder = MLP((2, 3), hidden=(5, 4), gated=gated)
    decoder = MLP(4, (2, 3, 1), hidden=5, gated=gated)
    features = encoder(torch.randn(*lead, 2, 3))
    assert encoder.features == 4
    assert encoder.out_shape == (4,)
    assert features.shape == (*lead, 4)
    assert decoder.out_shape == (2, 3, 1)
    assert decoder(features).shape == (*lead, 2, 3, 1)


@pytest.mark.parametrize("gated", [False, True])
def test_no_example_touches_another(gated):
    network = MLP(3, 2, hidden=(8,), activation="tanh", gated=gated).to(double)
    assert network.couples_examples is False
    x = torch.randn(4, 3, dtype=double)
    jacobian = torch.autograd.functional.jacobian(network, x)
    for i, j in itertools.product(range(4), repeat=2):
        assert (jacobian[i, :, j].abs().max() > 0) == (i == j)
    # One row may be multiplied by other code than four: rounding, some tens of units in the last place.
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("settings", [{"activation": a} for a in ACTIVATIONS] + [{"gated": True}])
def test_twice_differentiable(settings):
    torch.manual_seed(1)
    network = MLP(3, 2, hidden=(4,), **settings).to(double)
    x = torch.randn(2, 3, dtype=double, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)
    assert torch.autograd.gradgradcheck(network, x)


@pytest.mark.parametrize("gated", [False, True])
def test_many_networks_in_one_program(gated):
    networks = [MLP(3, (2, 2), hidden=(5,), gated=gated).to(double) for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(networks)
    x = torch.randn(3, 6, 3, dtype=double)
    together = torch.func.vmap(lambda p, v: torch.func.functional_call(networks[0], p, (v,)))(
        parameters, x
    )
    alone = torch.stack([network(v) for network, v in zip(networks, x, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_autocast_takes_what_the_parameters_are_not():
    network = MLP(3, 2, hidden=(4,))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(5, 3)).dtype == torch.bfloat16
        assert network(torch.randn(5, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"in_shape": 3, "activation": "rleu"}, "activation.*rleu.*did you mean 'relu'"),
        ({"in_shape": 0}, "in_shape: was 0"),
        ({"in_shape": (3, -1)}, "in_shape"),
        ({"in_shape": 3, "hidden": (4, 2.5)}, "hidden"),
        ({"in_shape": 3, "hidden": True}, "hidden"),
        ({"in_shape": 3, "out_shape": (2, 0)}, "out_shape"),
        ({"in_shape": 3, "hidden": ()}, "hidden: was empty"),
    ],
)
def test_impossible_settings_are_refused(arguments, words):
    with pytest.raises(SpecError, match=words):
        MLP(**arguments)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(5, 4), r"shape \(5, 4\); this MLP needs \[\.\.\., 2, 3\]"),
        (torch.zeros(3), "needs"),
        (
            torch.zeros(5, 2, 3, dtype=double),
            r"torch.float64.*torch.float32.*\.to\(torch.float32\)",
        ),
        (torch.zeros(5, 2, 3, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, words):
    with pytest.raises(ShapeError, match=words):
        MLP((2, 3), hidden=(4,))(x)
