"""What a run is: small frozen dataclasses, plain values only.

Nothing here imports torch, so the command line answers at once. Sizes that follow from the data
(picture shapes, feature counts) are never asked for. Every field name is unique across the groups,
so a command line flag and a keyword of :func:`varflow.fit` are the field's name alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from varflow.core.errors import RunError, SpecError, suggestion

#: Raised when a field changes its meaning; a spec of another version is refused by name.
SPEC_VERSION = 1

ACTIVATIONS = ("relu", "tanh", "softplus", "elu", "gelu", "silu")


@dataclass(frozen=True)
class DataSpec:
    """What is modelled."""

    data: str = "mnist"
    """A named data set (`varflow data` lists them), or a path to your own .npy, .npz, table or folder of pictures."""
    protocol: str = "auto"
    """How stored values become model inputs: dynamic, static, threshold, logit, uniform, symmetric, levels, grey,
    none, standardize, or auto."""
    data_dir: str | None = None
    """Folder of the named data sets; without it VARFLOW_DATA, then ~/.cache/varflow."""
    flip: bool | None = None
    """Horizontal flips in training; without it the data set's own default."""
    levels: int | None = None
    """Your own data: how many values a dimension takes; without it 256 for bytes, real numbers otherwise."""
    resize: int | None = None
    """A folder of pictures: the side of the square that each is brought to."""
    verify: bool = True
    """Compare the checksums of a named data set with the official ones."""
    train_limit: int | None = None
    """The first examples of the training split alone."""
    validation_limit: int | None = None
    """The first examples of the validation split alone."""


@dataclass(frozen=True)
class TargetSpec:
    """A density to infer instead of data: latents without a decoder."""

    target: str = "none"
    """none; a 2-D energy u1, u2, u3, u4; ring, mixture, banana, funnel; or gaussian-model: one global z behind
    a data set of Gaussian observations."""
    dimensions: int = 2
    """D of a target of any dimension."""
    observations: int = 10_000
    """gaussian-model: how many observations are simulated."""
    noise: Literal["diagonal", "full"] = "diagonal"
    """gaussian-model: noise covariance."""
    correlation: float = 0.9
    """gaussian-model: correlation of neighbouring dimensions of the noise where it is full."""
    batches: Literal["full", "minibatch", "separate"] = "full"
    """gaussian-model: all data by sufficient statistics; minibatches whose likelihood is scaled up to the
    whole; or every batch a complete data set, each paying its own KL."""
    data_seed: int = 0
    """gaussian-model, gaussian-1, gaussian-2, three-clusters: seed of the simulated data."""


@dataclass(frozen=True)
class NetworkSpec:
    """Encoder and decoder."""

    network: Literal["mlp", "conv", "strided", "grid"] = "mlp"
    """mlp: fully connected; conv: the residual convolutional pair; strided: plain strided convolutions; grid:
    pictures to grids of vectors and back, for a quantizer."""
    layers: int = 2
    """Hidden layers of each MLP."""
    hidden: int = 400
    """Units of each hidden layer."""
    activation: str = "relu"
    """Activation of mlp and strided: relu, tanh, softplus, elu, gelu, silu."""
    gated: bool = False
    """Gated hidden layers: Linear(x)·sigmoid(Linear(x))."""
    base: int = 32
    """Channels of the first convolution."""
    scales: int | None = None
    """Halvings of the picture; without it three, or as many as the picture allows (grid: two)."""
    blocks: int = 1
    """Residual blocks at each scale."""
    bottleneck: bool = False
    """Residual blocks 1-3-1 instead of 3-3."""
    weight_norm: bool = False
    """Weight-normalised convolutions."""
    normalization: Literal["none", "group", "layer", "batch"] = "group"
    """Normalisation of the convolutional networks; batch couples the examples of a batch."""
    channels: str = "16-32-32"
    """strided: channels after each halving of the picture."""
    up_channels: str | None = None
    """strided: channels of the decoder before each doubling; without it those of channels, backwards."""
    stem: int = 0
    """strided: channels of an encoder convolution before the first halving; 0 for none."""
    head: int = 0
    """strided: channels of the decoder after the last doubling, before its last convolution; 0 for none."""
    kernel: int = 5
    """strided: side of the convolutions' kernels, odd."""
    up: Literal["transposed", "nearest"] = "transposed"
    """strided: doublings by transposed convolutions, or by a convolution and copied pixels."""
    up_kernel: int | None = None
    """strided: side of the transposed convolutions' kernels; without it that of kernel."""
    dense: int = 450
    """strided: width of the fully connected layer between convolutions and latents; 0 for none."""


@dataclass(frozen=True)
class PriorSpec:
    """p(z)."""

    prior: str = "normal"
    """normal; a flow of its own: maf, iaf, coupling, nice, spline, planar, radial, sylvester, triangular; mixture;
    vamp. Over the codes of a quantizer: uniform-codes, pixelcnn, gated-pixelcnn."""
    prior_length: int = 5
    """Steps of a flow prior, residual blocks or gated layers of a prior over codes."""
    prior_hidden: int | None = None
    """Units of each hidden layer of a flow prior's networks, or before the logits of a prior over codes; without it
    the family's default."""
    prior_layers: int = 1
    """Hidden layers of a flow prior's networks, where prior_hidden says how wide they are."""
    components: int = 100
    """Components of a mixture, pseudo-inputs of a VampPrior."""
    prior_channels: int = 64
    """Channels of a prior over codes."""
    prior_kernel: int = 7
    """Kernel of a prior over codes, odd."""
    prior_embedding: int = 64
    """Features of an embedded code."""
    classes: int = 0
    """Condition a prior over codes on labels 0 … classes − 1; 0 for no labels."""


@dataclass(frozen=True)
class LikelihoodSpec:
    """p(x | z)."""

    likelihood: str = "auto"
    """bernoulli, gaussian; logistics, categorical: probabilities of levels; or auto: bernoulli for binary data,
    logistics for levels, gaussian otherwise; identity: no latents, the prior is fitted to the data themselves
    (density estimation)."""
    scale: str = "learned"
    """Scale of the gaussian: a number, or learned, per-dimension, decoder."""
    likelihood_components: int = 5
    """logistics: components of the mixture of each element."""
    initial_scale: float = 1.0
    """Where a learned or per-dimension scale of the gaussian starts."""
    grey: bool = False
    """Allow grey values under a Bernoulli: a pseudo-likelihood, not comparable with anything."""


@dataclass(frozen=True)
class PosteriorSpec:
    """q(z | x): a diagonal Gaussian, then a flow; or a vector quantizer."""

    posterior: Literal["gaussian", "quantizer"] = "gaussian"
    """gaussian, or quantizer: each vector of the encoder's grid becomes the nearest codeword."""
    latent: int = 20
    """D, the number of latent features."""
    flow: str = "none"
    """none, planar, radial, householder, sylvester, nice, additive, coupling, iaf, maf, affine, spline."""
    length: int = 8
    """Steps of the flow."""
    amortized: bool = False
    """Flow parameters computed from x, instead of being shared by all x."""
    context: Literal["features", "moments"] = "features"
    """What an amortized flow sees: the encoder's features, or a linear map of the base moments."""
    base_moments: Literal["learned", "fixed"] = "learned"
    """Base of the flow: a learned mean and scale (of x, where there is an encoder), or N(0, I)."""
    leapfrog: int = 0
    """Hamiltonian posterior: leapfrog steps after the flow; 0 for none."""
    tempering: Literal["none", "fixed", "free"] = "none"
    """Hamiltonian posterior: no tempering, the quadratic schedule, or a free factor for each step."""
    step_shape: Literal["scalar", "dimension", "step", "both"] = "scalar"
    """Hamiltonian posterior: one step size, one for each latent, for each leapfrog step, or for both."""
    step_bound: float = 0.5
    """Hamiltonian posterior: the largest step size."""
    initial_step: float = 0.05
    """Hamiltonian posterior: step size at the start."""
    initial_temperature: float = 1.5
    """Hamiltonian posterior: 1/√β₀ at the start."""
    extended_flow: str = "none"
    """Hamiltonian posterior: a flow after the last leapfrog step, on positions and momenta together."""
    extended_length: int = 5
    """Steps of that flow."""
    top_latent: int = 0
    """Latents of a second stochastic layer h₂ above the first: p(h₂) p(h₁|h₂) and q(h₁|x) q(h₂|h₁); 0 for none."""
    top_hidden: int = 100
    """Units of each of the two hidden layers between the stochastic layers."""


@dataclass(frozen=True)
class QuantizerSpec:
    """The codebook of a vector quantizer."""

    codes: int = 128
    """K, the number of codewords."""
    code_features: int = 256
    """D, the size of a codeword, and the channels of encoder and decoder."""
    codebook: Literal["learned", "average"] = "learned"
    """learned by a loss term, or moving averages of what each codeword stands for."""
    codebook_decay: float = 0.99
    """average: what a moving average keeps at each update."""
    codebook_weight: float = 1.0
    """Weight of the codebook and commitment terms, sums over the grid, against nats."""
    commitment: float = 0.25
    """Weight of the commitment term against the codebook term."""
    restarts: float = 0.05
    """A code used less than this share of the mean starts again at a vector of the batch; 0 for never."""
    kmeans: int = 0
    """Iterations of k-means on the first batch, where the codebook then starts; 0 for a random start."""


@dataclass(frozen=True)
class SecondStageSpec:
    """The prior over codes, fitted to the codes of a finished quantizer."""

    prior_epochs: float | None = 20.0
    """Budget of the second stage in passes over the training codes."""
    prior_steps: int | None = None
    """Budget of the second stage in updates, instead of prior_epochs."""
    prior_batch: int = 128
    """Grids of codes in a step of the second stage."""
    prior_optimizer: str = "adam"
    """Optimizer of the second stage: adam, adamw, adamax, rmsprop, sgd."""
    prior_lr: float = 1e-3
    """Learning rate of the second stage."""
    prior_weight_decay: float = 0.0
    """L2 penalty of the second stage."""
    prior_decay: Literal["none", "cosine", "linear"] = "none"
    """Learning rate over the second stage."""
    prior_clip: float | None = None
    """Largest norm of the gradient in the second stage; without it no clipping."""
    prior_patience: str | None = None
    """Stop the second stage when the validation codes' log p has not improved for so long; as patience."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """What is maximised."""

    objective: str = "elbo"
    """elbo; annealed: the log-joint's weight grows to 1; iwae: the importance-weighted bound of `samples`."""
    beta: float = 1.0
    """Weight of the KL term; anything but 1 trains something else than the ELBO."""
    warmup: str = "0 steps"
    """How long the weight of the KL term grows linearly from 0 to beta, e.g. "10 epochs" or "2000 steps"."""
    samples: int = 1
    """Posterior samples for each example in a training step."""
    control: bool = True
    """Subtract the control variate of mean zero from the KL term: the same objective with less noise."""
    free_bits: float = 0.0
    """elbo: nats that each latent may spend for free."""
    gradient: Literal["total", "path", "dreg"] = "total"
    """total derivative; path: without the score of q (elbo, annealed); dreg: doubly reparameterised (iwae)."""
    anneal: int = 10_000
    """annealed: updates until the log-joint has its full weight."""


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer, with all of torch's options."""

    optimizer: str = "adam"
    """adam, adamw, adamax, rmsprop, sgd."""
    lr: float = 1e-3
    """Learning rate."""
    beta1: float = 0.9
    """Adam, Adamax: decay of the first moment."""
    beta2: float = 0.999
    """Adam, Adamax: decay of the second moment."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """L2 penalty on all parameters (adamw: decoupled)."""
    gain_decay: float = 0.0
    """L2 penalty on the gains of weight-normalised layers alone."""
    amsgrad: bool = False
    """Adam: the AMSGrad variant."""
    momentum: float = 0.0
    """RMSprop, SGD: momentum."""
    alpha: float = 0.99
    """RMSprop: smoothing constant."""
    centered: bool = False
    """RMSprop: normalise by the centred second moment."""
    nesterov: bool = False
    """SGD: Nesterov momentum."""
    decay: Literal["none", "cosine", "linear", "stages"] = "none"
    """Learning rate over the run: constant; to zero along a cosine or a line; or eight stages of 1, 3, 9, … epochs,
    each at 10^(-1/7) of the rate before."""
    clip: float | None = None
    """Largest norm of the whole gradient; without it no clipping."""


@dataclass(frozen=True)
class TrainingSpec:
    """The loop and the machine."""

    batch: int = 128
    """Examples in a step; the last, incomplete batch of an epoch is left out."""
    epochs: float | None = 20.0
    """Budget in passes over the training split."""
    steps: int | None = None
    """Budget in updates, instead of epochs."""
    patience: str | None = None
    """Stop when the validation bound has not improved by more than its standard error for so long, a warm-up not
    counted: e.g. "5 epochs", "2000 steps", or auto: the longer of 10 epochs and 1000 steps."""
    keep: Literal["best", "last"] = "best"
    """Weights kept at the end: the best on the validation split, by more than the standard error, or the last."""
    validate_every: str = "auto"
    """Between two validations: e.g. "5 epochs", "200 steps", or auto: the longer of 1 epoch and 100 steps."""
    save_every: float = 5.0
    """Minutes between two resumable checkpoints; one is always written at the end."""
    seed: int = 0
    """Seed of everything random in the run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:0, ..."""
    precision: Literal["float32", "float64", "bf16"] = "float32"
    """Arithmetic; bf16 runs the networks in bfloat16, densities and reductions in float32."""
    compile: bool = False
    """Compile the training step with torch.compile: tens of seconds once, then faster steps."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    fits: int = 1
    """Targets: fits with the seeds seed, seed + 1, … (and data_seed, …) stacked and trained together."""


_GROUPS: dict[str, type] = {
    "data": DataSpec,
    "target": TargetSpec,
    "network": NetworkSpec,
    "prior": PriorSpec,
    "likelihood": LikelihoodSpec,
    "posterior": PosteriorSpec,
    "quantizer": QuantizerSpec,
    "objective": ObjectiveSpec,
    "optimizer": OptimizerSpec,
    "training": TrainingSpec,
    "second_stage": SecondStageSpec,
}


@dataclass(frozen=True)
class RunSpec:
    """A whole run, in the order data → parts → objective → loop."""

    data: DataSpec = field(default_factory=DataSpec)
    target: TargetSpec = field(default_factory=TargetSpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    prior: PriorSpec = field(default_factory=PriorSpec)
    likelihood: LikelihoodSpec = field(default_factory=LikelihoodSpec)
    posterior: PosteriorSpec = field(default_factory=PosteriorSpec)
    quantizer: QuantizerSpec = field(default_factory=QuantizerSpec)
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    second_stage: SecondStageSpec = field(default_factory=SecondStageSpec)

    def replace(self, **settings: Any) -> RunSpec:
        """A copy with fields changed by their plain names, e.g. ``replace(flow="iaf", lr=5e-4)``.

        Setting ``steps`` clears ``epochs`` and the other way round, and so for the second stage.

        Raises:
            SpecError: a name that no group has, with the nearest one.
        """
        for stage in ("", "prior_"):
            steps, epochs = stage + "steps", stage + "epochs"
            if steps in settings and epochs not in settings:
                settings[epochs] = None
            if epochs in settings and steps not in settings:
                settings[steps] = None
        changed: dict[str, Any] = {}
        for group, kind in _GROUPS.items():
            own = {f.name: settings.pop(f.name) for f in fields(kind) if f.name in settings}
            changed[group] = dataclasses.replace(getattr(self, group), **own)
        for name in settings:
            raise SpecError(f"{name}: unknown setting; {suggestion(name, setting_names())}")
        return RunSpec(**changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, with the version of the format."""
        return {"version": SPEC_VERSION, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(values: Any) -> RunSpec:
        """The spec that :meth:`to_dict` wrote.

        Raises:
            RunError: another version of the format, or a group or key that does not exist.
        """
        if not isinstance(values, dict):
            raise RunError(f"spec: was {type(values).__name__}; expected a JSON object of settings")
        version = values.get("version")
        if version != SPEC_VERSION:
            raise RunError(
                f"spec: format version {version!r}, this varflow reads version {SPEC_VERSION}; "
                "open the run with the varflow that wrote it, or fit again"
            )
        built: dict[str, Any] = {}
        for group, given in values.items():
            if group == "version":
                continue
            if group not in _GROUPS:
                raise RunError(f"spec: unknown group '{group}'; {suggestion(group, _GROUPS)}")
            if not isinstance(given, dict):
                raise RunError(f"spec: group '{group}' is not an object of settings")
            names = [f.name for f in fields(_GROUPS[group])]
            for key in given:
                if key not in names:
                    raise RunError(f"spec: unknown key '{group}.{key}'; {suggestion(key, names)}")
            built[group] = _GROUPS[group](**given)
        spec = RunSpec(**built)
        spec.validate()
        return spec

    def validate(self) -> None:
        """Check names against the tables of parts, and numbers against what is possible.

        Raises:
            SpecError: one sentence with the setting, its value, and the nearest valid choice.
        """
        from varflow.settings import checks as validation

        validation.check(self)

    def get(self, name: str) -> Any:
        """The value of a setting by its plain name."""
        return getattr(getattr(self, _home(name)), name)


def widths(name: str, value: str) -> tuple[int, ...]:
    """A setting such as "16-32-32" as numbers.

    Raises:
        SpecError: anything else.
    """
    parts = value.split("-")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SpecError(f"{name}: was '{value}'; use positive numbers with dashes between them, e.g. 16-32-32")
    return tuple(map(int, parts))


def setting_names() -> list[str]:
    """Every setting, in the order of the groups."""
    return [f.name for kind in _GROUPS.values() for f in fields(kind)]


def group_names(group: str) -> list[str]:
    """The settings of one group."""
    return [f.name for f in fields(_GROUPS[group])]


def setting_types() -> dict[str, Any]:
    """setting → its annotation, evaluated."""
    from typing import get_type_hints

    return {name: hint for kind in _GROUPS.values() for name, hint in get_type_hints(kind).items()}


def _home(name: str) -> str:
    for group, kind in _GROUPS.items():
        if name in {f.name for f in fields(kind)}:
            return group
    raise SpecError(f"{name}: unknown setting; {suggestion(name, setting_names())}")
