"""MADE: who sees whom, and that one by one and all at once agree."""

from __future__ import annotations

import pytest
import torch
from torch.func import jacrev, vmap

from varflow.core.errors import SpecError
from varflow.networks import MADE
from varflow.networks.made import feature_by_feature


@pytest.mark.parametrize("d", [1, 2, 5, 40])
@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("hidden", [None, (41,), (40, 57, 43)], ids=str)
def test_outputs_see_exactly_the_features_before(
    d: int, context_features: int, hidden: tuple[int, ...] | None
) -> None:
    torch.manual_seed(0)
    made = MADE(d, 3, hidden, context_features, length=2).double()
    with torch.no_grad():  # all units active, so that no path hides behind a rectifier
        for parameter in made.parameters():
            parameter.abs_()
        for bias in made.biases:
            bias += 10
    z = torch.randn(2, d, dtype=torch.float64)
    context = torch.randn(2, context_features, dtype=torch.float64) if context_features else None
    for step in (0, 1):

        def outputs(v: torch.Tensor, *c: torch.Tensor, step: int = step) -> torch.Tensor:
            return made(v, *c, step=step)

        args = (z,) if context is None else (z, context)
        jacobian = vmap(jacrev(outputs))(*args)  # [2, outputs, D, D]
        before = torch.ones(d, d, dtype=torch.bool).tril(-1)
        expected = before if step == 0 else before.T
        assert torch.equal(jacobian.abs().sum(0) > 0, expected.expand(3, d, d))
        if context is not None:
            by_context = vmap(jacrev(outputs, argnums=1))(*args)
            assert (by_context.abs().sum(0) > 0).all()


@pytest.mark.parametrize(
    ("d", "context_features", "width", "expected"),
    [
        (5, 0, 8, [0, 2, 2, 2, 2]),
        (5, 2, 8, [2, 2, 1, 2, 1]),
        (2, 0, 3, [0, 3]),
        (1, 2, 4, [4]),
    ],
)
def test_degrees_are_sorted_and_evenly_spread(
    d: int, context_features: int, width: int, expected: list[int]
) -> None:
    made = MADE(d, 1, (width,), context_features)
    assert made.blocks == [expected]
    seen = made.mask0.sum(1)
    assert torch.equal(seen, seen.sort().values)


@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("step", [0, 1])
def test_sequential_passes_reproduce_the_parallel_one(context_features: int, step: int) -> None:
    """Handing out given values one by one must yield the outputs for all of them."""
    torch.manual_seed(0)
    made = MADE(6, 2, (9, 17), context_features, length=2).double()
    z = torch.randn(4, 3, 6, dtype=torch.float64)
    context = torch.randn(3, context_features, dtype=torch.float64) if context_features else None
    order = []

    def given(i: int, raw: torch.Tensor) -> torch.Tensor:
        order.append(i)
        return z[..., i]

    values, raw = made.steps(context)[step].sequential(given, (4, 3))
    assert torch.equal(values, z)
    torch.testing.assert_close(raw, made(z, context, step=step), rtol=1e-13, atol=1e-13)
    assert order == (list(range(6)) if step == 0 else list(range(5, -1, -1)))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("step", [0, 1])
def test_sequential_is_its_definition(context_features: int, step: int, gradients: bool) -> None:
    torch.manual_seed(0)
    made = MADE(5, 2, (9, 17), context_features, length=2).double()
    context = torch.randn(3, context_features, dtype=torch.float64) if context_features else None
    noise = torch.randn(4, 3, 5, dtype=torch.float64)

    def update(i: int, raw: torch.Tensor) -> torch.Tensor:
        return noise[..., i] * raw[..., 0].exp() + raw[..., 1]

    with torch.set_grad_enabled(gradients):
        one = made.steps(context)[step]
        found = one.sequential(update, (4, 3))
        torch.testing.assert_close(found, feature_by_feature(one, update, (4, 3)), rtol=1e-12, atol=1e-12)


def test_steps_have_their_own_weights() -> None:
    made = MADE(4, 1, length=4)
    z = torch.randn(3, 4)
    outputs = [made(z, step=step) for step in range(4)]
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3
    assert all(weight.shape[0] == 4 for weight in made.weights)


def test_starts_at_zero_if_asked() -> None:
    assert MADE(4, 2, zero_output=True)(torch.randn(3, 4)).abs().max() == 0
    assert MADE(4, 2)(torch.randn(3, 4)).abs().max() > 0


def test_masks_are_not_part_of_the_state() -> None:
    made = MADE(4, 2, (8, 8), context_features=2)
    assert set(made.state_dict()) == {
        "context_weight",
        *(f"{kind}.{layer}" for kind in ("weights", "biases") for layer in range(3)),
    }
    assert "features=4, outputs=2, hidden=(8, 8), context_features=2" in repr(made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features: was 0"),
        ({"outputs": -1}, "outputs: was -1"),
        ({"length": 1.5}, "length: was 1.5"),
        ({"context_features": -2}, "context_features: was -2"),
        ({"hidden": (8, 0)}, r"hidden\[1\]: was 0"),
        ({"hidden": ()}, "at least one layer"),
        ({"hidden": (3,)}, "at least 4 units"),
    ],
    ids=str,
)
def test_bad_sizes(arguments: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MADE(**{"features": 5, "outputs": 2, **arguments})
