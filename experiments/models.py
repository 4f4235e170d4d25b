"""Makes models/: fitted models of finished rows, with weights of half the bytes, evaluated as they lie there.

    python -m experiments.models --runs runs

Each is copied from its run with float16 weights, evaluated from the copy, and written without curves, training rows
and places of this machine. A model is left out while its run is not finished, and where its weights have not changed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

HOME = Path("models")
#: All of models/ together, bytes.
MOST = 20_000_000


@dataclass(frozen=True)
class Model:
    """A model worth keeping.

    Attributes:
        name: of its folder in models/.
        run: its run, below the folder of runs.
        samples: importance samples of its card.
    """

    name: str
    run: str
    samples: int | None = 500


MODELS = [
    Model("mnist-dense-20", "systems/dense-mnist-20/none"),
    Model("mnist-dense-20-planar", "systems/dense-mnist-20/planar-dynamic"),
    Model("mnist-planar-2d", "systems/planar-2d/planar"),
    Model("fashion-dense-20", "systems/dense-fashion-20/none"),
    Model("mnist-iwae-1-k5", "published/iwae-1/k5", 1000),
    Model("mnist-iwae-2-k5", "published/iwae-2/k5", 1000),
    Model("mnist-hvae", "systems/hvae-iwae/hvae-seed0", 100),
    Model("cifar-vlae", "systems/vae-vlae-cifar/vlae", 100),
    Model("plane-gaussian-1", "systems/vae-2d/gaussian-1"),
    Model("plane-three-clusters", "systems/three-clusters/planar"),
    Model("energy-u3-planar-32", "systems/energies-paper/u3-32", None),
]


def make(model: Model, runs: Path) -> Path | None:
    """models/NAME, or None where the run is not finished."""
    import varflow as vf
    from experiments.campaign import outcome
    from varflow.core.files import make_folder, weights_digest, write_atomically
    from varflow.runs.hub import artefact

    source, target = runs / model.run, HOME / model.name
    if not outcome(source).get("finished"):
        return None
    with tempfile.TemporaryDirectory() as room:
        copied = vf.load(source).copy(Path(room) / model.name, dtype="float16")
        made = copied.folder
        assert made is not None
        if weights_digest(made) == weights_digest(target):
            return target
        copied.evaluate(samples=model.samples)
        files = artefact(made, f"models/{model.name}")
        for name, content in files.items():
            # Curves are for the one who fits.
            if name.endswith("metrics.jsonl"):
                continue
            path = target / name
            make_folder(path.parent)
            blob = content if isinstance(content, bytes) else content.read_bytes()
            write_atomically(path, lambda file, blob=blob: file.write(blob))
    return target


def write_list() -> None:
    """models/README.md: each model with its size, its numbers and the row that it comes from."""
    from varflow.core.files import write_text
    from varflow.runs.collection import collection

    origin = {model.name: model.run for model in MODELS}
    models = collection(HOME)
    lines = [
        "# Fitted models",
        "",
        "Weights are float16; `vf.load` makes them float32. Each was evaluated as it lies here; its card, README.md",
        "in its folder, has all numbers with their errors. The row of [experiments.md](../docs/experiments.md) or",
        "[published.md](../docs/published.md) says how it was trained. `python -m experiments.models` makes them.",
        "",
        "```",
        "varflow models                                   # this list, from the files",
        f"varflow sample {models[0].folder}           # every verb that takes a run takes one of these",
        "```",
        "",
        "| model | what it is | bytes | ELBO, nats | −log p(x), nats | row |",
        "|---|---|---|---|---|---|",
    ]
    for kept in models:
        cells = [kept.estimates[name].figures() if name in kept.estimates else "" for name in ("elbo", "nll")]
        name = kept.folder.name
        row = "/".join(origin[name].split("/")[1:])
        lines.append(f"| [{name}]({name}) | {kept.title} | {kept.size:,} | {' | '.join(cells)} | {row} |")
    write_text(HOME / "README.md", "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of systems/ and published/")
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    for model in MODELS:
        if options.only is None or model.name in options.only:
            print(f"{model.name}: {make(model, options.runs) or 'its run is not finished'}", flush=True)
    write_list()
    size = sum(path.stat().st_size for path in HOME.rglob("*") if path.is_file())
    print(f"{HOME}: {size / 1e6:.1f} MB")
    if size > MOST:
        raise SystemExit(f"{HOME}: {size / 1e6:.1f} MB in all, {MOST / 1e6:.0f} at most; leave some out")


if __name__ == "__main__":
    main()
