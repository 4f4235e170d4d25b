"""What the two processes of tests/training/test_ranks.py do: every case, then every error; started by torchrun."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import varflow as vf
from varflow.core import ranks
from varflow.core.errors import RunError, VarflowError
from varflow.networks.vq import VQDecoder, VQEncoder

LOOP = {
    "steps": 12, "batch": 32, "precision": "float64", "threads": 1, "quiet": True, "validate_every": "0.5 epochs",
}  # fmt: skip
SMALL = {**LOOP, "hidden": 16, "layers": 1, "latent": 3}
TAKEN = {**SMALL, "flow": "planar", "length": 2, "amortized": True, "keep": "last"}
TARGET = {"precision": "float64", "threads": 1, "quiet": True, "steps": 12}


def codes(decay: float | None) -> Any:
    """A VQ-VAE with group normalization on small random pictures; its codebook starts by k-means, and restarts."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(96, 1, 8, 8, generator=generator)
    torch.manual_seed(1)
    posterior = vf.posteriors.Quantizer(
        VQEncoder((1, 8, 8), 8, blocks=1, normalization="group"),
        16,
        8,
        decay,
        restarts=0.3,
        kmeans=3,
    )
    decoder = VQDecoder((1, 8, 8), 8, blocks=1, normalization="group")
    likelihood = vf.likelihoods.Gaussian(decoder, (1, 8, 8))
    model = vf.Model(vf.priors.UniformCodes(posterior.grid, 16), likelihood, posterior)
    settings = {"batch": 16, "steps": 10, "precision": "float64", "threads": 1, "quiet": True}
    return vf.fit(model, x, **settings)


def two_stages() -> Any:
    """The quantizer, the codes that rank 0 makes for both, and the prior over them."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(0, 256, (96, 1, 8, 8), generator=generator, dtype=torch.uint8)
    settings = {
        "codes": 6, "code_features": 4, "blocks": 1, "batch": 16, "steps": 6, "prior_channels": 4, "prior_length": 1,
        "prior_kernel": 3, "prior_hidden": 4, "prior_batch": 16, "prior_steps": 6, "precision": "float64",
        "protocol": "symmetric", "threads": 1, "quiet": True,
    }  # fmt: skip
    return vf.fit("vq-pixelcnn", x, **settings)


def digits(**settings: Any) -> Callable[[], Any]:
    small = vf.recipes.find("digits").spec.preset(hidden=16, layers=1, latent=3)
    return lambda: vf.fit(small, **{**LOOP, **settings})


def target(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: vf.fit(vf.recipes.find(name).spec.preset(length=2), **{**TARGET, **settings})


CASES: dict[str, Callable[[], Any]] = {
    "planar, amortized": digits(flow="planar", length=2, amortized=True),
    "float32": digits(flow="planar", length=2, precision="float32"),
    "path gradient": digits(
        flow="coupling", length=2, gradient="path", patience="0.25 epochs", steps=60, lr=0.1
    ),
    "importance-weighted": digits(objective="iwae", samples=4, gradient="dreg"),
    "free bits": digits(free_bits=0.3, lr=0.01, steps=30),
    "VampPrior, clipped": digits(prior="vamp", components=8, clip=1.0),
    "Hamiltonian": digits(leapfrog=2, tempering="free"),
    "logit, flipped": lambda: vf.fit(
        "digits", protocol="logit", flip=True, likelihood="gaussian", **SMALL
    ),
    "density": lambda: vf.fit("density", prior_length=1, **LOOP),
    "energy": target("energy"),
    "stacked fits, clipped": target("energy", fits=3, clip=2.0, samples=64),
    "Hamiltonian energy": target("energy", leapfrog=2, samples=32),
    "gaussian-model": target("gaussian-model", dimensions=3, observations=500),
    "gaussian-model, minibatches": target(
        "gaussian-model", dimensions=3, observations=500, batches="minibatch"
    ),
    "gaussian-model, Hamiltonian": target(
        "gaussian-model", dimensions=3, observations=500, leapfrog=2, flow="none", fits=2
    ),
    "codes, moving averages": lambda: codes(0.9),
    "codes, learned": lambda: codes(None),
    "codes, two stages": two_stages,
}


def huge() -> Any:
    """A table with numbers whose squares overflow in rows that rank 1 reads at step 0."""
    x = {split: torch.randn(64, 3) for split in ("train", "validation", "test")}
    x["train"][first_rows()[32:]] = 1e30
    return vf.fit("digits", x, **{**SMALL, "batch": 64, "protocol": "none", "precision": "float32"})


def first_rows() -> torch.Tensor:
    return torch.randperm(64, generator=vf.random.generator(0, "shuffle", 0))


class Breaks(vf.likelihoods.Bernoulli):
    """Raises on rank 1 in its third training step."""

    steps = 0

    def log_prob(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        self.steps += torch.is_grad_enabled()
        if self.steps == 3 and ranks.rank() == 1:
            raise RunError("the disk of rank 1 is full")
        return super().log_prob(x, z)


def breaks() -> Any:
    likelihood = Breaks(vf.networks.MLP(3, (1, 8, 8), hidden=(4,)), (1, 8, 8))
    return vf.fit("digits", parts={"likelihood": likelihood}, **SMALL)


ERRORS: dict[str, Callable[[], Any]] = {
    "rank 1 reads other data": lambda: vf.fit(
        "digits", torch.zeros(64 + 10 * ranks.rank(), 3), protocol="none", **SMALL
    ),
    "rank 1 has another seed": lambda: digits(seed=ranks.rank())(),
    "rank 1 has a wrong setting": lambda: digits(flow="none" if ranks.rank() == 0 else "plainar")(),
    "no even share": digits(batch=33),
    "batch statistics": digits(network="conv", base=4, normalization="batch"),
    "importance bound of a target": target("energy", objective="iwae"),
    "a folder that holds a run": lambda: vf.fit("digits", out=sys.argv[1] + "/run", **SMALL),
    "infinity on rank 1": huge,
    # The last one: rank 1 leaves.
    "rank 1 breaks off": breaks,
}


def main(out: Path) -> None:
    ranks.join()
    rank = ranks.rank()
    for name, case in CASES.items():
        run = case()
        records = [{k: v for k, v in r.items() if "second" not in k} for r in run.metrics]
        torch.save(
            [run.model.state_dict(), records, run.outcome["step"]], out / f"{name}-{rank}.pt"
        )
    run = vf.fit("digits", out=out / "run", **SMALL)
    evaluation = run.evaluate(samples=20)
    (out / f"evaluation-{rank}.json").write_text(json.dumps(evaluation.estimates["nll"].value))
    vf.resume(out / "taken", steps=24, quiet=True)
    # Weights that the ranks do not share to begin with: those of rank 0 count.
    torch.manual_seed(rank)
    model = vf.Model(
        vf.priors.StandardNormal(2),
        vf.likelihoods.Bernoulli(vf.networks.MLP(2, (1, 8, 8), hidden=(4,)), (1, 8, 8)),
        vf.posteriors.Gaussian(2, vf.networks.MLP((1, 8, 8), hidden=(4,))),
    )
    weights = vf.fit(model, "digits", **LOOP).model.state_dict()
    torch.save(weights, out / f"own-{rank}.pt")
    found = {}
    for name, error in ERRORS.items():
        try:
            error()
            found[name] = ["none", "", False]
        except VarflowError as caught:
            found[name] = [type(caught).__name__, str(caught), caught.silent]
    (out / f"errors-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
