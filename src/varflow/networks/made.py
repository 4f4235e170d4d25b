"""MADE: one network that outputs the parameters of every conditional p(z_i | z_<i) in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from varflow.core.errors import SpecError
from varflow.networks.linear import linear, uniform


class MADE(nn.Module):
    """Masked autoregressive networks: output i sees the features before i and the whole context.

    Every unit carries a degree. Feature i has degree i = 1…D, a hidden unit of degree m sees the
    units of degree ≤ m below it, and output i sees the hidden units of degree < i. The degrees of a
    hidden layer are sorted and evenly spread over 1…D−1, or over 0…D−1 with a context, so that the
    first output can see the context too. The order of the features alternates: an odd ``step``
    reads them last to first.

    Reference: Germain et al. 2015, *MADE: Masked Autoencoder for Distribution Estimation*
    (arXiv:1502.03509), equations 8–13. Different from the paper: degrees are not drawn at random,
    the context is added to the first hidden layer, and ``length`` networks of one size live in one
    module, their weights stacked as ``[length, out, in]``.

    Cost: a pass in parallel costs a dense network. :meth:`Step.sequential` computes the features
    one after the other, each hidden unit once: D short products whose work adds up to one pass.

    Args:
        features: D, the number of inputs.
        outputs: numbers to output for each feature.
        hidden: widths of the hidden layers; by default two of max(64, 8 D).
        context_features: C, the size of the context vector; 0 for none.
        length: the number of networks.
        zero_output: start with an output layer of zeros, so that every output is 0.

    Raises:
        SpecError: a size is not positive, or a hidden layer has fewer units than there are degrees.

    Example:
        >>> import torch
        >>> made = MADE(features=3, outputs=2, hidden=(16, 16))
        >>> made(torch.zeros(5, 3)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] | None = None,
        context_features: int = 0,
        length: int = 1,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        hidden = (max(64, 8 * features),) * 2 if hidden is None else tuple(hidden)
        self.features: int = features
        self.outputs: int = outputs
        self.hidden: tuple[int, ...] = hidden
        self.context_features: int = context_features
        self.length: int = length
        self._check()

        #: Degree of the first hidden units: 0 is "the context alone".
        self.lowest = 0 if context_features else 1
        count = max(features - self.lowest, 1)
        layers = [torch.arange(1, features + 1)]
        layers += [self.lowest + torch.arange(width) * count // width for width in hidden]
        masks = [above[:, None] >= below for below, above in pairwise(layers)]
        masks.append((layers[0][:, None] > layers[-1]).repeat(outputs, 1))
        #: blocks[l][m]: how many units of hidden layer l have degree m.
        self.blocks: list[list[int]] = [torch.bincount(layer, minlength=features).tolist() for layer in layers[1:]]

        self.weights: nn.ParameterList = nn.ParameterList(
            uniform(length, *mask.shape, fan_in=mask.shape[1]) for mask in masks
        )
        self.biases: nn.ParameterList = nn.ParameterList(
            uniform(length, *mask.shape[:1], fan_in=mask.shape[1]) for mask in masks
        )
        self.context_weight: nn.Parameter | None = (
            uniform(length, hidden[0], context_features, fan_in=context_features) if context_features else None
        )
        for index, (weight, mask) in enumerate(zip(self.weights, masks, strict=True)):
            # Numbers of the weights' kind: a product with true and false would convert them at each step.
            self.register_buffer(f"mask{index}", mask.to(weight.dtype), persistent=False)
        if zero_output:
            nn.init.zeros_(self.weights[-1])
            nn.init.zeros_(self.biases[-1])

    def forward(
        self,
        z: Float[Tensor, "... features"],
        context: Float[Tensor, "... context"] | None = None,
        step: int = 0,
    ) -> Float[Tensor, "... outputs features"]:
        """The outputs of network ``step`` for all features at once."""
        return self.steps(context)[step](z)

    def steps(self, context: Float[Tensor, "... context"] | None = None) -> list[Step]:
        """The ``length`` networks, their weights masked and the context already worked in."""
        return self.steps_of(self.shift(context), [*self.weights], [*self.biases][1:])

    def shift(self, context: Float[Tensor, "... context"] | None = None) -> Tensor:
        """What is added to the first hidden layers ``[..., length · width]``: biases, and what the context says.

        One product for all networks; with a context it differs between examples.
        """
        bias = self.biases[0].flatten()
        if context is None or self.context_weight is None:
            return bias
        return linear(context, self.context_weight.flatten(0, 1), bias)

    def steps_of(self, shift: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Step]:
        """The networks of a :meth:`shift`, of the weights of all layers and of the biases of all but the first."""
        masked = [(weight * mask).unbind(0) for weight, mask in zip(weights, self.masks, strict=True)]
        added = [shift.unflatten(-1, (self.length, -1)).unbind(-2), *(bias.unbind(0) for bias in biases)]
        return [
            Step(self, [w[t] for w in masked], [b[t] for b in added], reverse=t % 2 == 1)
            for t in range(self.length)
        ]

    @property
    def masks(self) -> list[Tensor]:
        """For each layer 1 where a weight may be read, 0 elsewhere ``[out, in]``."""
        return [getattr(self, f"mask{index}") for index in range(len(self.weights))]

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, outputs={self.outputs}, hidden={self.hidden}, "
            f"context_features={self.context_features}, length={self.length}"
        )

    def _check(self) -> None:
        sizes = {"features": self.features, "outputs": self.outputs, "length": self.length}
        sizes |= {f"hidden[{index}]": width for index, width in enumerate(self.hidden)}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise SpecError(f"{name}: was {size!r}; use a positive integer")
        if not isinstance(self.context_features, int) or self.context_features < 0:
            raise SpecError(
                f"context_features: was {self.context_features!r}; use 0 or a positive integer"
            )
        least = self.features - (0 if self.context_features else 1)
        if not self.hidden or min(self.hidden) < least:
            raise SpecError(
                f"hidden: was {self.hidden}; {self.features} features need at least one layer and "
                f"at least {max(least, 1)} units a layer, one for each degree; "
                "leave it out for the default"
            )


class Step:
    """One network of a :class:`MADE`. The order of features is undone in what it returns."""

    def __init__(
        self, made: MADE, weights: list[Tensor], biases: list[Tensor], reverse: bool
    ) -> None:
        self.features: int = made.features
        self.outputs: int = made.outputs
        self.lowest: int = made.lowest
        self.blocks: list[list[int]] = made.blocks
        self.weights: list[Tensor] = weights
        self.biases: list[Tensor] = biases
        self.reverse: bool = reverse

    def __call__(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... outputs features"]:
        """All outputs in one pass."""
        h = self._ordered(z)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = F.relu(_affine(h, weight, bias))
        out = linear(h, self.weights[-1], self.biases[-1])
        return self._ordered(out.unflatten(-1, (self.outputs, self.features)))

    def sequential(
        self, update: Callable[[int, Tensor], Tensor], batch: Sequence[int]
    ) -> tuple[Float[Tensor, "*batch features"], Float[Tensor, "*batch outputs features"]]:
        """Compute the features one by one: z_i = update(i, outputs for i given z_<i).

        A hidden unit of degree m is computed once, as soon as z_m is known. Exact, no iteration;
        :func:`feature_by_feature` is the definition.

        Args:
            update: (index of the feature, outputs ``[*batch, outputs]``) → value ``[*batch]``.
            batch: the batch shape, the context's included.
        """
        if not (torch.is_grad_enabled() or traced()):
            return self._in_place(update, batch)
        rows = self._rows()
        out_weights = self.weights[-1].unflatten(0, (self.outputs, -1)).unbind(1)
        out_biases = self.biases[-1].unflatten(0, (self.outputs, -1)).unbind(1)
        known: list[Tensor | None] = [None] * len(self.weights)  # inputs, then each hidden layer
        values: list[Tensor] = []
        raws: list[Tensor] = []
        for degree in range(self.features):
            if degree >= self.lowest:
                for layer, (weights, biases) in enumerate(rows):
                    below = known[layer]
                    new = biases[degree]
                    if below is not None:
                        new = _affine(below, weights[degree][:, : below.shape[-1]], new)
                    known[layer + 1] = _append(known[layer + 1], F.relu(new), batch)
            top = known[-1]
            raw = out_biases[degree]
            if top is not None:
                raw = linear(top, out_weights[degree][:, : top.shape[-1]], raw)
            value = update(self.features - 1 - degree if self.reverse else degree, raw)
            known[0] = _append(known[0], value.unsqueeze(-1), batch)
            values.append(value)
            raws.append(raw.expand(*batch, self.outputs))
        return self._ordered(torch.stack(values, -1)), self._ordered(torch.stack(raws, -1))

    def _in_place(
        self, update: Callable[[int, Tensor], Tensor], batch: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """:meth:`sequential` where no gradient is kept: units are rows of buffers, whose known part is dense."""
        count, widths = math.prod(batch), [self.features, *(len(b) for b in self.weights[:-1])]
        known = [self.weights[0].new_empty(width, count) for width in widths]
        raws = self.weights[0].new_empty(self.features, self.outputs, count)
        out_weights = self.weights[-1].unflatten(0, (self.outputs, -1)).unbind(1)
        out_biases = self.biases[-1].unflatten(0, (self.outputs, -1)).unbind(1)
        rows = self._rows()
        filled = [0] * len(widths)
        for degree in range(self.features):
            if degree >= self.lowest:
                for layer, (weights, biases) in enumerate(rows):
                    weight, bias = weights[degree], biases[degree]
                    start, below = filled[layer + 1], filled[layer]
                    filled[layer + 1] = stop = start + len(weight)
                    if bias.ndim > 1:
                        bias = bias.expand(*batch, len(weight)).reshape(count, len(weight)).mT
                    else:
                        bias = bias.unsqueeze(-1)
                    new = known[layer + 1][start:stop]
                    torch.addmm(bias, weight[:, :below], known[layer][:below], out=new).relu_()
            top = known[-1][: filled[-1]]
            weight, bias = out_weights[degree][:, : filled[-1]], out_biases[degree].unsqueeze(-1)
            raw = torch.addmm(bias, weight, top, out=raws[degree])
            raw = raw.reshape(self.outputs, *batch).movedim(0, -1)
            value = update(self.features - 1 - degree if self.reverse else degree, raw)
            known[0][degree] = value.reshape(-1)
            filled[0] += 1
        z = known[0].reshape(self.features, *batch).movedim(0, -1).contiguous()
        outputs = raws.reshape(self.features, self.outputs, *batch).movedim((0, 1), (-1, -2))
        return self._ordered(z), self._ordered(outputs)

    def _rows(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Weights and biases of each hidden layer, cut into one block of rows for each degree."""
        return [
            (weight.split(sizes, 0), bias.split(sizes, -1))
            for weight, bias, sizes in zip(self.weights, self.biases, self.blocks, strict=False)
        ]

    def _ordered(self, z: Tensor) -> Tensor:
        return z.flip(-1) if self.reverse else z


def feature_by_feature(
    step: Step, update: Callable[[int, Tensor], Tensor], batch: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The definition of :meth:`Step.sequential`: a whole pass for each feature, which reads those before it alone."""
    z = step.weights[0].new_zeros(*batch, step.features)
    for i in reversed(range(step.features)) if step.reverse else range(step.features):
        value = update(i, step(z)[..., i].expand(*batch, step.outputs))
        z = torch.cat([z[..., :i], value.unsqueeze(-1), z[..., i + 1 :]], -1)
    return z, step(z).expand(*batch, step.outputs, step.features)


def traced() -> bool:
    """Whether a transformation of functions or the compiler looks on, which writing in place may not survive."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return True
    return bool(torch._C._are_functorch_transforms_active())


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x·Wᵀ + b, where b may differ between examples."""
    return linear(x, weight, bias) if bias.ndim == 1 else linear(x, weight) + bias


def _append(known: Tensor | None, new: Tensor, batch: Sequence[int]) -> Tensor:
    # Units that only see the bias or the context may lack some of the batch dimensions.
    new = new.expand(*batch, new.shape[-1])
    return new if known is None else torch.cat((known, new), -1)
