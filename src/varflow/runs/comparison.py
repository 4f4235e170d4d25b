"""Several runs on the same test points: their numbers, and the differences in pairs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from varflow.core import display
from varflow.core.errors import RunError, SpecError
from varflow.core.files import read_json
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import Evaluation, check_same, outdated, paired
from varflow.runs.hub import is_address

if TYPE_CHECKING:
    from varflow.runs.run import Run

#: What is shown of each run, and which of it is compared in pairs, by kind of evaluation.
_SHOWN = {
    "": ("nll", "elbo", "bits_per_dim", "log_likelihood", "kl", "active_units"),
    "annealed": ("nll",),
    "gaps": ("inference_gap", "approximation_gap", "amortization_gap"),
}
_PAIRED = {
    "": ("log_px", "elbo", "log_likelihood", "kl"),
    "annealed": ("log_px",),
    "gaps": ("inference_gap", "approximation_gap", "amortization_gap"),
}
#: What makes each kind.
_COMMANDS = {"": "evaluate", "annealed": "anneal", "gaps": "gaps", "curve": "curve"}
_NAMES = {
    "nll": "−log p(x)",
    "elbo": "ELBO",
    "bits_per_dim": "bits/dim",
    "log_likelihood": "E log p(x|z)",
    "kl": "KL term",
    "active_units": "active latents",
    "log_px": "log p(x)",
    "inference_gap": "inference gap",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
}
#: Of each estimate, in the CSV.
_FIELDS = (
    "value", "standard_error", "monte_carlo_error", "unit", "samples", "points", "khat", "seed",
    "protocol", "estimator",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Comparison:
    """Estimates of several runs, and each run less the first.

    Attributes:
        folders: of the runs.
        names: what tells them apart: the end of each folder's path.
        estimates: for each run: quantity → estimate.
        differences: for each run but the first: quantity → mean of the paired differences.
        protocol: what they were evaluated on.
        curves: for each run its bound against the number of samples, where all runs have one.
        notes: what was left out, and why.
    """

    folders: list[Path]
    names: list[str]
    estimates: list[dict[str, Estimate]]
    differences: list[dict[str, Estimate]]
    protocol: str
    curves: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        points = next(iter(self.estimates[0].values())).points
        return f"Comparison({', '.join(self.names)}; {self.protocol}, {points} points)"

    def _repr_html_(self) -> str:
        tables = [display.table(rows[0], rows[1:]) for rows in (self.rows(), self.difference_rows())]
        return display.block(
            display.heading("Runs on the same points"), tables[0],
            display.heading("Differences", "in pairs, point by point"), tables[1],
            display.note(*self.footer()),
        )

    def rows(self) -> list[list[str]]:
        """A heading, then a row for each run: value ± standard error over the points."""
        quantities = list(self.estimates[0])
        out = [["run", *map(titled, quantities)]]
        for name, found in zip(self.names, self.estimates, strict=True):
            out.append([name, *(_figures(found[q]) for q in quantities)])
        return out

    def difference_rows(self) -> list[list[str]]:
        """A heading, then a row for each run but the first: difference ± standard error (Monte-Carlo error)."""
        quantities = list(self.differences[0])
        out = [[f"less {self.names[0]}", *map(titled, quantities)]]
        for name, found in zip(self.names[1:], self.differences, strict=True):
            out.append([name, *(_signed(found[q]) for q in quantities)])
        return out

    def table(self) -> str:
        """Plain text."""
        parts = [aligned(self.rows()), "", aligned(self.difference_rows()), *self.footer()]
        return "\n".join(parts)

    def markdown(self) -> str:
        """Two tables and what stands below them."""
        tables = [piped(rows) for rows in (self.rows(), self.difference_rows())]
        return "\n\n".join([*tables, *self.footer()]) + "\n"

    def csv(self) -> str:
        """A line for each run and quantity; differences name the run they are ``against``."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "against", "quantity", *_FIELDS])
        for name, found in zip(self.names, self.estimates, strict=True):
            _write(writer, name, "", found)
        for name, found in zip(self.names[1:], self.differences, strict=True):
            _write(writer, name, self.names[0], found)
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that fit strict JSON: each estimate as in the evaluation of its run."""
        return {
            "protocol": self.protocol,
            "runs": [
                {"name": name, "folder": str(folder), "estimates": {q: e.to_dict() for q, e in found.items()}}
                for name, folder, found in zip(self.names, self.folders, self.estimates, strict=True)
            ],
            "differences": [
                {"run": name, "against": self.names[0], "estimates": {q: e.to_dict() for q, e in found.items()}}
                for name, found in zip(self.names[1:], self.differences, strict=True)
            ],
            "notes": self.notes,
        }

    def footer(self) -> list[str]:
        """How the numbers came about."""
        firsts = [next(iter(found.values())) for found in self.estimates]
        samples = _agreed([f"{first.samples:,}" for first in firsts], "samples each")
        seeds = _agreed([str(first.seed) for first in firsts], "seed", before=True)
        return [
            f"{self.protocol}; {firsts[0].points} points, {samples}, {seeds}; ± one standard error over the points, "
            "in brackets the Monte-Carlo error",
            f"differences: mean over the points of the run's value less that of {self.names[0]}",
            *(f"note: {note}" for note in self.notes),
        ]


def compare(runs: Sequence[str | Path | Run], split: str = "test") -> Comparison:
    """Compare runs that were evaluated on the same points.

    Annealed likelihoods, inference gaps and curves join in where every run has them; those of other points are
    left out with a note.

    Args:
        runs: two runs or more, or their folders; differences are taken against the first.
        split: the split they were evaluated on.

    Raises:
        SpecError: fewer than two runs, a run given twice, or runs of other data, protocol or points, by name.
        RunError: a run that was not evaluated, or damaged files.
    """
    folders: list[str | Path] = []
    for run in runs:
        folder = run if isinstance(run, str | Path) else run.origin or run.folder
        if folder is None:
            raise SpecError(
                "runs: one is in memory, which keeps no results of single examples; fit with out=... and evaluate it"
            )
        folders.append(folder)
        if is_address(folder):
            raise SpecError(
                f"runs: {folder} lies on the hub, without the results of single examples that pairs are made of; "
                f"evaluate it first: varflow evaluate {folder} --out FOLDER"
            )
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise SpecError(
            f"runs: {len(paths)} given; name two or more, e.g. varflow compare runs/a runs/b"
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise SpecError("runs: one is given twice; name each once")
    names = _short(paths)
    estimates: list[dict[str, Estimate]] = [{} for _ in paths]
    differences: list[dict[str, Estimate]] = [{} for _ in paths[1:]]
    notes: list[str] = []
    protocol = ""
    for kind in _SHOWN:
        found = _evaluations(paths, names, f"{split}-{kind}" if kind else split, required=not kind)
        if not found:
            continue
        prefix = f"{kind}/" if kind == "annealed" else ""
        try:
            pairs = [
                {prefix + q: _pair(one, found[0], q, (names[0], name)) for q in _PAIRED[kind]}
                for one, name in zip(found[1:], names[1:], strict=True)
            ]
        except SpecError as error:
            if not kind:
                raise
            notes.append(f"{split}-{kind} is left out: {error}")
            continue
        shared = [q for q in _SHOWN[kind] if all(q in one.estimates for one in found)]
        for mine, one in zip(estimates, found, strict=True):
            mine.update({prefix + q: one.estimates[q] for q in shared})
        for mine, pair in zip(differences, pairs, strict=True):
            mine.update(pair)
        protocol = protocol or found[0].estimates["nll"].protocol
    curves = _evaluations(paths, names, f"{split}-curve", required=False)
    return Comparison(paths, names, estimates, differences, protocol, curves, notes)


def _agreed(values: list[str], what: str, before: bool = False) -> str:
    """What all runs have, or what each has in their order."""
    shown = values[0] if len(set(values)) == 1 else f"{', '.join(values)} (in the order of the runs)"
    return f"{what} {shown}" if before else f"{shown} {what}"


def titled(quantity: str) -> str:
    """How a reader calls a quantity."""
    kind, _, name = quantity.rpartition("/")
    return _NAMES.get(name, name) + (f", {kind}" if kind else "")


def _evaluations(
    paths: list[Path], names: list[str], split: str, required: bool
) -> list[Evaluation]:
    """The evaluations of all runs; none where one run lacks it and it is not ``required``."""
    for path, name in zip(paths, names, strict=True):
        if not (path / "spec.json").exists():
            raise RunError(
                f"{path}: holds no run (no spec.json); give the folder that `varflow fit` wrote"
            )
        if (path / "evaluation" / f"{split}.json").exists():
            if outdated(path, read_json(path / "evaluation" / f"{split}.json")):
                of, _, kind = split.partition("-")
                raise RunError(
                    f"{path}: has gone on since it was evaluated; run: varflow {_COMMANDS[kind]} {path} --split {of}"
                )
            continue
        if not required:
            return []
        if (path / "evaluation" / "target.json").exists():
            raise SpecError(
                f"{name}: was fitted to a target, which has no test points to compare on"
            )
        raise RunError(
            f"{path}: not evaluated on the {split} split; run: varflow evaluate {path} --split {split}"
        )
    found = [Evaluation.load(path, split) for path in paths]
    if required:
        for one, name in zip(found[1:], names[1:], strict=True):
            check_same(found[0], one, (names[0], name))
    return found


def _pair(one: Evaluation, first: Evaluation, quantity: str, names: tuple[str, str]) -> Estimate:
    try:
        return paired(one, first, quantity)
    except SpecError as error:
        # `paired` calls the two a and b; here a is the later one.
        raise SpecError(f"{names[1]} (a) and {names[0]} (b): {error}") from error


def _short(paths: list[Path]) -> list[str]:
    """The fewest last parts of each path that tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _figures(estimate: Estimate) -> str:
    if estimate.standard_error is None or estimate.standard_error == 0:
        return estimate.number()
    return estimate.figures()


def _signed(estimate: Estimate) -> str:
    sign = "+" if estimate.value > 0 else ""
    return f"{sign}{_figures(estimate)} ({estimate.error(estimate.monte_carlo_error)})"


def aligned(rows: list[list[str]]) -> str:
    """A table as plain text."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(set_cell_size(c, w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def piped(rows: list[list[str]]) -> str:
    """A table in Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _write(writer: Any, name: str, against: str, found: dict[str, Estimate]) -> None:
    for quantity, estimate in found.items():
        values = [getattr(estimate, field) for field in _FIELDS]
        writer.writerow([name, against, quantity, *("" if v is None else v for v in values)])
