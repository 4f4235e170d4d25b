"""The roles that a run is made of, and what stands in each: a choice, and the settings of the chosen part.

Which roles there are besides the first ones follows from what is chosen: a part's settings name the roles that it
brings (``roles``). So a target brings a posterior and no data, and likelihood=identity no posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from varflow.core.errors import SpecError, unknown
from varflow.core.lazy import resolve
from varflow.core.settings import Setting, Settings, described, names_in, read


@dataclass(frozen=True)
class Role:
    """A place that a part stands in.

    Attributes:
        name: of the role; with a table also of the choice, so of its flag.
        what: the words for it in a message.
        table: where the names are, as ``"module:attribute"``: name → part. Without one there is no choice.
        shared: settings class of a part that has none of its own; without a table the one class.
        default: the choice where none is made.
        otherwise: the roles that ``none`` brings, where it is a choice.
        of: the role whose part brings this one; None for those that are always there.
        help: what the choice means.
        prefix: stands before the names of the part's settings, where the same parts stand in two roles.
        defaults: of this role, where they are not the part's.
    """

    name: str
    what: str
    table: str = ""
    shared: str = ""
    default: str = ""
    otherwise: tuple[str, ...] | None = None
    of: str | None = None
    help: str = ""
    prefix: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The choices."""
        none = [] if self.otherwise is None else ["none"]
        return [*none, *names_in(self.table)] if self.table else []

    def kind(self, choice: str) -> type[Settings] | None:
        """The settings class of a choice, without importing the part.

        Raises:
            SpecError: no such choice, with the nearest one.
        """
        if not self.table:
            return read(self.shared)
        if not isinstance(choice, str) or choice not in self.names():
            raise unknown(self.name, str(choice), self.names())
        if choice == "none" and self.otherwise is not None:
            return None
        own = read(names_in(self.table)[choice])
        return own if own or not self.shared else read(self.shared)

    def settings(self, choice: str) -> dict[str, Setting]:
        """The settings of a choice by the names that a user gives."""
        kind = self.kind(choice)
        return {} if kind is None else {self.prefix + name: s for name, s in described(kind).items()}


#: In an order in which each stands behind the one that brings it.
ROLES = {
    role.name: role
    for role in (
        Role(
            "target", "the target", "varflow.targets:TABLE", "varflow.targets.target:TargetSettings",
            "none", ("data", "likelihood", "prior"),
            help="none; or a density to infer instead of data: a 2-D energy u1, u2, u3, u4; ring, mixture, banana, "
            "funnel; or gaussian-model: one global z behind a data set of Gaussian observations.",
        ),
        Role("data", "data", shared="varflow.data.settings:DataSettings", of="target"),
        Role(
            "likelihood", "p(x|z)", "varflow.likelihoods:CHOICES",
            "varflow.likelihoods.likelihood:LikelihoodSettings", "auto", of="target",
            help="p(x|z). auto: bernoulli for binary data, logistics for levels, columns for a table whose "
            "columns have kinds, gaussian otherwise; identity: no "
            "latents, the prior is fitted to the data themselves (density estimation).",
        ),
        Role(
            "network", "the networks", "varflow.networks:TABLE", default="mlp", of="likelihood",
            help="Encoder and decoder. mlp: fully connected; conv: the residual convolutional pair; strided: plain "
            "strided convolutions; grid: pictures to grids of vectors and back, for a quantizer.",
        ),
        Role(
            "posterior", "q(z|x)", "varflow.posteriors:TABLE", default="gaussian", of="likelihood",
            help="gaussian: a diagonal Gaussian, then a flow; quantizer: each vector of the encoder's grid becomes "
            "the nearest codeword.",
        ),
        Role(
            "flow", "q(z|x)", "varflow.flows:TABLE", "varflow.flows.flow:FlowSettings", "none", (), "posterior",
            help="The flow after the Gaussian.",
        ),
        Role(
            "hamiltonian", "the Hamiltonian posterior", of="posterior",
            shared="varflow.posteriors.hamiltonian:HamiltonianSettings",
        ),
        Role(
            "extended_flow", "the Hamiltonian posterior", "varflow.flows:TABLE", "varflow.flows.flow:FlowSettings",
            "none", (), "hamiltonian", prefix="extended_", defaults={"length": 5},
            help="A flow after the last leapfrog step, on positions and momenta together.",
        ),
        Role(
            "layers_above", "a second stochastic layer", of="posterior",
            shared="varflow.posteriors.ancestral:AncestralSettings",
        ),
        Role(
            "prior", "p(z)", "varflow.priors:CHOICES", "varflow.priors.prior:PriorSettings", "normal", of="target",
            help="p(z): normal, mixture, vamp, or a flow of its own; over the codes of a quantizer uniform-codes, "
            "pixelcnn or gated-pixelcnn.",
        ),
        Role(
            "code_prior", "the code prior", of="prior", shared="varflow.training.settings:CodePriorSettings",
        ),
        Role(
            "prior_optimizer", "the code prior", "varflow.training:OPTIMIZERS",
            "varflow.training.optimizers:OptimizerSettings", "adam", of="prior", prefix="prior_",
            help="Optimizer of the code prior.",
        ),
        Role(
            "objective", "the objective", "varflow.objectives:TABLE", default="elbo",
            help="What is maximised. elbo; annealed: the log-joint's weight grows to 1; iwae: the importance-"
            "weighted bound of `samples`.",
        ),
        Role(
            "optimizer", "the optimizer", "varflow.training:OPTIMIZERS",
            "varflow.training.optimizers:OptimizerSettings", "adam",
            help="The optimizer, with all of torch's options.",
        ),
        Role("training", "the loop and the machine", shared="varflow.training.settings:TrainingSettings"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """What stands in a role: ``chosen.latent`` reads a setting, ``chosen.posterior`` the choice.

    Attributes:
        role: the role.
        choice: a name of its table; empty without a table.
        settings: of the chosen part; None for none.
        shown: the names, as a user gives them, of the settings that mean something here.
    """

    role: Role
    choice: str
    settings: Any
    shown: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """Choice and settings by the names that a user gives."""
        own = {name: getattr(self.settings, name.removeprefix(self.role.prefix)) for name in self.shown}
        return {self.role.name: self.choice, **own} if self.role.table else own

    def defaults(self) -> dict[str, Any]:
        """What :meth:`values` would be if nothing but the choice had been said."""
        known, own = self.role.settings(self.choice), self.role.defaults
        out = {n: own.get(n.removeprefix(self.role.prefix), known[n].default) for n in self.shown}
        return {self.role.name: self.role.default, **out} if self.role.table else out

    def build(self, *arguments: Any, **more: Any) -> Any:
        """What the settings build; None for none. The part's file is imported now."""
        if self.settings is None:
            return None
        if not self.role.table:
            return self.loaded.build(*arguments, **more)
        return self.loaded.build(self.part, *arguments, **more)

    @property
    def part(self) -> Any:
        """What the table has under the choice."""
        return resolve(resolve(self.role.table)[self.choice])

    @property
    def loaded(self) -> Any:
        """The settings, with their part's file imported."""
        resolve(type(self.settings).__module__)
        return self.settings

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == self.role.name and self.role.table:
            return self.choice
        return getattr(self.settings, name.removeprefix(self.role.prefix))


def choose(given: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Chosen]:
    """role → what stands in it, from the values in ``given`` or else ``before``; what was used leaves ``given``.

    A value from before goes only to a setting that takes it.

    Raises:
        SpecError: a choice that its table has not.
    """
    wanted = {name for name, role in ROLES.items() if role.of is None}
    values: dict[str, Any] = {}
    out: dict[str, Chosen] = {}
    for role in ROLES.values():
        if role.name not in wanted:
            continue
        choice = ""
        if role.table:
            choice = given.pop(role.name, before.get(role.name, role.default))
            values[role.name] = choice
        kind = role.kind(choice)
        if kind is None:
            wanted |= set(role.otherwise or ())
            out[role.name] = Chosen(role, choice, None)
            continue
        for pair in kind.either:
            one, other = (role.prefix + name for name in pair)
            if (one in given) != (other in given):
                given[other if one in given else one] = None
        own = dict(role.defaults)
        for name, setting in described(kind).items():
            known = role.prefix + name
            if known in given:
                own[name] = setting.kept(given[known])
            elif known in before and _takes(setting, before[known]):
                own[name] = before[known]
        made = kind(**own)
        shown = [name for name in described(kind) if name in set(made.shown(values))]
        if len(shown) < len(described(kind)):
            made = kind(**{name: value for name, value in own.items() if name in shown})
        names = tuple(role.prefix + name for name in shown)
        out[role.name] = Chosen(role, choice, made, names)
        for name in names:
            given.pop(name, None)
        values |= out[role.name].values()
        wanted |= set(made.roles)
    return out


def _takes(setting: Setting, value: Any) -> bool:
    try:
        setting.check(setting.name, value)
    except SpecError:
        return False
    return True


def parts_with(name: str) -> list[tuple[Role, str]]:
    """(role, choice) of every part that has a setting of this name, and the role whose choice it is."""
    out = []
    for role in ROLES.values():
        if role.table and role.name == name:
            return [(role, "")]
        out += [(role, choice) for choice in role.names() or [""] if name in role.settings(choice)]
    return out


def every_name() -> list[str]:
    """Every choice and every setting of every part."""
    names: dict[str, None] = {}
    for role in ROLES.values():
        names |= dict.fromkeys([role.name] if role.table else [])
        for choice in role.names() or [""]:
            names |= dict.fromkeys(role.settings(choice))
    return list(names)
