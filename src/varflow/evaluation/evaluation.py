"""The results of an evaluation: shown as a table, kept in a run folder, compared with others in pairs."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from varflow.core import display
from varflow.core.errors import RunError, SpecError, unknown
from varflow.core.files import make_folder, read_json, weights_digest, write_atomically, write_json
from varflow.evaluation.estimate import Estimate, percent

#: Raised when the saved form changes its meaning.
VERSION = 1

#: What has to agree before a difference of two evaluations means anything.
_SAME = ("name", "protocol", "split", "event_shape", "seed_eval")


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The results of one evaluation.

    Attributes:
        data: what the data set says of itself (``Dataset.describe()``), with the split.
        estimates: name → :class:`Estimate`: elbo, log_likelihood, kl, ladj, nll, bits_per_dim,
            active_units, aggregated_distance; what does not apply is left out. Of a target: see
            :func:`evaluate_target`; its points are the fits.
        per_example: float64 arrays ``[N]`` by name: log_px, elbo, their variances, terms, ess, khat, and
            the positions ``index`` and means ``x_mean`` of the test points.
        per_latent: float64 arrays ``[D]``: activity, mean and scale of the aggregated posterior, kl.
        notes: what a reader has to know before using the numbers.
    """

    data: dict[str, Any]
    estimates: dict[str, Estimate]
    per_example: dict[str, np.ndarray]
    per_latent: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[list[str]]:
        """A heading, then a row for each estimate."""
        lone = self._lone
        value = "value" if lone else f"value ± se over {self._counted}"
        return [
            ["", value, "unit", "MC error", "k̂ > 0.7", "ESS"],
            *(
                [
                    e.name,
                    e.number() if lone else e.figures(),
                    e.unit,
                    e.error(e.monte_carlo_error),
                    "" if e.khat is None else f"{100 * e.khat:.1f} %",
                    "" if e.ess is None else percent(e.ess),
                ]
                for e in self.estimates.values()
            ),
        ]

    def table(self) -> str:
        """Plain text: a row for each estimate, then how they were obtained, then the notes."""
        rows = self.rows()
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(set_cell_size(cell, w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [self._shared()]
        lines += [f"{e.name}: {e.estimator}" for e in self.estimates.values()]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _shared(self) -> str:
        """What all estimates were obtained from."""
        first = next(iter(self.estimates.values()))
        return f"{first.protocol}; {first.points} {self._counted}, {first.samples} samples each, seed {first.seed}"

    @property
    def _counted(self) -> str:
        """What the points are called."""
        if not self.of_target:
            return "points"
        return "fit" if next(iter(self.estimates.values())).points == 1 else "fits"

    @property
    def _lone(self) -> bool:
        """Whether it is of one fit, which has no spread over fits."""
        return self.of_target and next(iter(self.estimates.values())).points == 1

    def __repr__(self) -> str:
        from varflow.report.names import HEADLINES

        chosen = [name for name in HEADLINES if name in self.estimates] or list(self.estimates)[:2]
        shown = [self.estimates[name] for name in chosen[:3]]
        said = ", ".join(
            f"{e.name} {e.number() if self._lone else e.figures()} {e.unit}".strip() for e in shown
        )
        first = next(iter(self.estimates.values()))
        name = f"{self.data.get('name')}, {self.data.get('split')}"
        return f"Evaluation({name}: {said}; {first.points} {self._counted}, {first.samples} samples each)"

    def _repr_html_(self) -> str:
        from varflow.report.names import KINDS, name_of

        heads, *rows = self.rows()
        named = [(name_of(name), *cells) for name, *cells in rows]
        how = [f"{name_of(e.name)}: {e.estimator}" for e in self.estimates.values()]
        split, _, kind = str(self.data.get("split")).partition("-")
        said = "fit to a target" if self.of_target else f"{split} split"
        said += f": {KINDS[kind].lower()}" if kind in KINDS else ""
        return display.block(
            display.heading(self.data.get("name", "data"), said),
            display.table(heads, named, words=(0, 2)),
            display.note(self._shared(), *(f"Note: {note}" for note in self.notes)),
            display.folded("How each number was estimated", display.note(*how)),
        )

    @property
    def of_target(self) -> bool:
        """Whether the points are fits to a target instead of examples of a data set."""
        return self.data.get("split") == "target"

    def save(self, folder: str | Path) -> Path:
        """Write ``evaluation/{split}.npz`` and ``.json`` into a run folder, each whole or not at all.

        A digest of the run's weights goes with them: a run that is resumed outgrows its estimates.

        Raises:
            RunError: they could not be written.
        """
        room = Path(folder) / "evaluation"
        make_folder(room)
        path = room / f"{self.data['split']}.json"
        arrays = {f"per_example/{name}": a for name, a in self.per_example.items()}
        arrays |= {f"per_latent/{name}": a for name, a in self.per_latent.items()}
        # The numbers first: a JSON file promises that its arrays are there.
        write_atomically(path.with_suffix(".npz"), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        write_json(
            path,
            {
                "version": VERSION,
                "data": self.data,
                "estimates": {name: e.to_dict() for name, e in self.estimates.items()},
                "notes": self.notes,
                "weights": weights_digest(Path(folder)),
            },
        )
        return path

    @staticmethod
    def load(folder: str | Path, split: str = "test") -> Evaluation:
        """What :meth:`save` wrote.

        Raises:
            RunError: missing, damaged, or of another version.
        """
        path = Path(folder) / "evaluation" / f"{split}.json"
        values = read_json(path)
        if not isinstance(values, Mapping) or values.get("version") != VERSION:
            raise RunError(f"{path}: no evaluation of version {VERSION}; evaluate the run again")
        groups: dict[str, dict[str, np.ndarray]] = {"per_example": {}, "per_latent": {}}
        try:
            with (
                open(path.with_suffix(".npz"), "rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                for key in arrays.files:
                    group, _, name = key.partition("/")
                    groups[group][name] = arrays[key]
            estimates = {name: Estimate.from_dict(e) for name, e in values["estimates"].items()}
            return Evaluation(values["data"], estimates, **groups, notes=list(values["notes"]))
        except FileNotFoundError:
            raise RunError(
                f"{path.with_suffix('.npz')}: missing; the results of single examples do not travel with a run from "
                "the hub. Evaluate the run again"
            ) from None
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            raise RunError(f"{path}: damaged ({error!r}); evaluate the run again") from error


def outdated(folder: Path, estimates: Any) -> bool:
    """Whether the content of an evaluation's JSON file is of other weights than the run has now."""
    digest = estimates.get("weights") if isinstance(estimates, Mapping) else None
    return digest is not None and digest != weights_digest(folder)


def paired(a: Evaluation, b: Evaluation, name: str = "log_px") -> Estimate:
    """mean_i (a_i − b_i) over the test points, in nats, with the standard error of the pairs.

    Easy and hard pictures are so for both models; the difference point by point is far less noisy than
    the difference of two means.

    Args:
        a, b: evaluations of two models on the same points.
        name: log_px, elbo, log_likelihood or kl; of :func:`varflow.evaluation.inference_gaps` one of its estimates.

    Returns:
        positive where a is larger. Its Monte-Carlo error treats the two sets of samples as independent.

    Raises:
        SpecError: the evaluations differ in data, protocol, split or points.
    """
    known = [key for key in a.per_example if f"{key}_variance" in a.per_example]
    if name not in known:
        raise unknown("name", name, known)
    check_same(a, b)
    points, others = a.per_example["index"], b.per_example["index"]
    if not np.array_equal(points, others):
        raise SpecError(
            f"b: has {len(others)} points, a has {len(points)}; use the same limit for both"
        )
    # Rounding differs between devices, other pictures differ by far more.
    if not np.allclose(a.per_example["x_mean"], b.per_example["x_mean"], rtol=1e-4, atol=1e-4):
        raise SpecError("b: has other values of x than a; evaluate both on the same data set")
    gap = a.per_example[name] - b.per_example[name]
    variance = a.per_example[f"{name}_variance"] + b.per_example[f"{name}_variance"]
    # −log p(x) carries what is known of the weights; the other terms have its samples.
    source = "nll" if "nll" in a.estimates else name
    first, second = a.estimates[source], b.estimates[source]
    count = len(gap)
    error = float(gap.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    monte_carlo = math.sqrt(variance.sum()) / count
    weighted = name == "log_px"
    shares = [e.khat for e in (first, second) if e.khat is not None]
    sizes = [e.ess for e in (first, second) if e.ess is not None]
    return Estimate(
        f"difference in {name}",
        float(gap.mean()),
        error,
        None if math.isnan(monte_carlo) else monte_carlo,
        min(first.samples, second.samples),
        count,
        "nats",
        f"mean of the paired differences, {first.samples} and {second.samples} samples",
        first.protocol,
        first.seed,
        max(shares) if weighted and shares else None,
        min(sizes) if weighted and sizes else None,
    )


def check_same(a: Evaluation, b: Evaluation, names: tuple[str, str] = ("a", "b")) -> None:
    """Refuse evaluations of other data.

    Raises:
        SpecError: data, protocol, split, shape or fixed draw differ; the message calls them by ``names``.
    """
    for key in _SAME:
        one, two = a.data.get(key), b.data.get(key)
        if one != two:
            raise SpecError(
                f"{names[1]}: has {key} {two!r}, {names[0]} has {one!r}; evaluate both on the same points to "
                "compare them"
            )
