"""How many features a network gives, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from varflow.core.errors import SpecError


def output_features(network: nn.Module, event_shape: int | Sequence[int] | None = None) -> int:
    """F of a network ``[B, *event] -> [B, F]``.

    Its attribute ``features``, where it has one. Otherwise the size of what it makes of one example of zeros, in
    evaluation mode and without gradients; without ``event_shape`` that is possible where its first layer is linear.

    Args:
        network: any network.
        event_shape: shape of one example.

    Raises:
        SpecError: the size cannot be found, or what comes out is no row of features.

    >>> output_features(nn.Sequential(nn.Linear(6, 16), nn.ReLU()))
    16
    """
    name = type(network).__name__
    if hasattr(network, "features") and isinstance(network.features, int):
        return network.features
    layers = [layer for layer in network.modules() if not any(True for _ in layer.children())]
    if event_shape is None and layers and hasattr(layers[0], "in_features"):
        event_shape = int(layers[0].in_features)  # type: ignore[arg-type]
    if event_shape is None:
        raise SpecError(
            f"encoder: {name} does not say how many features it gives; pass event_shape=..., the shape of one "
            "example, or give the network an integer attribute 'features'"
        )
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    home = next(network.parameters(), torch.zeros(()))
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            out = network(torch.zeros(1, *shape, dtype=home.dtype, device=home.device))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise SpecError(
            f"encoder: {name} cannot read one example of shape {list(shape)} ({str(error).splitlines()[0]}); give an "
            "encoder of such examples"
        ) from error
    finally:
        network.train(training)
    if not isinstance(out, torch.Tensor) or out.dim() != 2 or len(out) != 1:
        found = f"shape {list(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise SpecError(
            f"encoder: {name} makes {found} of one example, should be [1, features]; end it with nn.Flatten()"
        )
    return int(out.shape[1])
