"""The settings of all parts with their types, as keywords. Written by tests/typing/generate.py."""

from __future__ import annotations

from typing import Literal, TypedDict

RecipeName = Literal[
    "dense", "dense-static", "dense-amortized", "conv-static", "conv-amortized", "planar-2d", "vae-2d",
    "nf-clusters", "vae-cifar", "vae-svhn", "vlae", "digits", "density", "table", "table-missing",
    "conditional-density", "vq-vae", "vq-pixelcnn", "vq-gated-pixelcnn", "energy", "energy-paper",
    "gaussian-model", "hvae", "hvae-mnist", "iwae-mnist", "iwae", "iwae-2", "gaussian-separate",
]


class Keywords(TypedDict, total=False):
    """Keywords of :func:`varflow.fit`; which of them a run has follows from its parts."""

    target: Literal[
        "none", "u1", "u2", "u3", "u4", "ring", "banana", "funnel", "mixture", "gaussian-model",
    ]
    dimensions: int
    observations: int
    noise: Literal["diagonal", "full"]
    correlation: float
    batches: Literal["full", "minibatch", "separate"]
    data_seed: int
    protocol: Literal[
        "auto", "dynamic", "static", "threshold", "logit", "uniform", "levels", "symmetric", "grey", "none",
        "standardize", "table", "columns",
    ]
    data_dir: str | None
    flip: bool | None
    levels: int | None
    resize: int | None
    verify: bool
    train_limit: int | None
    validation_limit: int | None
    decimal: Literal["auto", ".", ","]
    column: tuple[str, ...] | list[str]
    condition: tuple[str, ...] | list[str]
    condition_gaps: Literal["flag", "sum"]
    stream: Literal["auto", "always", "never"]
    permutation: Literal["auto", "stored", "computed"]
    workers: int | None
    likelihood: Literal[
        "auto", "identity", "bernoulli", "gaussian", "student-t", "logistics", "categorical", "columns",
    ]
    real_tails: Literal["auto", "gaussian", "student-t"]
    column_scale: Literal["learned", "decoded"]
    grey: bool
    likelihood_components: int
    scale: Literal["learned", "per-dimension", "decoder"] | float
    initial_scale: float
    freedom: Literal["learned"] | float
    network: Literal["mlp", "conv", "strided", "grid"]
    layers: int
    hidden: int
    activation: Literal["relu", "tanh", "softplus", "elu", "gelu", "silu"]
    gated: bool
    base: int
    scales: int | None
    blocks: int
    bottleneck: bool
    weight_norm: bool
    normalization: Literal["none", "group", "layer", "batch"]
    channels: str
    up_channels: str | None
    stem: int
    head: int
    kernel: int
    up: Literal["transposed", "nearest"]
    up_kernel: int | None
    dense: int
    posterior: Literal["gaussian", "quantizer"]
    latent: int
    amortized: bool
    context: Literal["features", "moments"]
    base_moments: Literal["learned", "fixed"]
    codes: int
    code_features: int
    codebook: Literal["learned", "average"]
    codebook_decay: float
    codebook_weight: float
    commitment: float
    restarts: float
    kmeans: int
    flow: Literal[
        "none", "planar", "radial", "householder", "sylvester", "nice", "additive", "coupling", "iaf", "maf",
        "affine", "triangular", "spline",
    ]
    length: int
    leapfrog: int
    tempering: Literal["none", "fixed", "free"]
    step_shape: Literal["scalar", "dimension", "step", "both"]
    step_bound: float
    initial_step: float
    initial_temperature: float
    extended_flow: Literal[
        "none", "planar", "radial", "householder", "sylvester", "nice", "additive", "coupling", "iaf", "maf",
        "affine", "triangular", "spline",
    ]
    extended_length: int
    top_latent: int
    top_hidden: int
    prior: Literal[
        "normal", "mixture", "vamp", "maf", "iaf", "coupling", "nice", "spline", "planar", "radial", "sylvester",
        "triangular", "uniform-codes", "pixelcnn", "gated-pixelcnn",
    ]
    components: int
    prior_length: int
    prior_base: Literal["normal", "gaussians"]
    prior_context: bool
    prior_defensive: float
    prior_hidden: int | None
    prior_layers: int
    prior_channels: int
    prior_kernel: int
    prior_embedding: int
    classes: int
    prior_epochs: float | None
    prior_steps: int | None
    prior_batch: int
    prior_patience: float | str | None
    prior_optimizer: Literal["adam", "adamw", "adamax", "rmsprop", "sgd"]
    prior_lr: float
    prior_weight_decay: float
    prior_gain_decay: float
    prior_decay: Literal["none", "cosine", "linear", "stages"]
    prior_clip: float | None
    prior_beta1: float
    prior_beta2: float
    prior_eps: float
    prior_amsgrad: bool
    prior_alpha: float
    prior_momentum: float
    prior_centered: bool
    prior_nesterov: bool
    objective: Literal["elbo", "annealed", "iwae"]
    samples: int
    beta: float
    warmup: float | str
    control: bool
    free_bits: float
    gradient: Literal["total", "path", "dreg"]
    anneal: int
    optimizer: Literal["adam", "adamw", "adamax", "rmsprop", "sgd"]
    lr: float
    weight_decay: float
    gain_decay: float
    decay: Literal["none", "cosine", "linear", "stages"]
    clip: float | None
    beta1: float
    beta2: float
    eps: float
    amsgrad: bool
    alpha: float
    momentum: float
    centered: bool
    nesterov: bool
    batch: int
    epochs: float | None
    steps: int | None
    patience: float | str | None
    keep: Literal["best", "last"]
    validate_every: float | str
    save_every: float
    seed: int
    device: str
    precision: Literal["float32", "float64", "bf16"]
    compile: bool
    graph: Literal["auto", "on", "off"]
    threads: int | None
    fits: int


class SpecKeywords(Keywords, total=False):
    """Keywords of :class:`varflow.RunSpec`."""

    data: str


class BudgetKeywords(TypedDict, total=False):
    """Keywords of :func:`varflow.resume`."""

    epochs: float | None
    steps: int | None
    prior_epochs: float | None
    prior_steps: int | None
