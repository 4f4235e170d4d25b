"""Facts about the strided pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import varflow as vf
from varflow.core.errors import ShapeError, SpecError
from varflow.networks import StridedDecoder, StridedEncoder
from varflow.networks.pictures import NORMALIZATIONS
from varflow.networks.strided import UPSAMPLINGS, halvings

double = torch.float64


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def stir(network: nn.Module, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw, dtype=double))
    return network


def pair(shape=(1, 5, 7), normalization="group", up="nearest"):
    options = {"dense": (6,), "normalization": normalization, "kernel": 3}
    encoder = StridedEncoder(shape, (4, 8), 3, **options).to(double)
    decoder = StridedDecoder(2, shape, (8, 4), 3, up=up, **options).to(double)
    return stir(encoder, 0), stir(decoder, 1)


CASES = [(normalization, up) for normalization in NORMALIZATIONS for up in UPSAMPLINGS]


@given(
    channels=st.integers(1, 3),
    height=st.integers(3, 21),
    width=st.integers(3, 21),
    kernel=st.sampled_from([1, 3, 5]),
    up=st.sampled_from(UPSAMPLINGS),
    up_kernel=st.integers(2, 6),
    stem=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_any_picture_comes_back_in_its_own_size(
    channels, height, width, kernel, up, up_kernel, stem
):
    shape = (channels, height, width)
    encoder = StridedEncoder(shape, (4, 6), stem, kernel, ())
    decoder = StridedDecoder(2, shape, (6, 4), stem, kernel, up, up_kernel, ())
    rows, columns = halvings(shape, 2)[-1]
    assert encoder(torch.zeros(2, *shape)).shape == (2, 6 * rows * columns) == (2, encoder.features)
    assert decoder(torch.zeros(2, 2)).shape == (2, *shape)


def test_the_sizes_of_the_hvae_authors():
    """5×5 kernels, 28 → 14 → 7 → 4 with 16, 32, 32 channels, 450 and 512 units; counted by hand."""
    encoder, decoder = StridedEncoder((1, 28, 28)), StridedDecoder(64, (1, 28, 28))
    convolutions = (25 * 1 + 1) * 16 + (25 * 16 + 1) * 32 + (25 * 32 + 1) * 32
    assert count(encoder) == convolutions + (512 + 1) * 450
    transposed = 25 * (32 * 32 + 32 * 16 + 16 * 1) + 32 + 16 + 1
    assert count(decoder) == (64 + 1) * 450 + (450 + 1) * 512 + transposed
    sizes = []
    for module in decoder.layers:
        if isinstance(module, nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda module, given, out: sizes.append(tuple(out.shape[1:]))
            )
    decoder(torch.zeros(1, 64))
    assert sizes == [(32, 7, 7), (16, 14, 14), (1, 28, 28)]
    assert not [m for m in decoder.modules() if "Norm" in type(m).__name__]


def test_the_sizes_of_the_h_vae_notebook():
    """Its encoder has 328,520 parameters and its decoder 306,615, of which 2 and 128 scale the inputs of the two:
    a group normalization of a grey picture or of the latents would hide their scale, and is left out here."""
    options = {"normalization": "group"}
    encoder = StridedEncoder((1, 28, 28), **options)
    moments = (450 + 1) * 2 * 64
    assert count(encoder) + moments == 328_520 - 2
    decoder = StridedDecoder(64, (1, 28, 28), head=16, up="nearest", **options)
    assert count(decoder) == 306_615 - 128


def test_the_sizes_of_the_vae_pytorch_script():
    encoder = StridedEncoder((3, 32, 32), (64, 128, 256), 32, 3, (), "relu")
    assert encoder.features == 4096
    assert count(encoder) == 28 * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 128 + (9 * 128 + 1) * 256
    decoder = StridedDecoder(
        16, (3, 32, 32), (128, 128, 64), 32, 3, up_kernel=4, dense=(), activation="relu"
    )
    doublings = 16 * (128 * 128 + 128 * 64 + 64 * 32) + 128 + 64 + 32
    assert count(decoder) == 17 * 2048 + doublings + (9 * 32 + 1) * 3


@pytest.mark.parametrize(("normalization", "up"), CASES)
def test_leading_dimensions_are_batch_and_examples_are_apart(normalization, up):
    encoder, decoder = pair(normalization=normalization, up=up)
    encoder.eval(), decoder.eval()
    x, z = torch.randn(3, 4, 1, 5, 7, dtype=double), torch.randn(3, 4, 2, dtype=double)
    features, pictures = encoder(x), decoder(z)
    assert features.shape == (3, 4, 6)
    torch.testing.assert_close(encoder(x[1, 2]), features[1, 2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decoder(z[1, 2]), pictures[1, 2], rtol=1e-12, atol=1e-12)
    assert encoder(x[:, :0]).shape == (3, 0, 6)
    assert decoder(z[:0]).shape == (0, 4, 1, 5, 7)
    coupled = normalization == "batch"
    assert encoder.couples_examples == decoder.couples_examples == coupled
    for network, event in ((encoder, x[0]), (decoder, z[0])):
        network.train()
        jacobian = torch.autograd.functional.jacobian(
            lambda v, n=network: n(v).flatten(1)[:, :5].sum(1), event
        )
        touched = jacobian.flatten(2).abs().amax(-1) > 0
        assert bool((touched & ~torch.eye(4, dtype=torch.bool)).any()) == coupled


@pytest.mark.parametrize(("normalization", "up"), [case for case in CASES if case[0] != "batch"])
def test_derivatives_and_vmap(normalization, up):
    encoder, decoder = pair((1, 3, 5), normalization, up)
    x = torch.randn(2, 1, 3, 5, dtype=double, requires_grad=True)
    z = torch.randn(2, 2, dtype=double, requires_grad=True)
    for network, event in ((encoder, x), (decoder, z)):

        def scalar(v, n=network):
            return n(v).flatten(1)[:, :4].sin().sum(1)

        assert torch.autograd.gradcheck(scalar, (event,))
        assert torch.autograd.gradgradcheck(scalar, (event,))
        weights = {k: torch.stack([p, 1.1 * p]).detach() for k, p in network.named_parameters()}

        def call(w, v, n=network):
            return torch.func.functional_call(n, w, (v,))

        both = torch.func.vmap(call, in_dims=(0, None))(weights, event)
        for i in range(2):
            one = call({k: p[i] for k, p in weights.items()}, event)
            torch.testing.assert_close(both[i], one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: StridedEncoder((1, 4, 9), (4, 4, 4)),
            "pictures of 4×9 can be halved 2 times: give 2 entries at most",
        ),
        (lambda: StridedDecoder(2, (1, 1, 9), (4,)), "give no entries at most"),
        (lambda: StridedDecoder(2, (1, 8, 8), ()), "channels: was empty"),
        (lambda: StridedEncoder((1, 8, 8), (4,), kernel=4), "kernel: was 4; use an odd number"),
        (lambda: StridedDecoder(2, (1, 8, 8), (4,), up_kernel=1), "up_kernel: was 1"),
        (lambda: StridedDecoder(2, (1, 8, 8), (4,), up="bilinear"), "up: unknown value 'bilinear'"),
        (lambda: StridedEncoder((1, 8, 8), (4,), activation="sofplus"), "did you mean 'softplus'"),
        (lambda: StridedEncoder((1, 8, 8), (4,), normalization="bach"), "did you mean 'batch'"),
        (lambda: StridedEncoder((8, 8), (4,)), "in_shape: was"),
        (lambda: StridedEncoder((1, 8, 8), (0,)), "channels: was"),
    ],
)
def test_what_cannot_be_built_is_said(call, message):
    with pytest.raises(SpecError, match=message):
        call()


def test_inputs_of_another_shape_are_refused():
    encoder, decoder = pair()
    with pytest.raises(ShapeError, match="this StridedEncoder needs"):
        encoder(torch.zeros(2, 1, 7, 5, dtype=double))
    with pytest.raises(ShapeError, match="float64 parameters"):
        decoder(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": "16-x"}, "channels: was '16-x'; use positive numbers with dashes"),
        ({"up_channels": ""}, "up_channels: was ''"),
        ({"channels": "4-4-4-4-4"}, "channels: has 5 entries"),
        ({"up": "linear"}, "up: unknown value 'linear'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    x = (torch.rand(32, 1, 8, 8) < 0.5).float()
    with pytest.raises(SpecError, match=message):
        vf.fit("digits", x, network="strided", steps=1, quiet=True, **settings)


@pytest.mark.parametrize("settings", [{}, {"up": "nearest", "head": 3}, {"leapfrog": 2}])
def test_a_fit_with_it(settings, tmp_path):
    x = (torch.rand(64, 1, 8, 8) < torch.rand(64, 1, 1, 1)).float()
    run = vf.fit("digits", x, network="strided", channels="4-8", dense=10, kernel=3, activation="softplus",
                 latent=2, steps=30, batch=32, warmup="0 steps", out=tmp_path / "run", quiet=True,
                 **settings)  # fmt: skip
    train = [r["elbo"] for r in run.metrics if r["split"] == "train"]
    again = vf.load(tmp_path / "run", data=x)
    assert len(train) >= 1
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, run.model.state_dict()[name], rtol=0, atol=0)
    assert run.model.sample(3).shape == (3, 1, 8, 8)


def test_vectors_have_no_convolutions():
    with pytest.raises(SpecError, match="network: strided needs pictures"):
        vf.fit("digits", torch.rand(32, 6).round(), network="strided", steps=1, quiet=True)
