"""The demonstration: flows that find four energies, three posteriors of one digit plane, and their honest numbers.

Nothing is downloaded: the digits come with the package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from varflow.core.files import make_folder, read_json
from varflow.evaluation.evaluation import paired
from varflow.figures import gallery_film, gallery_points, pictures
from varflow.figures.gallery_scene import Scene
from varflow.report import demo as pages
from varflow.runs import fitting
from varflow.runs.run import Run
from varflow.settings import recipes

#: Energies of Rezende and Mohamed 2015, and what their densities look like.
ENERGIES = (("u1", "two modes, bent to a ring"), ("u2", "a wave"), ("u3", "a wave that splits"), ("u4", "two waves"))
#: What the posteriors are called, and the settings in which they differ from the recipe.
POSTERIORS: dict[str, dict[str, Any]] = {
    "Gaussian": {},
    "planar flow": {"flow": "planar", "amortized": True, "length": 4},
    "IAF": {"flow": "iaf", "amortized": True, "length": 4},
}
#: Number of latents → posteriors, the first of which the others are compared with: a plane that can be looked at, and
#: a space that is wide enough for the digits.
MODELS: dict[int, tuple[str, ...]] = {2: ("Gaussian", "planar flow", "IAF"), 8: ("Gaussian", "IAF")}
COLUMNS = (
    "latents", "posterior", "ELBO (nats)", "−log p(x) (nats)", "log p(x), less that of the Gaussian (nats)",
    "active latents", "seconds",
)  # fmt: skip
#: Importance samples for each test digit, draws of each energy's fit, and the side of a decoded plane in pictures.
_SAMPLES, _DRAWS, _SIDE = 500, 20_000, 18
#: A plane shows the prior out to here, and all digits but a few.
_REACH, _SHARE = 3.1, 0.98
#: Digits in a scatter.
_DIGITS = 250


class Fitted(NamedTuple):
    """A fit of the demonstration: its run, its evaluation, and how long both took."""

    run: Run
    found: Any
    seconds: float


@dataclass
class Stages:
    """Tells which stage runs, and keeps how long each took.

    Args:
        count: of stages.
        say: prints a line.
    """

    count: int
    say: Callable[[object], None]
    began: float = field(default_factory=time.perf_counter)
    taken: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, what: str) -> Iterator[list[str]]:
        """One stage; what is put into the list is told at its end."""
        told: list[str] = []
        start = time.perf_counter()
        self.say(f"stage {len(self.taken) + 1} of {self.count}: {what}")
        yield told
        self.taken.append((what, time.perf_counter() - start))
        self.say(f"   {'; '.join([*told, f'{self.taken[-1][1]:.1f} s'])} ({self.seconds:.0f} s so far)")

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.began


def demo(
    out: Path,
    epochs: float = 80.0,
    seed: int = 0,
    say: Callable[[object], None] = print,
    quiet: bool = False,
    **small: Any,
) -> Path:
    """Fit, evaluate and report everything, and write ``index.html``; returns its path.

    Args:
        out: folder of the runs and the page.
        epochs: of each model of digits.
        seed: of every fit.
        say: prints a line.
        quiet: show no progress of the fits.
        **small: settings of the energies' fits in place of the recipe's.

    Raises:
        RunError: the folder cannot be written.
    """
    make_folder(out)
    stages = Stages(len(ENERGIES) + sum(map(len, MODELS.values())) + 1, say)
    energies = [_energy(out, name, seed, stages, quiet, small) for name, _ in ENERGIES]
    digits = {
        (latent, title): _digits(out, latent, title, epochs, seed, stages, quiet)
        for latent, titles in MODELS.items()
        for title in titles
    }
    with stages.stage("the page"):
        values = {
            "films": [read_json(_folder(one) / "figures" / gallery_film.FILM) for one in energies],
            "names": [f"{name}: {shape}" for name, shape in ENERGIES],
            "notes": [f"KL(q‖p) = {one.found.estimates['kl_q_p'].number()} nats" for one in energies],
            "planes": _planes([(title, digits[2, title]) for title in MODELS[2]], seed),
            "moves": [
                (title, _points(digits[2, title].run, seed)) for title in MODELS[2] if "flow" in POSTERIORS[title]
            ],
            "rows": _rows(digits),
        }
    return pages.write(
        out / "index.html",
        about=f"digits, dynamic binarization, 250 test digits, {epochs:g} epochs, seed {seed}",
        columns=COLUMNS,
        energies=[(name, _folder(one).name) for (name, _), one in zip(ENERGIES, energies, strict=True)],
        taken=stages.taken,
        seconds=stages.seconds,
        **values,
    )


def _folder(one: Fitted) -> Path:
    assert one.run.folder is not None
    return one.run.folder


def _energy(out: Path, name: str, seed: int, stages: Stages, quiet: bool, small: dict[str, Any]) -> Fitted:
    began = time.perf_counter()
    with stages.stage(f"energy {name}, a flow of 32 planar steps") as told:
        own: dict[str, Any] = {"target": name, "seed": seed, **small}
        spec = recipes.find("energy").spec.replace(**own)
        run = fitting.fit(spec, out=out / f"energy-{name}", overwrite=True, quiet=quiet, recipe="energy")
        found = run.evaluate(samples=_DRAWS)
        run.report("few")
        told.append(f"KL(q‖p) {found.estimates['kl_q_p'].number()} nats")
    return Fitted(run, found, time.perf_counter() - began)


def _digits(
    out: Path,
    latent: int,
    title: str,
    epochs: float,
    seed: int,
    stages: Stages,
    quiet: bool,
) -> Fitted:
    began = time.perf_counter()
    with stages.stage(f"digits, {latent} latents, posterior: {title}") as told:
        spec = recipes.find("digits").spec.replace(latent=latent, epochs=epochs, seed=seed, **POSTERIORS[title])
        name = f"digits-{latent}-{title.replace(' ', '-').lower()}"
        run = fitting.fit(spec, out=out / name, overwrite=True, quiet=quiet, recipe="digits")
        found = run.evaluate(samples=_SAMPLES)
        run.report("few")
        told.append(f"ELBO {found.estimates['elbo'].figures()}, −log p(x) {found.estimates['nll'].figures()} nats")
    return Fitted(run, found, time.perf_counter() - began)


def _rows(digits: dict[tuple[int, str], Fitted]) -> list[tuple[str, list[str]]]:
    """The folder of each fit, and its cells of the table."""
    rows = []
    for (latent, title), one in digits.items():
        reference, found = digits[latent, MODELS[latent][0]], one.found.estimates
        less = "" if one is reference else paired(one.found, reference.found, "log_px").figures()
        active = f"{found['active_units'].value:.0f} of {latent}"
        rows.append(
            (
                _folder(one).name,
                [str(latent), title, found["elbo"].figures(), found["nll"].figures(), less, active,
                 f"{one.seconds:.0f}"],
            )
        )  # fmt: skip
    return rows


def _scene(run: Run, seed: int) -> Scene:
    return Scene(run.model, run.dataset, run.metrics, seed, None, "test")  # type: ignore[arg-type]


@torch.no_grad()
def _points(run: Run, seed: int) -> dict[str, Any]:
    return gallery_points.points(_scene(run, seed), _DIGITS)


@torch.no_grad()
def _planes(fits: Sequence[tuple[str, Fitted]], seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    """For each fit its title, its numbers, and what the plane decodes to above the digits that lie in it."""
    held = [(title, one, _points(one.run, seed)) for title, one in fits]
    # One window for all; a digit far out would make all others small.
    away = torch.tensor([points["panels"][-1]["points"] for _, _, points in held]).abs().amax(-1).flatten()
    reach = max(_REACH, float(torch.quantile(away, _SHARE)))
    window = [-reach, reach, -reach, reach]
    found = []
    for title, one, points in held:
        after = {**points["panels"][-1], "window": window, "title": "the test digits, encoded"}
        decoded = {**after, "title": "", "under": _decoded(one.run, reach)}
        numbers = one.found.estimates
        said = f"ELBO {numbers['elbo'].figures()}, −log p(x) {numbers['nll'].figures()} nats"
        if outside := sum(max(map(abs, place)) > reach for place in after["points"]):
            said += f"; {outside} of {len(after['points'])} digits lie outside"
        found.append((title, said, {**points, "panels": [decoded, after], "title": f"Digit plane, {title}"}))
    return found


def _decoded(run: Run, reach: float) -> str:
    """What the plane decodes to, from −reach to reach in both directions, as one picture."""
    model: Any = run.model
    dataset: Any = run.dataset
    home = next(model.parameters())
    # The middles of the cells; the first row of a picture is the uppermost.
    places = (torch.arange(_SIDE, dtype=torch.float64) + 0.5) / _SIDE * 2 * reach - reach
    up, right = torch.meshgrid(places.flip(0), places, indexing="ij")
    z = torch.stack([right, up], -1).reshape(-1, 2).to(home.device, home.dtype)
    return pictures.tiled(dataset.pictures(model.decode(z, mean=True)), _SIDE)
