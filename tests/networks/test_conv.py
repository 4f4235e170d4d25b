"""Facts about the convolutional pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from varflow.core.errors import ShapeError, SpecError
from varflow.networks import ConvDecoder, ConvEncoder
from varflow.networks.conv import pyramid
from varflow.networks.pictures import NORMALIZATIONS

double = torch.float64

OPTIONS = [
    {"normalization": normalization, "weight_norm": weight_norm, "bottleneck": bottleneck}
    for normalization in NORMALIZATIONS
    for weight_norm, bottleneck in ((False, False), (True, True))
]
UNCOUPLED = [options for options in OPTIONS if options["normalization"] != "batch"]


def name(options):
    return "-".join(str(value) for value in options.values())


def stir(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, so that no residual branch is still zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw, dtype=double))
    return network


def pair(shape, features=3, **options):
    encoder = stir(ConvEncoder(shape, base=4, **options).to(double), 0)
    decoder = stir(ConvDecoder(features, shape, base=4, **options).to(double), 1)
    return encoder, decoder


@given(
    channels=st.integers(1, 3),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    blocks=st.integers(1, 2),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_picture_comes_back_in_its_own_size(channels, height, width, blocks, data):
    shape = (channels, height, width)
    scales = data.draw(st.none() | st.integers(0, len(pyramid(shape)) - 1))
    encoder = ConvEncoder(shape, base=4, scales=scales, blocks=blocks)
    decoder = ConvDecoder(2, shape, base=4, scales=scales, blocks=blocks)
    assert encoder(torch.zeros(2, *shape)).shape == (2, encoder.features)
    assert decoder(torch.zeros(2, 2)).shape == (2, *decoder.out_shape) == (2, *shape)


@pytest.mark.parametrize(
    ("side", "scales", "sizes"),
    [
        (28, None, [28, 14, 7, 4]),
        (28, 4, [28, 14, 7, 4, 2]),
        (32, None, [32, 16, 8, 4]),
        (8, None, [8, 4, 2]),
        (7, 1, [7, 4]),
        (2, None, [2]),
        (28, 0, [28]),
    ],
)
def test_halvings(side, scales, sizes):
    assert pyramid((1, side, side), scales) == [(size, size) for size in sizes]


def test_the_sizes_of_the_known_network():
    """32 channels, three halvings: 32·8 channels of 4×4 for pictures of 32×32."""
    assert ConvEncoder((3, 32, 32)).features == 256 * 4 * 4
    assert ConvEncoder((1, 28, 28), scales=2).features == 128 * 7 * 7


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_leading_dimensions_are_batch(options):
    shape = (2, 5, 6)
    encoder, decoder = pair(shape, **options)
    encoder.eval(), decoder.eval()
    x, z = torch.randn(3, 4, *shape, dtype=double), torch.randn(3, 4, 3, dtype=double)
    features, pictures = encoder(x), decoder(z)
    assert features.shape == (3, 4, encoder.features)
    assert pictures.shape == (3, 4, *shape)
    torch.testing.assert_close(encoder(x[1, 2]), features[1, 2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decoder(z[1, 2]), pictures[1, 2], rtol=1e-12, atol=1e-12)
    assert encoder(x[:, :0]).shape == (3, 0, encoder.features)
    assert decoder(z[:0]).shape == (0, 4, *shape)


def coupling(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[i, j]: whether output i depends on input j."""
    direction = torch.randn(network(x).shape, dtype=double)

    def each(v: torch.Tensor) -> torch.Tensor:
        return (network(v) * direction).flatten(1).sum(1)

    jacobian = torch.autograd.functional.jacobian(each, x)
    return jacobian.flatten(2).abs().amax(-1) > 0


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_examples_are_coupled_by_batch_statistics_alone(options, train):
    shape = (1, 5, 6)
    for network, x in zip(
        pair(shape, **options),
        (torch.randn(3, *shape, dtype=double), torch.randn(3, 3, dtype=double)),
        strict=True,
    ):
        network.train(train)
        coupled = options["normalization"] == "batch"
        assert network.couples_examples == coupled
        found = coupling(network, x)
        for i, j in itertools.product(range(3), repeat=2):
            assert found[i, j] == (i == j or (coupled and train))
        if not coupled:
            torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_new_residual_blocks_change_nothing_but_learn(weight_norm, bottleneck):
    options = {"base": 4, "weight_norm": weight_norm, "bottleneck": bottleneck}
    torch.manual_seed(3)
    deep = ConvEncoder((1, 6, 6), blocks=3, scales=1, **options)
    torch.manual_seed(3)
    x = torch.randn(5, 1, 6, 6)
    first, *blocks, down, norm, relu = deep.layers
    torch.testing.assert_close(deep(x), relu(norm(down(first(x)))).flatten(1), rtol=0, atol=0)
    deep(x).square().sum().backward()
    for block in blocks:
        assert max(p.grad.abs().max() for p in block.parameters()) > 0


@pytest.mark.parametrize("transposed", [False, True])
def test_weight_norm_gains_are_the_norms_of_the_output_channels(transposed):
    network = ConvDecoder(2, (1, 4, 4), base=4, scales=1, weight_norm=True)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    convs = [m for m in network.modules() if isinstance(m, kind)]
    assert convs
    for conv in convs:
        over = (0, 2, 3) if transposed else (1, 2, 3)
        norms = conv.weight.square().sum(over).sqrt()
        torch.testing.assert_close(norms, conv.parametrizations.weight.original0.flatten())


@pytest.mark.parametrize("options", UNCOUPLED, ids=name)
def test_twice_differentiable(options):
    encoder, decoder = pair((1, 3, 4), features=2, scales=1, **options)
    torch.manual_seed(5)
    x = torch.randn(1, 1, 3, 4, dtype=double, requires_grad=True)
    z = torch.randn(2, 2, dtype=double, requires_grad=True)
    for network, v in ((encoder, x), (decoder, z)):
        assert torch.autograd.gradcheck(network, v, fast_mode=True)
        assert torch.autograd.gradgradcheck(network, v, fast_mode=True)


@pytest.mark.parametrize("options", UNCOUPLED, ids=name)
def test_many_networks_in_one_program(options):
    shape = (1, 4, 5)
    for k, x in enumerate((torch.randn(2, 3, *shape), torch.randn(2, 3, 3))):
        networks = [pair(shape, **options)[k].float() for _ in range(2)]
        stir(networks[1], 9)
        parameters, buffers = torch.func.stack_module_state(networks)
        call = torch.func.vmap(
            lambda p, b, v, network=networks[0]: torch.func.functional_call(network, (p, b), (v,))
        )
        alone = torch.stack([network(v) for network, v in zip(networks, x, strict=True)])
        torch.testing.assert_close(call(parameters, buffers, x), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalization", ["none", "group"])
def test_channels_last_changes_nothing(normalization):
    shape = (3, 6, 8)
    encoder, decoder = pair(shape, normalization=normalization)
    x, z = torch.randn(4, *shape, dtype=double), torch.randn(2, 4, 3, dtype=double)
    expected = encoder(x), decoder(z)
    for network in (encoder, decoder):
        network.to(memory_format=torch.channels_last)
    found = encoder(x.to(memory_format=torch.channels_last)), decoder(z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_pixel_reaches_the_features_and_every_latent_each_pixel():
    encoder, decoder = pair((1, 7, 9), normalization="none")
    x = torch.randn(1, 1, 7, 9, dtype=double)
    seen = torch.autograd.functional.jacobian(encoder, x).abs().amax((0, 1))
    assert (seen > 0).all()
    moved = torch.autograd.functional.jacobian(decoder, torch.randn(1, 3, dtype=double))
    assert (moved.abs() > 0).any(-1).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ConvEncoder((1, 8, 8), scales=3), r"scales: was 3.*8×8.*2 times.*use 0 to 2"),
        (lambda: ConvDecoder(2, (1, 28, 28), scales=5), "28×28.*4 times"),
        (lambda: ConvEncoder((1, 8, 8), scales=-1), "scales"),
        (lambda: ConvEncoder((1, 8, 8), scales=True), "scales"),
        (lambda: ConvEncoder((64,)), r"in_shape: was \(64,\).*C, height, width"),
        (lambda: ConvDecoder(2, (8, 8)), "out_shape"),
        (lambda: ConvDecoder(0, (1, 8, 8)), "in_features"),
        (lambda: ConvEncoder((1, 8, 8), base=0), "base"),
        (lambda: ConvEncoder((1, 8, 8), blocks=0), "blocks"),
        (lambda: ConvEncoder((1, 8, 8), normalization="grup"), "did you mean 'group'"),
    ],
)
def test_impossible_settings_are_refused(call, words):
    with pytest.raises(SpecError, match=words):
        call()


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"this ConvEncoder needs \[\.\.\., 1, 8, 8\]"):
        ConvEncoder((1, 8, 8), base=4)(torch.zeros(5, 64))
    with pytest.raises(ShapeError, match=r"this ConvDecoder needs \[\.\.\., 2\]"):
        ConvDecoder(2, (1, 8, 8), base=4)(torch.zeros(5, 3))
    with pytest.raises(ShapeError, match=r"torch.uint8"):
        ConvEncoder((1, 8, 8), base=4)(torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
