"""The likelihood that fits the values of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from varflow.core.form import Form
from varflow.core.lazy import resolve
from varflow.core.settings import described, read, settings
from varflow.likelihoods import TABLE
from varflow.likelihoods.bernoulli import BernoulliSettings
from varflow.likelihoods.columns import ColumnsSettings
from varflow.likelihoods.gaussian import GaussianSettings
from varflow.likelihoods.logistics import LogisticsSettings
from varflow.networks.mlp import Shape


@settings
class AutoSettings(GaussianSettings, LogisticsSettings, BernoulliSettings, ColumnsSettings):
    """Bernoulli for binary data, logistics for levels, columns for tables of kinds, Gaussian otherwise, each with its
    own settings.
    """

    protocol: ClassVar[str] = "auto"

    def choice(self, support: str) -> str:
        """The likelihood of the table that data of this support get."""
        return {"binary": "bernoulli", "levels": "logistics", "columns": "columns"}.get(support, "gaussian")

    def build(self, part: Any, decoder: Callable[[Shape], nn.Module], form: Form) -> nn.Module:
        target = TABLE[self.choice(form.support)]
        kind: Any = read(target)
        own = kind(**{name: getattr(self, name) for name in described(kind)})
        made: nn.Module = own.build(resolve(target), decoder, form)
        return made
