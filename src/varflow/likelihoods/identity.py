"""x = z: the likelihood of a model that is its prior, for density estimation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.core.errors import SpecError
from varflow.core.form import Form
from varflow.core.settings import Settings, settings
from varflow.networks.mlp import as_shape


@settings("Identity")
class IdentitySettings(Settings):
    """No latents, so neither networks nor a posterior."""

    protocol: ClassVar[str] = "auto"
    continuous: ClassVar[bool] = True
    alone = (
        "with likelihood=identity the prior is of x itself; leave it out, or use prior=planar and the like"
    )

    def build(self, part: Any, form: Form) -> Identity:
        return Identity(form.event_shape)


class Identity(nn.Module):
    """x = z, the likelihood that goes with :class:`~varflow.posteriors.DataAsLatents`, or for grids of codes with
    :class:`~varflow.posteriors.CodesAsLatents`.

    Args:
        event_shape: shape of one x.
        codes: whether x and z are integers of that shape instead of vectors of real numbers.
    """

    reads: tuple[str, ...] = ()

    def __init__(self, event_shape: int | Sequence[int], codes: bool = False) -> None:
        super().__init__()
        self.event_shape: tuple[int, ...] = as_shape("event_shape", event_shape)
        self.codes = codes
        self.support: tuple[str, ...] = ("codes",) if codes else ("real", "unit")

    def log_prob(self, x: Shaped[Tensor, "..."], z: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.codes:
            return torch.zeros(z.shape[: z.ndim - 2], device=z.device)
        return torch.zeros_like(z[..., 0])

    def mean(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return z if self.codes else z.unflatten(-1, self.event_shape)

    sample = mean

    def check_support(self, support: str) -> None:
        if self.codes and support not in self.support:
            raise SpecError(
                f"data: are {support}, and this model is over grids of codes; use varflow.data.from_codes"
            )
        if support == "columns":
            raise SpecError(
                "data: are a table whose columns are each of a kind, and the prior were a density of all of them; "
                "use protocol=table, or likelihood=columns"
            )
        if support not in self.support:
            raise SpecError(
                f"data: are {support}, and a density of discrete values has no upper bound; use protocol=uniform "
                "or logit"
            )
