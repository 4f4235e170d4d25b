"""Sampling what is autoregressive: each position or feature computed once, against one full pass for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, bars_table, interleave, ratio, times_table

MODULE = "benchmarks.sampling"
#: Gated PixelCNN: grids of a batch, side, codes; the recipe's sizes otherwise.
GRIDS, SIDE, CODES = 64, 8, 128
#: MAF: features, layers, draws.
FEATURES, LAYERS, DRAWS = 64, 5, 1024
CACHED, NAIVE, DENSE = (
    "varflow, cached",
    "a pass of varflow's a position",
    "a pass of masked convolutions a position",
)
GRID_BARS = [Bar(CACHED, DENSE, 1 / 50, 1 / 100), Bar(CACHED, NAIVE, 1 / 50, 1 / 100)]


# -- Gated PixelCNN --------------------------------------------------------------------------------


def grids(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """A batch of grids, cached; one position of it, by full passes."""
    from varflow.core import random
    from varflow.priors import GatedPixelCNN

    torch.manual_seed(0)
    prior = GatedPixelCNN((SIDE, SIDE), CODES).eval()
    # A new prior is uniform; this one is not, so that a mistake would show.
    nn.init.normal_(prior.head[-1].weight, std=0.02)
    masked = masked_convolutions(prior)
    z = torch.randint(CODES, (GRIDS, SIDE, SIDE))
    with torch.no_grad():
        torch.testing.assert_close(masked(z), prior.logits(z), atol=1e-4, rtol=1e-4)
    numbers = {name: random.Stream(0) for name in (CACHED, NAIVE, DENSE)}

    def position(logits: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        """Every position costs the same: one pass over the whole grid, and a draw."""

        @torch.no_grad()
        def step() -> None:
            here = logits(z)[:, SIDE // 2, SIDE // 2]
            z[:, SIDE // 2, SIDE // 2] = torch.multinomial(here.softmax(-1), 1).squeeze(-1)

        return step

    def cached() -> None:
        with random.use(numbers[CACHED]):
            prior.sample((GRIDS,))

    return {CACHED: cached, NAIVE: position(prior.logits), DENSE: position(masked)}


def masked_convolutions(prior) -> Callable[[Tensor], Tensor]:  # type: ignore[no-untyped-def]
    """The same network as its scripts have it: k×k and 1×k convolutions whose masked taps are zeros."""

    def stacks(layer) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        vertical, left = layer.vertical, layer.horizontal
        rows = F.pad(vertical.weight, (0, 0, 0, vertical.kernel - vertical.rows))
        return rows, F.pad(left.weight, (0, 2 * left.side + 1 - left.taps))

    def normed(norm: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = norm(x.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)

    def one(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    def gate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)

    kernels = [tuple(kernel.detach() for kernel in stacks(layer)) for layer in prior.layers]

    def logits(z: Tensor) -> Tensor:
        v = prior.embed(z).permute(0, 3, 1, 2)
        h, skips = None, torch.zeros(())
        for layer, (rows, left) in zip(prior.layers, kernels, strict=True):
            side = rows.shape[-1] // 2
            above = F.conv2d(
                normed(layer.norm_vertical, v), rows, layer.vertical.bias, padding=side
            )
            seen = v if h is None else normed(layer.norm_horizontal, h)
            inner = F.conv2d(seen, left, layer.horizontal.bias, padding=(0, side))
            inner = inner + one(layer.across, F.pad(above, (0, 0, 1, -1)))
            step, skip = one(layer.out, gate(inner)).chunk(2, 1)
            h, v, skips = step if h is None else h + step, gate(above), skips + skip
        first, last = prior.head[1], prior.head[3]
        return one(last, F.relu(one(first, F.relu(skips)))).permute(0, 2, 3, 1)

    return logits


# -- MAF -------------------------------------------------------------------------------------------


def flows(hidden: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """A draw of 1,024 points from each library's MAF, of the same sizes."""
    import normflows
    import zuko

    from varflow.core import random
    from varflow.priors import flow_prior

    torch.manual_seed(0)
    prior = flow_prior(FEATURES, "maf", length=LAYERS, hidden=hidden)
    for weight in prior.parameters():
        nn.init.normal_(weight, std=0.02)
    numbers = random.Stream(0)

    def ours() -> None:
        with random.use(numbers), torch.no_grad():
            prior.sample((DRAWS,))

    rival = zuko.flows.MAF(FEATURES, 0, transforms=LAYERS, hidden_features=hidden)

    def zukos() -> None:
        with torch.no_grad():
            rival().sample((DRAWS,))

    made = {"varflow": ours, "zuko": zukos}
    if len(set(hidden)) == 1:
        # Its network is a first layer and blocks of one width; without residuals a block is one layer.
        sizes = {"num_blocks": len(hidden) - 1, "use_residual_blocks": False}
        # Its layers draw in parallel, as an IAF's; reversed they are a MAF's, whose density is the parallel way.
        layer = partial(normflows.flows.MaskedAffineAutoregressive, FEATURES, hidden[0], **sizes)
        layers = [normflows.flows.Reverse(layer()) for _ in range(LAYERS)]
        base = normflows.distributions.DiagGaussian(FEATURES, trainable=False)
        flow = normflows.NormalizingFlow(base, layers)

        def normflows_() -> None:
            with torch.no_grad():
                flow.sample(DRAWS)

        made["normflows"] = normflows_
    made.update(pyros(hidden))
    return made


def pyros(hidden: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """pyro's, where it is installed."""
    try:
        from pyro.distributions import TransformedDistribution
        from pyro.distributions.transforms import affine_autoregressive
    except ImportError:
        return {}
    layers = [affine_autoregressive(FEATURES, list(hidden)) for _ in range(LAYERS)]
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(FEATURES), torch.ones(FEATURES)), 1)
    # As a MAF: its density is the parallel direction.
    flow = TransformedDistribution(base, [layer.inv for layer in layers])

    def draw() -> None:
        with torch.no_grad():
            flow.sample((DRAWS,))

    return {"pyro": draw}


# -- both ------------------------------------------------------------------------------------------


def contest(
    made: dict[str, Callable[[], object]], blocks: int, each: int, options: argparse.Namespace
) -> Times:
    for step in made.values():
        for _ in range(options.warmup):
            step()
    contestants = [Contestant(name, step) for name, step in made.items()]
    return interleave(contestants, blocks, each, settle=1, clock=options.clock)


def part(times: Times, bars: list[Bar], against: str) -> list[str]:
    rows = [[*row, str(ratio(times[row[0]], times[against]))] for row in times_table(times)]
    checks = bars_table(times, bars)
    for check, bar in zip(checks, bars, strict=True):
        faster = ratio(times[bar.theirs], times[bar.ours])
        check[1:4] = [
            f"{faster.value:.0f} [{faster.low:.0f}, {faster.high:.0f}]",
            f"{1 / bar.must:.0f}",
        ]
        check[3:3] = ["–" if bar.aim is None else f"{1 / bar.aim:.0f}"]
    return [
        report.table(["contestant", "ms", "p10–p90", f"against {against} [95 %]"], rows),
        report.table(["so many times faster", "found [95 %]", "at least", "aim", ""], checks),
    ]


def main() -> None:
    parser = report.parser(__doc__ or "", blocks=10, steps=1, warmup=1)
    parser.add_argument("--only", choices=("grids", "flows"), help="one of the two questions")
    options = parser.parse_args()
    report.start(options)
    parts: list[str] = []
    if options.only != "flows":
        times = contest(grids(options), options.blocks, options.steps, options)
        whole = {
            name: [each * (1 if name == CACHED else SIDE**2) for each in found]
            for name, found in times.items()
        }
        parts += [
            f"## Gated PixelCNN, {GRIDS} grids of {SIDE}×{SIDE}",
            f"{CODES} codes, 13 layers behind the first, 256 channels, 7×7, float32; the same logits for all. The "
            f"two naive loops are timed at one position, which is one pass over the whole grid and costs the same at "
            f"each of the {SIDE**2}; the figures are that, {SIDE**2} times. varflow's own pass leaves out the "
            "taps that a mask would zero, which the usual masked convolutions multiply by zero.",
            *part(whole, GRID_BARS, CACHED),
        ]
    if options.only != "grids":
        for hidden in ((64, 64), (512, 512)):
            times = contest(flows(hidden), 2 * options.blocks, options.steps, options)
            rivals = [name for name in times if name != "varflow"]
            missing = "" if "pyro" in times else " pyro is not installed here and was left out."
            parts += [
                f"## MAF, {DRAWS:,} draws",
                f"{FEATURES} features, {LAYERS} layers, hidden {'-'.join(map(str, hidden))}, float32.{missing}",
                *part(times, [Bar("varflow", name, 1 / 10, 1 / 20) for name in rivals], "varflow"),
            ]
    report.write(MODULE, options, "Sampling, one position at a time", parts)


if __name__ == "__main__":
    main()
