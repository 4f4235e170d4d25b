"""Compare several posteriors on the embedded digits, in a few minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varflow.cli.common import printer
from varflow.settings import recipes
from varflow.settings.flags import parse

#: Title of each fit, and the settings in which it differs from the recipe.
_POSTERIORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("planar, static", {"flow": "planar"}),
    ("planar, amortized", {"flow": "planar", "amortized": True}),
    ("Householder, amortized", {"flow": "householder", "amortized": True}),
    ("IAF, amortized", {"flow": "iaf", "amortized": True, "length": 4}),
    ("none, 2-D latent", {"latent": 2}),
    ("planar, amortized, 2-D latent", {"latent": 2, "flow": "planar", "amortized": True}),
)
_COLUMNS = (
    "posterior", "ELBO (nats)", "−log p(x) (nats)", "log p(x) − none (nats)", "active latents", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Demo:
    """Several posteriors compared on the embedded digits: table, figures, report."""

    out: str = "demo"
    """Folder for the runs and the pictures."""
    epochs: float = 150.0
    """Budget of each fit."""
    seed: int = 0
    """Seed of every fit."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: list[str]) -> int:
    options = parse(Demo, arguments)
    from varflow.core import ranks

    ranks.stay_alone()
    demo(Path(options.out), options.epochs, options.seed, options.quiet)
    return 0


def demo(out: Path, epochs: float = 150.0, seed: int = 0, quiet: bool = False) -> None:
    """Fit, evaluate and report each posterior; print one table and where the pictures are."""
    from rich.console import Console
    from rich.table import Table

    from varflow import evaluation
    from varflow.core.files import make_folder
    from varflow.report.demo import write
    from varflow.runs import fitting

    say = printer(quiet)
    make_folder(out)
    spec = recipes.find("digits").spec.replace(epochs=epochs, seed=seed)
    rows: list[tuple[str, list[str]]] = []
    #: The evaluation without a flow, by the number of latents.
    plain: dict[int, evaluation.Evaluation] = {}
    for number, (title, settings) in enumerate(_POSTERIORS, 1):
        began = time.perf_counter()
        chosen = spec.replace(**settings)
        latent = chosen.get("latent")
        name = title.replace(", ", "-").replace(" ", "-").lower()
        say(f"{number} of {len(_POSTERIORS)}: {title}")
        run = fitting.fit(chosen, out=out / name, overwrite=True, quiet=quiet, recipe="digits")
        result = run.evaluate(samples=500)
        run.report("few")
        reference = plain.setdefault(latent, result)
        paired = (
            "" if result is reference else _shown(evaluation.paired(result, reference, "log_px"))
        )
        found = result.estimates
        seconds = time.perf_counter() - began
        cells = [
            title, _shown(found["elbo"]), _shown(found["nll"]), paired,
            f"{found['active_units'].value:.0f} of {latent}", f"{seconds:.0f}",
        ]  # fmt: skip
        rows.append((name, cells))
        say(f"   ELBO {cells[1]} nats, −log p(x) {cells[2]} nats; {seconds:.0f} s")
    title = f"digits, dynamic, 250 test digits, {epochs:g} epochs, seed {seed}; ± standard error"
    table = Table(*_COLUMNS, title=title)
    for _, cells in rows:
        table.add_row(*cells)
    Console(width=110, quiet=quiet).print(table)
    page = write(out / "index.html", title, _COLUMNS, rows)
    say(f"reports and pictures: {page.resolve()}")


def _shown(estimate: Any) -> str:
    text: str = estimate.figures()
    return text
