"""A folder of fitted models, such as models/ of the repository: what lies there, and what each is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from varflow.core.errors import RunError
from varflow.core.files import present, read_json, weights_digest
from varflow.evaluation.estimate import Estimate
from varflow.report.names import name_of
from varflow.runs.comparison import aligned

#: What is shown of an evaluation, as far as it is there.
_SHOWN = ("elbo", "nll", "bits_per_dim", "kl_true", "kl_q_p")


@dataclass(frozen=True)
class Kept:
    """A fitted model in its folder.

    Attributes:
        folder: what :func:`varflow.load` is given.
        title: what it is, in a line.
        size: of its files, bytes.
        estimates: of its evaluation, by name; those that are of other weights are left out.
    """

    folder: Path
    title: str
    size: int
    estimates: dict[str, Estimate]


def collection(folder: str | Path = "models") -> list[Kept]:
    """The models in a folder, by name.

    Raises:
        RunError: there is no such folder, no model in it, or a damaged file.
    """
    home = Path(folder)
    runs = sorted(path.parent for path in home.glob("*/spec.json"))
    if not runs:
        raise RunError(f"folder: {home} holds no model (no folder with a spec.json); give a folder of run folders")
    return [_kept(run) for run in runs]


def _kept(run: Path) -> Kept:
    from varflow.report.page import title_of

    told = [read_json(run / name) for name in ("spec.json", "run.json", "data.json")]
    files = [path for path in run.rglob("*") if path.is_file()]
    found: dict[str, Estimate] = {}
    for name in present(run, ["evaluation/test.json", "evaluation/target.json"]):
        held = read_json(run / name)
        if held.get("weights") in (None, weights_digest(run)):
            found |= {key: Estimate.from_dict(value) for key, value in held["estimates"].items()}
    return Kept(run, title_of(*told), sum(path.stat().st_size for path in files), found)


def table(models: list[Kept]) -> str:
    """Plain text: a row for each model, and below it how its numbers came about."""
    shown = [name for name in _SHOWN if any(name in kept.estimates for kept in models)]
    rows = [["model", "MB", *map(name_of, shown), "what it is"]]
    for kept in models:
        cells = [_figures(kept.estimates[name]) if name in kept.estimates else "" for name in shown]
        rows.append([str(kept.folder), f"{kept.size / 1e6:.2f}", *cells, kept.title])
    lines = [aligned(rows), ""]
    for kept in models:
        first = next((kept.estimates[name] for name in shown if name in kept.estimates), None)
        if first is None:
            lines.append(f"{kept.folder}: not evaluated")
        else:
            lines.append(f"{kept.folder}: {first.samples:,} samples, {first.points:,} points; {first.protocol}")
    return "\n".join(lines)


def _figures(estimate: Estimate) -> str:
    return estimate.figures() if estimate.standard_error else estimate.number()
