"""The contestants of the dense VAE 784-400-400-40: varflow, its rivals, and the floor of its products.

Every contestant trains on the same batches: gathered and binarized by varflow's data room, from a
uint8 tensor in memory, whatever loader the rival would use itself.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varflow.core import random
from varflow.data import load
from varflow.data.dataset import Dataset
from varflow.runs.assemble import build
from varflow.runs.folder import Memory
from varflow.settings.spec import RunSpec
from varflow.training.engine import Engine
from varflow.training.loop import Loop
from varflow.training.progress import Progress

PIXELS, HIDDEN, LATENT, BATCH, LENGTH = 784, 400, 40, 128, 16

Step = Callable[[], object]


def mnist() -> Dataset:
    """Dynamically binarized MNIST, from VARFLOW_DATA."""
    return load("mnist", protocol="dynamic")


def varflow_loop(dataset: Dataset, options: argparse.Namespace, compiled: bool = False, **settings: object) -> Loop:
    """A :class:`Loop` as ``varflow.fit`` builds it."""
    usual = {
        "hidden": HIDDEN, "layers": 2, "latent": LATENT, "batch": BATCH, "lr": 1e-3, "steps": 10**6,
        "compile": compiled, "threads": options.threads, "device": "cpu",
    }  # fmt: skip
    spec = RunSpec().preset(length=LENGTH).replace(**{**usual, **settings})
    spec.validate()
    engine = Engine.start(spec.training)
    # The engine flushes denormals in this thread, whatever was asked for; the other threads exist already.
    torch.set_flush_denormal(not options.keep_denormals)
    loop = Loop(build(spec, dataset), dataset, spec, engine, Memory(), Progress(0, quiet=True))
    loop.model.train()
    return loop


def train(steps: dict[str, Step], count: int) -> None:
    """``count`` steps of each, one contestant after the other."""
    for step in steps.values():
        for _ in range(count):
            step()


class Batches:
    """The batches of a rival: those that varflow's loop would take, drawn the same way."""

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.dataset, self.seed, self.step = dataset, seed, 0
        self.per_epoch = dataset.sizes["train"] // BATCH

    def __call__(self) -> Tensor:
        epoch, position = divmod(self.step, self.per_epoch)
        if position == 0:
            source = random.generator(self.seed, "shuffle", epoch)
            self.order = torch.randperm(self.dataset.sizes["train"], generator=source)
        index = self.order[position * BATCH : (position + 1) * BATCH]
        with random.stream(self.seed, self.step):
            x = self.dataset.batch("train", index).x
        self.step += 1
        return x


def rival(model: nn.Module, loss: Callable[[Tensor], Tensor], batches: Batches, fused: bool = False) -> Step:
    """An ordinary training step with torch's Adam: the default one, as rivals' examples have it, or the fused one."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused or None)
    model.train()

    def step() -> Tensor:
        value = loss(batches())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value

    return step


def pythae(batches: Batches, flows: Sequence[str] = ()) -> Step:
    """A training step of :func:`pythae_model`."""
    return pythae_model(batches, flows)[0]


def pythae_model(batches: Batches, flows: Sequence[str] = ()) -> tuple[Step, Any]:
    """pythae's VAE, or VAE_LinNF with ``flows``, with networks of the sizes above: its step, and itself."""
    # Importing it warns about a missing optional package, and so does each model it builds.
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from pythae.models import VAE, VAE_LinNF, VAE_LinNF_Config, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mean, self.log_var = _body(PIXELS), nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, x: Tensor) -> ModelOutput:
            hidden = self.body(x.reshape(x.shape[0], -1))
            return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(_body(LATENT), nn.Linear(HIDDEN, PIXELS), nn.Sigmoid())

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.body(z).reshape(-1, 1, 28, 28))

    shared = {"input_dim": (1, 28, 28), "latent_dim": LATENT, "reconstruction_loss": "bce"}
    if flows:
        model = VAE_LinNF(VAE_LinNF_Config(**shared, flows=list(flows)), Encoder(), Decoder())
    else:
        model = VAE(VAEConfig(**shared), Encoder(), Decoder())
    return rival(model, lambda x: model({"data": x}).loss, batches), model


class Script(nn.Module):
    """A VAE as the flow-VAE scripts write it: a module for each flow step, each with its own heads.

    The scripts' amortized planar flow, with their one mistake put right (the prior is charged at
    z_K), the usual direct formulas, and no work that the result does not need.
    """

    def __init__(self, steps: list[nn.Module], amortized: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder = _body(PIXELS), nn.Sequential(_body(LATENT), nn.Linear(HIDDEN, PIXELS))
        self.mean, self.log_var = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.mix = nn.Linear(2 * LATENT, LATENT) if amortized else None
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        hidden = self.encoder(x)
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        noise = torch.randn_like(mean)
        z = mean + (0.5 * log_var).exp() * noise
        log_q = -0.5 * (noise.square() + log_var).sum(1)
        context = () if self.mix is None else (self.mix(torch.cat([mean, log_var], 1)),)
        for step in self.steps:
            z, ladj = step(z, *context)
            log_q = log_q - ladj
        kl = log_q + 0.5 * z.square().sum(1)
        logits = self.decoder(z)
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x) + kl.mean()


class ScriptPlanar(nn.Module):
    """One amortized planar step: three linear heads, then z + û tanh(wᵀz + b)."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.w = nn.Linear(LATENT, LATENT), nn.Linear(LATENT, LATENT)
        self.b = nn.Linear(LATENT, 1)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        u, w, b = self.u(context), self.w(context), self.b(context)
        inner = (w * u).sum(1, keepdim=True)
        u = u + (F.softplus(inner) - 1 - inner) * w / w.square().sum(1, keepdim=True)
        h = torch.tanh((w * z).sum(1, keepdim=True) + b)
        ladj = torch.log(1 + (1 - h.square()) * (w * u).sum(1, keepdim=True))
        return z + u * h, ladj.squeeze(1)


def script(batches: Batches, steps: list[nn.Module], amortized: bool = False, fused: bool = False) -> Step:
    model = Script(steps, amortized)
    return rival(model, model, batches, fused)


def normflows_planar(batches: Batches) -> Step:
    """The same script around the planar layers of normflows."""
    from normflows.flows import Planar

    return script(batches, [Planar((LATENT,)) for _ in range(LENGTH)])


class Amortized(nn.Module):
    """The same VAE around a posterior of another library: what the encoder found → (z, log q(z|x))."""

    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = _body(PIXELS), nn.Sequential(_body(LATENT), nn.Linear(HIDDEN, PIXELS))
        self.posterior = posterior

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        z, log_q = self.posterior(self.encoder(x))
        log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        logits = self.decoder(z)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        return reconstruction + (log_q - log_prior).mean()


#: Widths of the networks inside varflow's flows over 40 latents, which rivals get as well.
IAF_HIDDEN, NICE_HIDDEN = (8 * LATENT, 8 * LATENT), (5 * LATENT, 5 * LATENT)


class ZukoPosterior(nn.Module):
    """zuko's distribution of a Gaussian behind transformations whose context is the encoder's features."""

    def __init__(self, flow: str, length: int) -> None:
        super().__init__()
        import zuko

        self.moments = nn.Linear(HIDDEN, 2 * LATENT)
        if flow == "iaf":
            # Drawn in one pass each: the inverses of the layers of its MAF, with their alternating orders.
            maf = zuko.flows.MAF(LATENT, HIDDEN, transforms=length, hidden_features=IAF_HIDDEN)
            self.layers = nn.ModuleList(layer.inv for layer in maf.transform.transforms)
        else:
            univariate = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
            layers = zuko.flows.NICE(LATENT, HIDDEN, transforms=length, hidden_features=NICE_HIDDEN, **univariate)
            self.layers = layers.transform.transforms

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        from zuko.distributions import DiagNormal, NormalizingFlow
        from zuko.transforms import ComposedTransform

        mean, log_scale = self.moments(hidden).chunk(2, 1)
        through = ComposedTransform(*(layer(hidden) for layer in self.layers))
        z, log_q = NormalizingFlow(through, DiagNormal(mean, log_scale.exp())).rsample_and_log_prob()
        return z, log_q


class NormflowsPosterior(nn.Module):
    """normflows' conditional flow, whose context is the encoder's features."""

    def __init__(self, flow: str, length: int) -> None:
        super().__init__()
        import normflows

        layers: list[nn.Module] = []
        for _ in range(length):
            if flow == "iaf":
                layers += [_normflows_iaf(), normflows.flows.Permute(LATENT)]
            else:
                layers += [_normflows_additive(), normflows.flows.Permute(LATENT, "swap")]
        base = normflows.distributions.base.ConditionalDiagGaussian(LATENT, nn.Linear(HIDDEN, 2 * LATENT))
        self.flow = normflows.ConditionalNormalizingFlow(base, layers)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = self.flow.sample(len(hidden), context=hidden)
        return z, log_q


def _normflows_iaf() -> nn.Module:
    """normflows' autoregressive step with a context in the first layer of its network, as the others have it.

    Its own networks take one in residual blocks alone, which have twice the layers and a gate.
    """
    import normflows

    class Made(nn.Module):
        def __init__(self, plain: Any) -> None:
            super().__init__()
            self.plain, self.context = plain, nn.Linear(HIDDEN, IAF_HIDDEN[0])

        def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
            outputs: Tensor = self.plain.initial_layer(inputs) + self.context(context)
            for block in self.plain.blocks:
                outputs = block(outputs)
            outputs = self.plain.final_layer(outputs)
            return outputs

    # A first layer and blocks of one width; without residuals a block is one layer.
    sizes = {"num_blocks": len(IAF_HIDDEN) - 1, "use_residual_blocks": False}
    step = normflows.flows.MaskedAffineAutoregressive(LATENT, IAF_HIDDEN[0], **sizes)
    step.autoregressive_net = Made(step.autoregressive_net)
    made: nn.Module = step
    return made


def _normflows_additive() -> nn.Module:
    """normflows' additive coupling with a context, which its own block does not take: beside the half that stays."""
    import normflows

    class Additive(normflows.flows.Flow):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            widths = [LATENT // 2 + HIDDEN, *NICE_HIDDEN, LATENT // 2]
            self.coupling = normflows.flows.AffineCoupling(normflows.nets.MLP(widths, init_zeros=True), scale=False)

        def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
            kept, moved = z.chunk(2, 1)
            (_, moved), ladj = self.coupling([torch.cat([kept, context], 1), moved])
            return torch.cat([kept, moved], 1), ladj

    return Additive()


def amortized(batches: Batches, posterior: nn.Module, fused: bool = False) -> Step:
    model = Amortized(posterior)
    return rival(model, model, batches, fused)


def flow_products(flow: str, length: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of the products of an amortized IAF or of additive couplings, masks not made use of."""
    inputs, widths, outputs = (LATENT, IAF_HIDDEN, 2 * LATENT) if flow == "iaf" else (
        LATENT // 2, NICE_HIDDEN, LATENT // 2
    )  # fmt: skip
    layers = list(zip((inputs, *widths), (*widths, outputs), strict=True))
    return [(HIDDEN, length * widths[0]), *(length * layers)]


def floor(onednn: bool = False, more: Sequence[tuple[int, int]] = ()) -> Step:
    """The matrix products alone, forward and backward, of 784-400-400-80 and 40-400-400-784, and of ``more``.

    With torch's own products (MKL in the usual builds), or with oneDNN's.
    """
    sizes = [(PIXELS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * LATENT),
             (LATENT, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, PIXELS), *more]  # fmt: skip
    layers = []
    for number, (before, after) in enumerate(sizes):
        x, w, g = torch.randn(BATCH, before), torch.randn(after, before), torch.randn(BATCH, after)
        # The gradient of the pixels is not needed.
        dx = torch.empty_like(x) if number else None
        layers.append((x, w, g, torch.empty_like(g), torch.empty_like(w), dx))

    def plain() -> None:
        for x, w, _, y, _, _ in layers:
            torch.mm(x, w.t(), out=y)
        for x, w, g, _, dw, dx in layers:
            torch.mm(g.t(), x, out=dw)
            if dx is not None:
                torch.mm(g, w, out=dx)

    def other() -> None:
        product = torch.ops.mkldnn._linear_pointwise
        for x, w, *_ in layers:
            product(x, w, None, "none", [], "")
        for x, w, g, _, _, dx in layers:
            product(g.t(), x.t(), None, "none", [], "")
            if dx is not None:
                product(g, w.t(), None, "none", [], "")

    return other if onednn else plain


def _body(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
