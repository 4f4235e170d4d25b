"""Masked convolutions: what each position sees, and that walking a grid computes the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from varflow.core.errors import SpecError
from varflow.networks.masked import LeftConv, MaskedConv, RowConv, shift_down


def reach(function, height, width, channels):
    """``[H, W, H, W]``: whether out[i, j] depends on in[a, b]."""
    x = torch.randn(1, height, width, channels, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda t: function(t)[0].sum(-1), x)
    return jacobian[:, :, 0].abs().sum(-1) > 0


def expected(height, width, sees):
    grid = [(i, j) for i in range(height) for j in range(width)]
    return torch.tensor([[sees(*p, *q) for q in grid] for p in grid]).reshape(
        height, width, height, width
    )


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (5, 7)])
def test_a_position_sees_its_window_before_it_and_nothing_else(mask, kernel, size):
    conv = MaskedConv(2, 3, kernel, mask).double()
    side = kernel // 2

    def sees(i, j, a, b):
        before = a < i or (a == i and (b < j or (b == j and mask == "B")))
        return before and i - a <= side and abs(j - b) <= side

    assert torch.equal(reach(conv, *size, 2), expected(*size, sees))


@pytest.mark.parametrize("mask", ["A", "B"])
def test_the_dense_kernel_gives_the_same_numbers_and_is_zero_from_the_mask_on(mask):
    conv = MaskedConv(3, 4, 5, mask).double()
    x = torch.randn(2, 6, 7, 3, dtype=torch.float64)
    dense = conv.dense()
    assert dense.shape == (4, 3, 5, 5)
    by_hand = F.conv2d(x.permute(0, 3, 1, 2), dense, conv.left.bias, padding=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(x), by_hand, atol=1e-13, rtol=0)
    live = (dense.abs().sum((0, 1)) > 0).flatten()
    centre = 12 + (mask == "B")
    assert live[:centre].all()
    assert not live[centre:].any()


def test_a_kernel_of_one_is_a_linear_map_of_the_channels():
    conv = MaskedConv(3, 4, 1, "B").double()
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.linear(x, conv.left.weight[:, :, 0, 0], conv.left.bias))


@pytest.mark.parametrize(("rows", "kernel"), [(1, 3), (2, 3), (4, 7), (3, 1)])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (6, 9)])
def test_rows_one_at_a_time_are_the_rows_all_at_once(rows, kernel, size):
    conv = RowConv(3, 4, rows, kernel).double()
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    with torch.no_grad():
        stream = conv.stream()
        walked = torch.stack([stream(row) for row in x.unbind(1)], 1)
        torch.testing.assert_close(walked, conv(x), atol=1e-13, rtol=0)


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 8)])
def test_positions_one_at_a_time_are_the_grid_at_once(mask, size):
    conv = MaskedConv(3, 4, 5, mask).double()
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    walked = torch.empty(2, *size, 4, dtype=torch.float64)
    with torch.no_grad():
        stream = conv.stream(2, size[1])
        for i in range(size[0]):
            stream.start()
            for j in range(size[1]):
                if mask == "A":
                    walked[:, i, j] = stream.get(j)
                    stream.put(j, x[:, i, j])
                else:
                    walked[:, i, j] = stream.step(j, x[:, i, j])
        torch.testing.assert_close(walked, conv(x), atol=1e-13, rtol=0)


def test_shift_down_moves_rows_and_loses_the_last():
    x = torch.arange(6.0).reshape(1, 3, 2, 1)
    assert shift_down(x).flatten().tolist() == [0, 0, 0, 1, 2, 3]


def test_gradients_are_right_to_second_order():
    conv = MaskedConv(1, 2, 3, "B").double()
    x = torch.randn(1, 2, 3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)
    assert torch.autograd.gradgradcheck(lambda t: conv(t).tanh(), x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MaskedConv(1, 1, 4, "A"), "kernel: was 4"),
        (lambda: MaskedConv(1, 1, 1, "A"), "kernel: was 1"),
        (lambda: MaskedConv(1, 1, 3, "C"), "mask: was 'C'"),
        (lambda: RowConv(0, 1, 1, 3), "in_channels: was 0"),
        (lambda: LeftConv(1, 0, 3, True), "channels: was 0"),
    ],
)
def test_impossible_settings_are_named(make, words):
    with pytest.raises(SpecError, match=words):
        make()
