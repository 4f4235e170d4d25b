"""Discrete codes: the quantizer and a VQ-VAE's training step, against pythae's and the broadcast form."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import report
from benchmarks.timing import (
    Bar,
    Contestant,
    Times,
    Worker,
    bars_table,
    interleave,
    ratio,
    serve,
    times_table,
)

MODULE = "benchmarks.codes"
BATCH, SIDE, CODES, FEATURES = 128, 8, 128, 256
BROADCAST = "broadcast differences"
QUANTIZER_BARS = [Bar("varflow", "pythae", 0.43, 0.30), Bar("varflow", BROADCAST, 0.02)]
STEP_BARS = [Bar("varflow", "pythae", 1.1, 0.9), Bar("varflow, bf16", "pythae", 0.40, 0.30)]

Step = Callable[[], object]
#: Vectors with the features last → (codewords with the features last, their losses, codes).
Quantize = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


# -- the quantizer alone ---------------------------------------------------------------------------


def quantizers() -> dict[str, Step]:
    """Forward and backward of 8,192 vectors, the same vectors, codebook and incoming gradient for each."""
    torch.manual_seed(0)
    table = torch.randn(CODES, FEATURES)
    # As an encoder in channels-last layout leaves them: the friendliest layout for all three.
    vectors = torch.randn(BATCH, SIDE, SIDE, FEATURES, requires_grad=True)
    incoming = torch.randn(BATCH, SIDE, SIDE, FEATURES)
    made = {"varflow": ours(table), "pythae": theirs(table), BROADCAST: broadcast(table)}
    expected = torch.cdist(vectors.detach().flatten(0, 2), table).argmin(1)
    for name, quantize in made.items():
        if not torch.equal(quantize(vectors)[2].flatten(), expected):
            raise RuntimeError(f"{name}: its codes are not the nearest ones")

    def both(quantize: Quantize) -> Step:
        def step() -> None:
            vectors.grad = None
            words, losses, _ = quantize(vectors)
            torch.autograd.backward([words, losses], [incoming, torch.ones_like(losses)])

        return step

    return {name: both(quantize) for name, quantize in made.items()}


def ours(table: Tensor) -> Quantize:
    """varflow's, as its recipe trains it: with counts, and restarts looked at."""
    from varflow.posteriors import Quantizer

    class Given(nn.Module):
        """An encoder that has nothing to do."""

        out_shape = (FEATURES, SIDE, SIDE)

        def forward(self, x: Tensor) -> Tensor:
            return x

    posterior = Quantizer(Given(), CODES, FEATURES)
    posterior.codebook.weight.data.copy_(table)

    def quantize(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior.codebook.weight.grad = None
        q = posterior(vectors.permute(0, 3, 1, 2))
        return q.z.permute(0, 2, 3, 1), sum(q.auxiliary.values(), torch.zeros(())), q.codes

    return quantize


def theirs(table: Tensor) -> Quantize:
    """pythae's, through its own class."""
    quiet()
    from pythae.models import VQVAEConfig
    from pythae.models.vq_vae.vq_vae_utils import Quantizer

    config = VQVAEConfig(input_dim=(3, 32, 32), latent_dim=FEATURES, num_embeddings=CODES)
    config.embedding_dim = FEATURES
    quantizer = Quantizer(config)
    quantizer.embeddings.weight.data.copy_(table)

    def quantize(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantizer.embeddings.weight.grad = None
        out = quantizer(vectors)
        return out.quantized_vector.permute(0, 2, 3, 1), out.loss, out.quantized_indices

    return quantize


def broadcast(table: Tensor) -> Quantize:
    """All N×K×D differences at once, as scripts write it. The search keeps no graph, which favours it."""
    words = nn.Parameter(table.clone())

    def quantize(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words.grad = None
        flat = vectors.reshape(-1, FEATURES)
        with torch.no_grad():
            codes = (flat.unsqueeze(1) - words).square().sum(-1).argmin(1)
        chosen = words[codes].reshape_as(vectors)
        losses = F.mse_loss(chosen, vectors.detach()) + 0.25 * F.mse_loss(vectors, chosen.detach())
        return vectors + (chosen - vectors).detach(), losses, codes

    return quantize


def largest(step: Step) -> float:
    """MiB of the largest tensor that a step makes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        step()
    return float(max(event.self_cpu_memory_usage for event in measured.events())) / 2**20


# -- a training step -------------------------------------------------------------------------------


#: pythae's, by the normalization of its networks.
RIVALS = {"pythae": "group", "pythae, batch norm": "batch"}


def steps(options: argparse.Namespace) -> list[Contestant]:
    """A training step of each on CIFAR-10: data → loss → backward → update.

    pythae's are in processes of their own: varflow tells the memory allocator of its process to keep what is freed.
    """
    from varflow.data import load

    command = [sys.executable, "-m", MODULE, "--threads", str(options.threads), "--rival"]
    workers = {name: Worker([*command, normalization]) for name, normalization in RIVALS.items()}
    dataset = load("cifar10", protocol="symmetric")
    return [
        Contestant("varflow", varflow_step(dataset, options, "float32")),
        Contestant("varflow, bf16", varflow_step(dataset, options, "bf16")),
        *(Contestant(name, block=worker) for name, worker in workers.items()),
    ]


def rival(options: argparse.Namespace) -> None:
    """What a worker does."""
    began = time.perf_counter()
    from benchmarks import dense
    from varflow.data import load

    batches = dense.Batches(load("cifar10", protocol="symmetric"))
    serve(pythae_step(batches, options.rival), began)


def varflow_step(dataset: Any, options: argparse.Namespace, precision: str) -> Step:
    """The update of the loop that ``varflow fit vq-vae`` runs."""
    from varflow.runs.assemble import build
    from varflow.runs.folder import Memory
    from varflow.settings import recipes
    from varflow.training.engine import Engine
    from varflow.training.loop import Loop
    from varflow.training.progress import Progress

    spec = recipes.find("vq-vae").spec.replace(
        threads=options.threads, device="cpu", precision=precision, steps=10**6, epochs=None
    )
    spec.validate()
    engine = Engine.start(spec.training)
    loop = Loop(build(spec, dataset), dataset, spec, engine, Memory(), Progress(0, quiet=True))
    loop.model.train()
    return loop.update


def pythae_step(batches: Callable[[], Tensor], normalization: str) -> Step:
    """pythae's VQVAE with networks of the same layers, written as its users write them."""
    quiet()
    from pythae.models import VQVAE, VQVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    from benchmarks import dense

    def norm() -> nn.Module:
        return nn.BatchNorm2d(FEATURES) if normalization == "batch" else nn.GroupNorm(8, FEATURES)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
            self.body = nn.Sequential(
                norm(), nn.ReLU(), wide, norm(), nn.ReLU(), nn.Conv2d(FEATURES, FEATURES, 1)
            )

        def forward(self, h: Tensor) -> Tensor:
            return h + self.body(h)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            first, second = nn.Conv2d(3, FEATURES, 4, 2, 1), nn.Conv2d(FEATURES, FEATURES, 4, 2, 1)
            self.body = nn.Sequential(first, norm(), nn.ReLU(), second, Block(), Block())

        def forward(self, x: Tensor) -> ModelOutput:
            return ModelOutput(embedding=self.body(x))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            first = nn.ConvTranspose2d(FEATURES, FEATURES, 4, 2, 1)
            last = nn.ConvTranspose2d(FEATURES, 3, 4, 2, 1)
            self.body = nn.Sequential(
                Block(), Block(), norm(), nn.ReLU(), first, norm(), nn.ReLU(), last
            )

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.body(z))

    config = VQVAEConfig(input_dim=(3, 32, 32), latent_dim=FEATURES, num_embeddings=CODES)
    model = VQVAE(config, Encoder(), Decoder())
    return dense.rival(model, lambda x: model({"data": x}).loss, batches)  # type: ignore[arg-type]


def quiet() -> None:
    """pythae warns about a missing optional package at its import, and at each model it builds."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def contest(
    contestants: list[Contestant], blocks: int, each: int, options: argparse.Namespace
) -> Times:
    for one in contestants:
        if one.block is not None:
            one.block(options.warmup)
        for _ in range(options.warmup if one.step is not None else 0):
            one.step()
    return interleave(contestants, blocks, each, settle=1, clock=options.clock)


def part(times: Times, bars: list[Bar], more: dict[str, str] | None = None) -> list[str]:
    rows = [[*row, str(ratio(times[row[0]], times["pythae"]))] for row in times_table(times)]
    head = ["contestant", "ms", "p10–p90", "against pythae [95 %]"]
    if more is not None:
        head, rows = [*head, "largest tensor, MiB"], [[*row, more[row[0]]] for row in rows]
    # Two digits would round the smallest of the bars.
    checks = bars_table(times, bars)
    for check, bar in zip(checks, bars, strict=True):
        found = ratio(times[bar.ours], times[bar.theirs])
        check[1] = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    bar_head = ["ratio of medians", "found [95 %]", "at most", "aim", ""]
    return [report.table(head, rows), report.table(bar_head, checks)]


def main() -> None:
    parser = report.parser(__doc__ or "", blocks=12, steps=2, warmup=3)
    parser.add_argument("--only", choices=("quantizer", "step"), help="one of the two questions")
    parser.add_argument("--rival", choices=tuple(RIVALS.values()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    report.start(options)
    if options.rival:
        return rival(options)
    parts = []
    if options.only != "step":
        made = quantizers()
        sizes = {name: f"{largest(step):,.1f}" for name, step in made.items()}
        contestants = [Contestant(name, step) for name, step in made.items()]
        times = contest(contestants, 2 * options.blocks, options.steps, options)
        parts += [
            "## Quantizer, forward and backward",
            f"{BATCH * SIDE**2:,} vectors of {FEATURES} features, {CODES} codes, float32, features side by side in "
            "memory; the same codes for all. varflow's counts its codes and looks for dead ones.",
            *part(times, QUANTIZER_BARS, sizes),
        ]
    if options.only != "quantizer":
        parts += [
            "## VQ-VAE, a training step",
            f"CIFAR-10, batch {BATCH}, two halvings, two residual blocks a side, {FEATURES} channels, group norm "
            "(the last rival: batch norm), Adam 1e-3: data → loss → backward → update. pythae's steps are "
            "float32, in processes of their own.",
            *part(contest(steps(options), options.blocks, 1, options), STEP_BARS),
        ]
    report.write(MODULE, options, "Discrete codes", parts)


if __name__ == "__main__":
    main()
