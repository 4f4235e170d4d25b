"""The convolutional pair of a vector-quantized model."""

import pytest
import torch

from varflow.core.errors import ShapeError, SpecError
from varflow.networks import VQDecoder, VQEncoder

SIZES = [(3, 32, 32), (1, 28, 28), (1, 7, 9), (2, 4, 5), (4, 13, 6)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("normalization", ["group", "layer", "none"])
def test_every_size_comes_back_exactly(shape, scales, normalization):
    settings = {"features": 6, "scales": scales, "blocks": 1, "normalization": normalization}
    encoder, decoder = VQEncoder(shape, **settings), VQDecoder(shape, **settings)
    x = torch.randn(2, *shape)
    z = encoder(x)
    assert z.shape[1:] == encoder.out_shape == decoder.in_shape
    assert z.shape[1:] == (6, shape[1] // 2**scales, shape[2] // 2**scales)
    assert decoder(z).shape == x.shape
    assert encoder.features == z[0].numel()
    assert decoder.features == x[0].numel()


@pytest.mark.parametrize("normalization", ["group", "layer", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_no_example_touches_another_and_leading_dimensions_are_batch(normalization, training):
    encoder = VQEncoder((2, 8, 9), features=8, normalization=normalization).double().train(training)
    decoder = VQDecoder((2, 8, 9), features=8, normalization=normalization).double().train(training)
    x = torch.randn(3, 2, 2, 8, 9, dtype=torch.float64)
    z = encoder(x)
    back = decoder(z)
    assert back.shape == x.shape
    torch.testing.assert_close(encoder(x[1, 0]), z[1, 0])
    torch.testing.assert_close(decoder(z[2:, 1]), back[2:, 1])
    assert not encoder.couples_examples
    assert encoder(x[:0]).shape == (0, *z.shape[1:])


def test_batch_statistics_say_that_they_couple_examples():
    encoder = VQEncoder((1, 8, 8), features=4, normalization="batch")
    assert encoder.couples_examples
    x = torch.randn(4, 1, 8, 8)
    assert not torch.allclose(encoder(x)[:1], encoder(x[:1] * 1.0 + 0 * x[:1]))


def test_every_parameter_gets_a_gradient_behind_the_blocks_that_start_at_zero():
    encoder, decoder = VQEncoder((1, 8, 8), features=4), VQDecoder((1, 8, 8), features=4)
    for network in (encoder, decoder):
        for parameter in network.parameters():
            # Not negative, so that no rectifier closes a way whatever the draw.
            torch.nn.init.uniform_(parameter, 0.05, 0.3)
    decoder(encoder(torch.rand(3, 1, 8, 8))).square().sum().backward()
    for network in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VQEncoder((1, 3, 8), scales=2), "halved 1 times: use 1 to 1"),
        (lambda: VQDecoder((1, 1, 8), scales=1), "no pixels to halve"),
        (lambda: VQEncoder((1, 8, 8), scales=0), "scales: was 0"),
        (lambda: VQEncoder((8, 8)), "in_shape"),
        (lambda: VQEncoder((1, 8, 8), features=0), "features: was 0"),
        (lambda: VQEncoder((1, 8, 8), normalization="instance"), "normalization: unknown"),
    ],
)
def test_impossible_settings_are_named(make, words):
    with pytest.raises(SpecError, match=words):
        make()


def test_a_wrong_input_is_named():
    with pytest.raises(ShapeError, match=r"needs \[\.\.\., 1, 8, 8\]"):
        VQEncoder((1, 8, 8), features=4)(torch.zeros(2, 1, 8, 9))


@pytest.mark.parametrize("padding", [(0, 0), (1, 0)])
def test_a_bias_added_afterwards_is_the_bias_of_a_transposed_convolution(padding):
    from varflow.networks.vq import _Up

    ours = _Up(3, 5, 4, 2, padding=1, output_padding=padding).double()
    plain = torch.nn.ConvTranspose2d(3, 5, 4, 2, padding=1, output_padding=padding).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    weights = torch.randn_like(plain(x))
    found = torch.autograd.grad((ours(x) * weights).sum(), ours.parameters())
    expected = torch.autograd.grad((plain(x) * weights).sum(), plain.parameters())
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("normalization", ["none", "group", "layer", "batch"])
def test_a_network_leaves_its_input_as_it_was(normalization):
    decoder = VQDecoder((1, 8, 8), features=8, normalization=normalization)
    z = torch.randn(2, 8, 2, 2).contiguous(memory_format=torch.channels_last)
    before = z.clone()
    decoder(z)
    assert torch.equal(z, before)
