"""Rows of an experiment: what its authors ran and claim, what runs here at their budget, what came of it.

A row is data: fits, the pairs that are compared, the function that judges them, and a picture. ``run`` fits and
evaluates a row and goes on where it was cut off; ``collect`` turns finished runs into a small JSON file; ``table``
writes the page from these files alone, so that it can be rebuilt without the runs.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).parent
#: Where the numbers of finished rows lie.
RESULTS = HERE / "results"
#: Estimates that are kept of an evaluation, beside those that a row shows.
KEPT = ("elbo", "nll", "bits_per_dim", "active_units", "aggregated_distance", "nll_true", "kl_true", "kl_q_p",
        "code_bits", "perplexity")  # fmt: skip
#: The gap between log p(x) and the ELBO, and its parts.
GAPS = ("inference_gap", "approximation_gap", "amortization_gap")
#: Estimates that are shown with four decimals.
FINE = ("kl_q_p", "kl_true", "aggregated_distance", "bits_per_dim", "code_bits")


class Interrupted(Exception):
    """A fit was told to end; it has saved where it is."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended by signal {code}; the same command goes on")
        self.code = 128 + code


class Work(Protocol):
    """Something that is trained and then measured."""

    @property
    def name(self) -> str:
        """Of its folder below that of the row."""

    def run(self, folder: Path) -> None:
        """Fit and evaluate, from where it was cut off; nothing where both are done."""

    def progress(self, folder: Path) -> tuple[int, int]:
        """(updates done, updates in all)."""

    def measure(self, folder: Path) -> dict[str, Any] | None:
        """Plain numbers of a finished piece of work; None before that."""


@dataclass(frozen=True)
class Fit:
    """A recipe with settings, and how it is evaluated.

    Attributes:
        name: of its folder.
        recipe, settings: of :func:`varflow.fit`.
        samples: importance samples for each test point.
        limit: the first so many test points; all without it.
        annealed: test points of annealed importance sampling besides.
        gaps: test points whose gap between log p(x) and the ELBO is taken apart besides.
    """

    name: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None
    limit: int | None = None
    annealed: int = 0
    gaps: int = 0

    def command(self) -> str:
        """The same on the command line."""
        words = ["varflow", "fit", self.recipe]
        for name, value in self.settings.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)

    def spec(self) -> Any:
        from varflow.settings import recipes

        return recipes.find(self.recipe).spec.replace(**self.settings)

    def run(self, folder: Path) -> None:
        import varflow as vf

        if not (folder / "spec.json").exists():
            run = vf.fit(self.recipe, out=folder, quiet=True, threads=1, **self.settings)
        elif not outcome(folder).get("finished"):
            run = vf.resume(folder, quiet=True)
        elif self.measure(folder) is None:
            run = vf.load(folder)
        else:
            return
        self.after(run)

    def after(self, run: Any) -> None:
        """What follows the fit."""
        signal = run.outcome.get("signal")
        if signal is not None:
            raise Interrupted(int(signal))
        evaluated(run, self.samples, self.limit, self.annealed, self.gaps)

    def progress(self, folder: Path) -> tuple[int, int]:
        return updates(folder, self.total())

    def total(self) -> int:
        """Updates of the budget; of a quantizer's, those of its code prior come on top."""
        spec = self.spec()
        rows = TRAINING_ROWS.get(spec.get("data", ""), 0)
        rows = min(rows, spec.get("train_limit", None) or rows)
        found = _updates(spec.training.steps, spec.training.epochs, rows, spec.training.batch)
        if spec.has("code_prior"):
            found += _updates(spec.get("prior_steps"), spec.get("prior_epochs"), rows, spec.get("prior_batch"))
        return found

    def measure(self, folder: Path) -> dict[str, Any] | None:
        return measured(folder, bool(self.annealed), bool(self.gaps))


#: Training rows of the named data sets, after the validation split was taken away.
TRAINING_ROWS = {
    "mnist": 50_000, "fashion-mnist": 50_000, "cifar10-subset": 18_000, "gaussian-1": 10_000, "gaussian-2": 10_000,
    "three-clusters": 999,
}  # fmt: skip


def _updates(steps: int | None, epochs: float | None, rows: int, batch: int) -> int:
    return int(steps) if steps else round((epochs or 0) * (rows // batch))


def outcome(folder: Path) -> dict[str, Any]:
    """How a fit has ended; empty before that."""
    path = folder / "run.json"
    found: dict[str, Any] = json.loads(path.read_text()).get("outcome", {}) if path.exists() else {}
    return found


def updates(folder: Path, total: int) -> tuple[int, int]:
    """(updates done, in all) by the last records of a run."""
    from varflow.core.files import read_metrics

    done = sum(rows[-1]["step"] for where in ("", "prior") if (rows := read_metrics(folder / where)))
    return done, max(total, done)


def evaluated(run: Any, samples: int | None, limit: int | None, annealed: int = 0, gaps: int = 0) -> None:
    """Estimates of a finished run, from the block where an earlier evaluation was cut off."""
    from varflow import evaluation

    kind = "target" if run.infers_target else "test"
    if not (run.folder / "evaluation" / f"{kind}.json").exists():
        run.evaluate(None, samples, **({} if run.infers_target else {"limit": limit}))
    if annealed and not (run.folder / "evaluation" / "test-annealed.json").exists():
        evaluation.annealed_likelihood(
            run.model, run.dataset, "test", annealed, evaluation.Annealing(16, 500), folder=run.folder / "evaluation"
        ).save(run.folder)
    if gaps and not (run.folder / "evaluation" / "test-gaps.json").exists():
        evaluation.inference_gaps(
            run.model, run.dataset, "test", gaps, evaluation.Refinement(), evaluation.Annealing(8, 200),
            folder=run.folder / "evaluation",
        ).save(run.folder)  # fmt: skip


def measured(folder: Path, annealed: bool = False, gaps: bool = False) -> dict[str, Any] | None:
    """Estimates, budget and processor of a run that is finished and evaluated."""
    ended = outcome(folder)
    kinds = [kind for kind in ("test", "target") if (folder / "evaluation" / f"{kind}.json").exists()]
    if not ended.get("finished") or not kinds:
        return None
    besides = [kind for kind, asked in (("annealed", annealed), ("gaps", gaps)) if asked]
    if not all((folder / "evaluation" / f"test-{kind}.json").exists() for kind in besides):
        return None
    from varflow.evaluation import Evaluation
    from varflow.evaluation.evaluation import outdated

    path = folder / "evaluation" / f"{kinds[0]}.json"
    if outdated(folder, json.loads(path.read_text())):
        return None
    found = Evaluation.load(folder, kinds[0])
    environment = json.loads((folder / "environment.json").read_text())
    second = ended.get("code_prior") or {}
    result: dict[str, Any] = {
        "step": ended["step"] + second.get("step", 0),
        "best_step": ended["best_step"],
        "seconds": ended["seconds"] + second.get("seconds", 0.0),
        "reason": ended["reason"],
        "processor": environment["processor"],
        "estimates": {name: found.estimates[name].to_dict() for name in KEPT if name in found.estimates},
    }
    if "mean" in found.per_latent and "scale" in found.per_latent:
        # E z² under the aggregated posterior, mean over the latents: 1 under the prior.
        square = found.per_latent["mean"] ** 2 + found.per_latent["scale"] ** 2
        result["second_moment"] = float(square.mean())
    if annealed:
        beside = Evaluation.load(folder, "test-annealed")
        result["estimates"]["nll_annealed"] = beside.estimates["nll"].to_dict()
        count = len(beside.per_example["log_px"])
        result["nll_same_points"] = float(-found.per_example["log_px"][:count].mean())
    if gaps:
        apart = Evaluation.load(folder, "test-gaps").estimates
        result["estimates"] |= {name: apart[name].to_dict() for name in GAPS}
    return result


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim.

    Attributes:
        word: holds, refuted, artefact, no claim, or open while a fit that decides it is missing.
        why: one sentence with the numbers.
    """

    word: str
    why: str


#: fits and pairs of a row, as plain numbers.
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        name: what the command is told.
        source: whose experiment it is.
        title: what is modelled how.
        ran: what its authors ran.
        claim: what they say came of it.
        corrected: what is other here, the loss first.
        fits: what is trained here.
        pairs: (a, b, quantity): the mean of a − b over the same test points is kept with its error.
        judge: numbers → verdict; it is asked once all fits are finished.
        picture: draws the row from its folder of runs into a file.
        columns: of the table of its fits: estimate → heading.
        extra: of the table of its fits: heading → text from the numbers of a fit.
        hours: what the whole row takes on one core, from a measured step; shown while it is unfinished.
        note: what a reader has to know.
    """

    name: str
    source: str
    title: str
    ran: str
    claim: str
    corrected: str
    fits: Sequence[Work] = ()
    pairs: Sequence[tuple[str, str, str]] = ()
    judge: Callable[[Found], Verdict] | None = None
    picture: Callable[[Path, Path], None] | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: {"elbo": "ELBO", "nll": "−log p(x)"})
    extra: Mapping[str, Callable[[Mapping[str, Any]], str]] = field(default_factory=dict)
    hours: str = ""
    note: str = ""


def run(row: Row, runs: Path) -> None:
    """Fit and evaluate all of a row, one after the other, from where it was cut off."""
    for work in row.fits:
        work.run(runs / row.name / work.name)
        print(f"{row.name}/{work.name}: {state(work, runs / row.name / work.name)}", flush=True)


def state(work: Work, folder: Path) -> str:
    """finished, not run, or how far it is, with the hours that the rest takes at its pace so far."""
    if work.measure(folder) is not None:
        return "finished"
    done, total = work.progress(folder)
    if not done:
        return "not run"
    if done >= total:
        return "fitted, not evaluated"
    return f"at step {done:,} of {total:,}{_rest(folder, total - done)}"


def _rest(folder: Path, steps: int) -> str:
    """How long so many updates take, at the median pace of the records."""
    from varflow.core.files import read_metrics

    rows = read_metrics(folder / "prior") or read_metrics(folder)
    pace = sorted(row["steps_per_second"] for row in rows if row.get("steps_per_second"))
    return f", {steps / pace[len(pace) // 2] / 3600:.1f} h to go" if pace else ""


def collect(row: Row, runs: Path, results: Path, pictures: Path) -> dict[str, Any]:
    """Numbers of a row from its runs, where they are here, kept in ``results``; else what is kept there."""
    path = results / f"{row.name}.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"fits": {}, "pairs": {}, "states": {}}
    home = runs / row.name
    if not home.exists():
        return kept
    fits = {work.name: found for work in row.fits if (found := work.measure(home / work.name)) is not None}
    fits = {work.name: fits.get(work.name) or kept["fits"].get(work.name) for work in row.fits}
    fits = {name: found for name, found in fits.items() if found}
    pairs = {**kept["pairs"], **_paired(row, home)}
    states = {work.name: state(work, home / work.name) for work in row.fits if work.name not in fits}
    found = {"row": row.name, "fits": fits, "pairs": pairs, "states": states}
    if found != kept:
        from varflow.core.files import make_folder, write_json

        make_folder(results)
        write_json(path, found)
    drawn = pictures / f"{row.name}.png"
    newest = max((p.stat().st_mtime for p in home.glob("*/evaluation/*.json")), default=0.0)
    stale = not drawn.exists() or drawn.stat().st_mtime < newest
    if row.picture is not None and fits and stale and finished(row, found):
        row.picture(home, drawn)
    return found


def _paired(row: Row, home: Path) -> dict[str, Any]:
    from varflow.evaluation import Evaluation, paired

    works = {work.name: work for work in row.fits}
    pairs = {}
    for a, b, quantity in row.pairs:
        if all(works[name].measure(home / name) is not None for name in (a, b)):
            split = "test-annealed" if quantity == "annealed" else "test"
            one, other = (Evaluation.load(home / name, split) for name in (a, b))
            difference = paired(one, other, "log_px" if quantity == "annealed" else quantity)
            pairs[pair(a, b, quantity)] = difference.to_dict()
    return pairs


def pair(a: str, b: str, quantity: str) -> str:
    """The key of a paired difference."""
    return f"{a} − {b}: {quantity}"


def finished(row: Row, found: Found) -> bool:
    """Whether all fits of a row are."""
    return bool(row.fits) and all(work.name in found["fits"] for work in row.fits)


# -- the page ----------------------------------------------------------------------------------------


def figures(estimate: Mapping[str, Any], decimals: int = 2) -> str:
    """value ± standard error (Monte-Carlo error)."""
    value, error = float(estimate["value"]), estimate["standard_error"]
    text = f"{value:.{decimals}f}"
    if error is not None and math.isfinite(float(error)):
        text += f" ± {float(error):.{decimals}f}"
    return text


def signed(estimate: Mapping[str, Any]) -> str:
    """A paired difference, with its sign."""
    return ("+" if float(estimate["value"]) > 0 else "") + figures(estimate)


def overview(rows: Iterable[Row], found: Mapping[str, Found]) -> list[str]:
    """A line a row: what was claimed, the verdict with its numbers, or how far the row is."""
    lines = ["| row | experiment | its authors claim | verdict here | how far |", "|---|---|---|---|---|"]
    for row in rows:
        numbers = found[row.name]
        done = sum(work.name in numbers["fits"] for work in row.fits)
        told = verdict(row, numbers)
        far = "finished" if row.fits and done == len(row.fits) else f"{done} of {len(row.fits)} fits finished"
        begun = [f"{name} {text}" for name, text in numbers["states"].items() if text != "not run"]
        far = "; ".join([far, *begun])
        if not row.fits or (not done and not begun):
            far = "not run"
        word = f"**{told.word}**: {told.why}" if told.why else f"**{told.word}**"
        cells = [f"[{row.name}](#{anchor(row.name)})", f"{row.source}: {row.title}", row.claim, word, far]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def verdict(row: Row, numbers: Found) -> Verdict:
    """Of the finished row; open before that."""
    if row.judge is None:
        return Verdict("no claim", row.note if not row.fits else "")
    if not finished(row, numbers):
        return Verdict("open", "not all fits are finished")
    return row.judge(numbers)


def details(row: Row, numbers: Found, pictures: Path, page: Path) -> list[str]:
    """The section of a row."""
    lines = ["", f"### {row.name}", "", f"{row.source}: {row.title}.", ""]
    lines += [f"- **Theirs**: {row.ran}", f"- **Claim**: {row.claim}", f"- **Here**: {row.corrected}"]
    if row.note:
        lines.append(f"- **Note**: {row.note}")
    commands = [work for work in row.fits if isinstance(work, Fit)]
    if commands:
        lines.append(f"- **One of its fits**: `{commands[-1].command()}`")
    if not row.fits:
        return lines
    judged = verdict(row, numbers)
    lines += [f"- **Verdict**: {judged.word}{': ' + judged.why if judged.why else ''}"]
    done = {work.name: numbers["fits"][work.name] for work in row.fits if work.name in numbers["fits"]}
    if done:
        lines += ["", *fits_table(row, done)]
    told: dict[str, list[str]] = {}
    for name in (work.name for work in row.fits if work.name not in done):
        told.setdefault(numbers["states"].get(name, "not run"), []).append(name)
    if told:
        lines += ["", "Unfinished: " + "; ".join(f"{', '.join(names)}: {text}" for text, names in told.items()) + "."]
        if row.hours:
            lines.append(f"The whole row on one core: {row.hours}.")
    picture = pictures / f"{row.name}.png"
    if picture.exists():
        lines += ["", f"![{row.title}]({picture.relative_to(page.parent).as_posix()})"]
    return lines


def fits_table(row: Row, done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Numbers of the finished fits, and below them how they were obtained."""
    there = {name for fit in done.values() for name in fit.get("estimates", {})}
    columns = {name: title for name, title in row.columns.items() if name in there}
    head = ["fit", "updates", *columns.values(), *row.extra, "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for label, fit in done.items():
        estimates = fit.get("estimates", {})
        cells = [label, f"{fit['step']:,}"]
        cells += [
            figures(estimates[name], 4 if name in FINE else 2) if name in estimates else "" for name in columns
        ]
        cells += [text(fit) for text in row.extra.values()]
        lines.append("| " + " | ".join([*cells, f"{fit['seconds'] / 60:.1f}"]) + " |")
    lines += ["", *_how(row, done)]
    return lines


def _how(row: Row, done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Estimator, samples, points, protocol, seed and processor, said once where they agree."""
    shown = [(name, fit["estimates"]) for name, fit in done.items() if "estimates" in fit]
    told: dict[str, list[str]] = {}
    for name, estimates in shown:
        for e in (estimates[key] for key in row.columns if key in estimates):
            how = f"{e['name']}: {e['estimator']}"
            size = f"{e['samples']:,} samples, {e['points']:,} points, seed {e['seed']}; {e['protocol']}"
            told.setdefault(f"{how}; {size}", []).append(name)
    # A line that not all fits share says whose it is.
    everywhere = len(shown)
    lines = [line + (f" ({', '.join(of)})" if len(of) < everywhere else "") + "." for line, of in told.items()]
    weighted = [estimates["nll"] for _, estimates in shown if estimates.get("nll", {}).get("khat") is not None]
    if weighted:
        shares = [100 * float(e["khat"]) for e in weighted]
        error = max(float(e["monte_carlo_error"] or 0.0) for e in weighted)
        lines.append(
            f"Monte-Carlo error of −log p(x) up to {error:.3f}; Pareto k̂ > 0.7 at {min(shares):.0f} to "
            f"{max(shares):.0f} % "
            "of the points, where −log p(x) is too high in expectation and its Monte-Carlo error too small."
        )
    processors = sorted({str(fit["processor"]) for fit in done.values() if "processor" in fit})
    if processors:
        lines.append(f"Processor: one core of {', '.join(processors)}, shared with other work.")
    return [" ".join(lines)] if lines else []


def pairs_table(numbers: Found) -> list[str]:
    """Paired differences with their errors."""
    if not numbers["pairs"]:
        return []
    lines = ["", "| paired difference, nats | value | Monte-Carlo error | points |", "|---|---|---|---|"]
    for key, e in numbers["pairs"].items():
        error = e["monte_carlo_error"]
        lines.append(f"| {key} | {signed(e)} | {'' if error is None else f'{float(error):.3f}'} | {e['points']:,} |")
    return lines


BEGIN, END = "<!-- {name} table -->", "<!-- end -->"


def page_text(
    rows: Sequence[Row], found: Mapping[str, Found], name: str, text: str, page: Path, pictures: Path
) -> str:
    """``text`` of a page with the table between its two marks written anew."""
    lines = overview(rows, found)
    for row in rows:
        lines += details(row, found[row.name], pictures, page)
        lines += pairs_table(found[row.name])
    begin = BEGIN.format(name=name)
    before, mark, rest = text.partition(begin)
    if not mark:
        raise SystemExit(f"{page}: has no mark {begin}; put it and {END} where the table belongs")
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}"


def write_page(rows: Sequence[Row], found: Mapping[str, Found], name: str, page: Path, pictures: Path) -> None:
    """Replace what stands between the two marks of ``page``."""
    from varflow.core.files import write_text

    text = page.read_text() if page.exists() else f"{BEGIN.format(name=name)}\n{END}\n"
    write_text(page, page_text(rows, found, name, text, page, pictures))


# -- the command -------------------------------------------------------------------------------------


def main(rows: Sequence[Row], name: str, doc: str, argv: Sequence[str] | None = None) -> None:
    """list, run ROW …, table."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=["list", "run", "table"])
    parser.add_argument("rows", nargs="*", help="names as `list` prints them; all without any")
    parser.add_argument("--runs", type=Path, default=Path("runs") / name.rpartition(".")[2])
    parser.add_argument("--only", nargs="*", default=None, help="run: these fits of the row alone")
    parser.add_argument("--into", type=Path, default=None, help="table: the page to write; without it the overview")
    options = parser.parse_args(argv)
    known = {row.name: row for row in rows}
    missing = [row for row in options.rows if row not in known]
    if missing:
        parser.error(f"rows: unknown {missing}; choices: {list(known)}")
    chosen = [known[row] for row in options.rows] or list(rows)
    if options.action == "list":
        for row in chosen:
            ends = [state(work, options.runs / row.name / work.name) for work in row.fits]
            print(f"{row.name:<24} {ends.count('finished'):>2} of {len(ends):>2}  {row.source}: {row.title}")
            for work, end in zip(row.fits, ends, strict=True):
                if options.rows:
                    print(f"  {work.name:<30} {end}")
        return
    if options.action == "run":
        try:
            for row in chosen:
                wanted = [w for w in row.fits if options.only is None or w.name in options.only]
                for work in wanted:
                    folder = options.runs / row.name / work.name
                    work.run(folder)
                    print(f"{row.name}/{work.name}: {state(work, folder)}", flush=True)
        except Interrupted as error:
            print(error, file=sys.stderr)
            sys.exit(error.code)
        return
    results = RESULTS / name.rpartition(".")[2]
    pictures = Path("docs/experiments")
    found = {row.name: collect(row, options.runs, results, pictures) for row in rows}
    if options.into is None:
        print("\n".join(overview(rows, found)))
        return
    write_page(rows, found, name, options.into, pictures)
    print(options.into)
