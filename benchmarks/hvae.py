"""Hamiltonian posterior, 15 leapfrog steps: a training step of the dense VAE against other gradients of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, bars_table, interleave, ratio, times_table

MODULE = "benchmarks.hvae"
LEAPFROG = 15
DOUBLE = "2K gradients, double backward"
BARS = [Bar("varflow", DOUBLE, 0.60, 0.45), Bar("varflow", "pythae", 1.20, 0.90)]


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    from benchmarks import dense

    dataset = dense.mnist()
    settings = {"leapfrog": LEAPFROG, "tempering": "fixed", "initial_step": 0.01, "activation": "relu"}
    steps: dict[str, dense.Step] = {
        "varflow": dense.varflow_loop(dataset, options, **settings).update,
        "varflow, recorded gradients": recorded(dense.varflow_loop(dataset, options, **settings)),
        DOUBLE: twice(dense.Batches(dataset)),
        "pythae": pythae(dense.Batches(dataset)),
    }
    dense.train(steps, options.warmup)
    contestants = [Contestant(name, step) for name, step in steps.items()]
    return interleave(contestants, options.blocks, options.steps, settle=1, clock=options.clock)


def recorded(loop) -> Callable[[], object]:  # type: ignore[no-untyped-def]
    """The same loop where the decoder does not write its vector-Jacobian product, so that it is recorded."""
    loop.model.likelihood.value_and_gradient = lambda x, z: None
    step: Callable[[], object] = loop.update
    return step


def twice(batches) -> Callable[[], object]:  # type: ignore[no-untyped-def]
    """The usual way: each half step computes a gradient of its own with ``create_graph``."""
    from benchmarks import dense

    vae = dense.Script([])
    logits_of = vae.decoder
    log_step = torch.nn.Parameter(torch.full((), 0.01).log())
    log_excess = torch.nn.Parameter(torch.tensor(0.5).log())

    def log_joint(z: Tensor, x: Tensor) -> Tensor:
        fit = F.binary_cross_entropy_with_logits(logits_of(z), x, reduction="none").sum(1)
        return -fit - 0.5 * z.square().sum(1)

    def force(z: Tensor, x: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(log_joint(z, x).sum(), z, create_graph=True)
        return found

    def loss(x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1)
        hidden = vae.encoder(x)
        mean, log_var = vae.mean(hidden), vae.log_var(hidden)
        noise, gamma = torch.randn_like(mean), torch.randn_like(mean)
        z = mean + (0.5 * log_var).exp() * noise
        eps, hottest = log_step.exp(), 1 + log_excess.exp()
        before, rho = hottest, hottest * gamma
        for k in range(1, LEAPFROG + 1):
            rho = rho + 0.5 * eps * force(z, x)
            z = z + eps * rho
            rho = rho + 0.5 * eps * force(z, x)
            after = 1 + (hottest - 1) * (1 - (k / LEAPFROG) ** 2)
            before, rho = after, rho * after / before
        log_q = -0.5 * (noise.square() + log_var + gamma.square()).sum(1) + 0.5 * rho.square().sum(1)
        return (log_q - log_joint(z, x)).mean()

    vae.step, vae.excess = log_step, log_excess
    return dense.rival(vae, loss, batches)


def pythae(batches) -> Callable[[], object]:  # type: ignore[no-untyped-def]
    """pythae's HVAE with the same networks; it differentiates the trajectory to first order only."""
    import logging
    import warnings

    from benchmarks import dense

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from pythae.models import HVAE, HVAEConfig

    parts = dense.pythae_model(batches)[1]

    class Logits(torch.nn.Module):
        """The decoder without its last sigmoid: this model of pythae reads logits."""

        def __init__(self, decoder: torch.nn.Module) -> None:
            super().__init__()
            self.body = decoder.body[:-1]

        def forward(self, z: Tensor):  # type: ignore[no-untyped-def]
            from pythae.models.base.base_utils import ModelOutput

            return ModelOutput(reconstruction=self.body(z).reshape(-1, 1, 28, 28))

    settings = {"input_dim": (1, 28, 28), "latent_dim": dense.LATENT, "reconstruction_loss": "bce"}
    learned = {"learn_eps_lf": True, "learn_beta_zero": True}
    config = HVAEConfig(**settings, n_lf=LEAPFROG, eps_lf=0.01, beta_zero=0.44, **learned)
    model = HVAE(config, parts.encoder)
    model.decoder = Logits(parts.decoder)
    return dense.rival(model, lambda x: model({"data": x}).loss, batches)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=15, steps=4, warmup=40).parse_args()
    if options.json is not None:
        report.both_ways(MODULE, options, measure)
        return
    times = measure(options)
    rows = [[*row, str(ratio(times[row[0]], times[DOUBLE]))] for row in times_table(times)]
    head = ["contestant", "ms per step", "p10–p90", f"against {DOUBLE} [95 %]"]
    parts = [
        f"Dense VAE 784-400-400-40, relu, K = {LEAPFROG} leapfrog steps with quadratic tempering, dynamically "
        "binarized MNIST, batch 128, float32, Adam 1e-3. A step is data → loss → backward → update. pythae's "
        "trajectory is differentiated to first order only, so its parameters' gradient is another one.",
        report.table(head, rows),
        report.table(["ratio of medians", "found [95 %]", "at most", "aim", ""], bars_table(times, BARS)),
    ]
    report.write(MODULE, options, "Hamiltonian posterior, 15 leapfrog steps", parts)


if __name__ == "__main__":
    main()
