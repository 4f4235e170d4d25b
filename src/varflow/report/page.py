"""A run as one HTML page that needs nothing else: no network, pictures inside."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varflow.core.columns import Column
from varflow.core.errors import DataError, RunError
from varflow.core.files import read_metrics, write_text
from varflow.core.settings import SEVERAL
from varflow.data.kinds import HEADS, overview
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import outdated
from varflow.report import film, points
from varflow.report.names import HEADLINES, KINDS, NAMES, name_of
from varflow.report.read import read_kind
from varflow.report.render import Picture, drawn, picture, render
from varflow.settings.flags import spec_types
from varflow.settings.spec import RunSpec

_ERRORS = (
    "± is one standard error over the examples of the split: how far the mean would move with "
    "other examples of the same kind. The Monte-Carlo error is what more posterior samples would "
    "remove. The k̂ column is the share of examples whose importance weights have too heavy a tail "
    "to be trusted. The ELBO is a lower bound of log p(x); −log p(x) is estimated by importance "
    "sampling, which errs upwards on average."
)

_OUTDATED = "The run has gone on since: these estimates are of weights that it no longer has. Make them again."

_REMOVED_ERRORS = (
    "± is one standard error over the rows, whose cells are taken together. Of removed cells all methods see the "
    "same rest of the row; a line with 'less' is the model's value less the other one's on the same cells, so below "
    "0 the model has the lower loss, above 0 the higher accuracy."
)

_TARGET_ERRORS = (
    "± is one standard error over fits that differ in their seeds; one fit has none. The Monte-Carlo "
    "error is what more samples would remove. KL(q‖p) = log Z − ELBO and KL(p‖q) = EUBO − log Z are "
    "0 where q is exact; effective sample sizes are 1 there. The k̂ column is the share of fits "
    "whose importance weights have too heavy a tail to be trusted."
)


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder from the files that are there, and return its path.

    It leads with pictures, the numbers beside them: for latents a scatter whose points can be asked, for a target in
    the plane its draws as they move. All figures, all estimates and training follow; settings, data, environment and
    the command that repeats the run are folded. What is not there yet (an evaluation, figures) is said in its place.
    The page appears whole or not at all, and everything that comes from the folder is escaped.

    Raises:
        RunError: the folder holds no run, a file in it is damaged, or the page cannot be written.
    """
    folder = Path(folder)
    spec = read_kind(folder / "spec.json", dict)
    about, data = (read_kind(folder / name, dict, {}) for name in ("run.json", "data.json"))
    metrics = read_metrics(folder)
    later = read_metrics(folder / "prior")
    of_target = data.get("support") == "none"
    results = [result_of(folder, file) for file in sorted((folder / "evaluation").glob("*.json"))]
    scatter, moving = points.of_folder(folder / "figures"), film.of_folder(folder / "figures")
    figures = _figures(folder / "figures", without=_shown_before(scatter, moving))
    # Something to look at comes first in any case.
    ahead = [] if scatter or moving else figures[:1]
    text = render(
        "run.html",
        title=title_of(spec, about, data),
        lead=_lead(spec, about, data),
        results=results,
        explained=list(dict.fromkeys(result["explained"] for result in results)),
        evaluate=shlex.join(["varflow", "evaluate", str(folder)]),
        seen=seen_in_training(metrics),
        points=scatter,
        film=moving,
        ahead=ahead,
        figures=figures[len(ahead) :],
        known=_known(about, data),
        curves=_curves(folder / "figures", metrics),
        trained=bool(metrics),
        record_columns=_RECORD,
        records=_records(metrics) + _records(later, "code prior, "),
        code_prior=bool(later),
        validated=bool(_scored(metrics, "validation")),
        outcome=_outcome(about),
        settings=_settings(spec),
        of_target=of_target,
        data=data,
        column_heads=HEADS,
        column_rows=columns_of(folder),
        environment=read_kind(folder / "environment.json", dict, {}),
        given_in_python=bool(about.get("own_parts") or about.get("data_given")),
        command=command(spec, about.get("recipe")),
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def columns_of(folder: Path) -> list[tuple[str, str, str, str]]:
    """A row for each column of a table whose columns are each of a kind; none of other data.

    Raises:
        RunError: preprocessing.json is not what varflow wrote.
    """
    learned = read_kind(folder / "preprocessing.json", dict, {}).get("learned") or {}
    if "columns" not in learned:
        return []
    try:
        return overview([Column.from_json(held) for held in learned["columns"]], learned["dropped"])
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise RunError(f"{folder / 'preprocessing.json'}: not what varflow wrote ({error}); restore it") from error


#: A budget and the same in the other unit.
_OTHER_UNIT = {"steps": "epochs", "epochs": "steps", "prior_steps": "prior_epochs", "prior_epochs": "prior_steps"}


def command(spec: Mapping[str, Any], recipe: str | None = None) -> str:
    """The command line that fits a spec: a recipe, and the settings that differ from it as flags.

    A spec that came from no recipe is spelled out against the first one of the table.

    >>> from varflow.settings.recipes import find
    >>> command(find("digits").spec.replace(latent=2, amortized=True).to_dict(), "digits")
    'varflow fit digits --latent 2 --amortized'
    """
    from varflow.settings import recipes

    name = recipe if recipe in recipes.TABLE else next(iter(recipes.TABLE))
    words = ["varflow", "fit", str(name)]
    whole = RunSpec.from_dict(spec)
    types = spec_types(whole)
    changes = whole.changes(recipes.find(str(name)).spec)
    for setting, value in changes.items():
        if value is None and changes.get(_OTHER_UNIT.get(setting, "")) is not None:
            # The budget in the other unit replaces it.
            continue
        flag = setting.replace("_", "-")
        if types[setting] is bool:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif types[setting] == SEVERAL:
            words += [word for one in value for word in (f"--{flag}", str(one))]
        else:
            # 100 epochs are typed so, and not as the 100.0 that they are kept as.
            whole_number = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
            words += [f"--{flag}", str(int(value) if whole_number else value)]
    return shlex.join(words)


def title_of(spec: Mapping[str, Any], about: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """A run in a line, from the content of its spec.json, run.json and data.json."""
    if "posterior" in (about.get("own_parts") or ()):
        return f"{data.get('name') or 'unnamed data'}: a model given in Python"
    settings = {name: value for _, name, value, _ in _rows(spec)}
    if settings.get("likelihood") == "identity" and "prior" in (about.get("own_parts") or ()):
        return f"{data.get('name') or 'unnamed data'}: a density given in Python"
    if settings.get("likelihood") == "identity":
        length = settings.get("prior_length")
        of_steps = f" of {length} steps" if length else ""
        return f"{data.get('name') or 'unnamed data'}: a density, {settings.get('prior')}{of_steps}"
    flow = settings.get("flow", "none")
    if data.get("support") == "none":
        base = "a fixed" if settings.get("base_moments") == "fixed" else "a Gaussian"
        parts = [f"{base} base"]
        parts += [] if flow == "none" else [f"{settings.get('length')} {flow} steps"]
        steps = settings.get("leapfrog")
        parts += [f"{steps} leapfrog steps"] if steps else []
        fits = settings.get("fits", 1)
        several = f", {fits} fits" if fits != 1 else ""
        size = "×".join(map(str, data.get("event_shape") or ["?"]))
        return f"{data.get('name')} in {size} dimensions: {', '.join(parts)}{several}"
    if settings.get("posterior") == "quantizer":
        size = f"{settings.get('codes')} codes of {settings.get('code_features')} features"
        return f"{data.get('name') or 'unnamed data'}: {size}, prior {settings.get('prior')}"
    kind = "amortized " if settings.get("amortized") else ""
    posterior = "Gaussian posterior" + ("" if flow == "none" else f", {kind}{flow} flow")
    name = data.get("name") or settings.get("data", "unnamed data")
    steps, top = settings.get("leapfrog"), settings.get("top_latent")
    posterior += f", {steps} leapfrog steps" if steps else ""
    latents = f"{settings.get('latent', '?')}" + (f" + {top}" if top else "")
    return f"{name}: {latents} latents, {posterior}"


def _lead(spec: Mapping[str, Any], about: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    said = []
    protocol = data.get("protocol")
    if protocol and data.get("support") != "none":
        said.append(f"Protocol of the data: {protocol}.")
    if recipe := about.get("recipe"):
        said.append(f"Recipe: {recipe}.")
    if own := about.get("own_parts"):
        paths = own if isinstance(own, dict) else {}
        names = ", ".join(f"{name} ({paths[name][0]})" if paths.get(name) else str(name) for name in own)
        said.append(f"Given in Python: {names}; the settings of these parts do not apply.")
    said += [f"Seed {value}." for _, name, value, _ in _rows(spec) if name == "seed"]
    return " ".join(said)


def result_of(folder: Path, file: Path) -> dict[str, Any]:
    """One evaluation: its table, and the numbers that a reader looks for first."""
    stored, estimates = read_kind(file, dict), _estimates(file)
    of_target = file.stem == "target"
    # One fit has no spread over fits.
    lone = of_target and all(e.points == 1 for e in estimates)
    shown = Estimate.number if lone else Estimate.figures
    split, _, kind = file.stem.rpartition("-")
    protocols = ", ".join(sorted({e.protocol for e in estimates}))
    seeds = ", ".join(sorted({str(e.seed) for e in estimates}))
    columns = (
        "quantity", "value" if lone else "value ± standard error", "unit", "Monte-Carlo error",
        "samples", "fits" if of_target else "points", "k̂ > 0.7", "estimator",
    )  # fmt: skip
    rows = [
        (
            name_of(e.name),
            shown(e),
            e.unit or "–",
            "unknown" if e.monte_carlo_error is None else f"{e.monte_carlo_error:.2g}",
            f"{e.samples:,}",
            f"{e.points:,}",
            "–" if e.khat is None else f"{e.khat:.1%}",
            e.estimator,
        )
        for e in estimates
    ]
    return {
        "title": KINDS.get(kind, f"Estimates on the {file.stem} split")
        + (f", {split} split" if split else ""),
        "outdated": _OUTDATED if outdated(folder, stored) else "",
        "cards": [
            (NAMES[e.name], shown(e), e.unit)
            for name in HEADLINES
            for e in estimates
            if e.name == name
        ],
        "columns": columns,
        "rows": rows,
        "about": f"{'Target' if of_target else 'Protocol'}: {protocols}. Seed of the estimates: {seeds}.",
        "notes": stored.get("notes") or [],
        "explained": _TARGET_ERRORS if of_target else _REMOVED_ERRORS if kind == "removed" else _ERRORS,
    }


def seen_in_training(metrics: list[dict[str, Any]]) -> str:
    """What training saw of the bound; empty where it validated nothing."""
    scored = _scored(metrics, "validation")
    if not scored:
        return ""
    best = max(scored, key=lambda row: row["elbo"])
    return (
        f"Seen in training: a validation ELBO of {best['elbo']:.2f} nats at step {best.get('step')}, one draw of "
        f"q(z|x) for each example. It is the best of {len(scored)} validations, which makes it optimistic, and has "
        "no error bar."
    )


def _shown_before(scatter: points.Scatter | None, moving: film.Film | None) -> set[str]:
    """Files of figures that a page has in a better form, or elsewhere."""
    found = {"curves.png"}
    if scatter is not None:
        found |= {"latents.png", "latents_after.png"}
    return found | ({"training.gif"} if moving is not None else set())


def _known(about: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands beside the numbers: how much was learned from, and for how long."""
    sizes, outcome = data.get("sizes"), about.get("outcome") or {}
    found = []
    if isinstance(sizes, Mapping) and data.get("support") != "none":
        found += [(f"{split} rows", f"{size:,}") for split, size in sizes.items() if isinstance(size, int)]
    if isinstance(outcome.get("step"), int):
        found.append(("steps", f"{outcome['step']:,}"))
    if isinstance(outcome.get("seconds"), int | float):
        found.append(("seconds", f"{outcome['seconds']:,.1f}"))
    return found


def _figures(folder: Path, without: set[str]) -> list[Picture]:
    entries = [e for e in read_kind(folder / "index.json", list, []) if isinstance(e, dict)]
    out = []
    for entry in entries:
        # The name alone: an index that points out of its folder shows nothing from there.
        path = folder / Path(str(entry.get("file", ""))).name
        if path.name in without:
            continue
        title, caption = str(entry.get("title", path.stem)), str(entry.get("caption", ""))
        try:
            out.append(picture(path.read_bytes(), title, caption))
        except OSError:
            out.append(Picture(title, f"{path.name} is listed, but not in the folder."))
        except DataError as error:
            out.append(Picture(title, str(error)))
    return out


def _curves(folder: Path, metrics: list[dict[str, Any]]) -> Picture | None:
    """The learning curves; those of a fit to a target have log Z drawn in, and stand among the figures."""
    from varflow.figures.base import style
    from varflow.figures.curves import CAPTION, curves_in_a_row

    if not metrics or (folder / "bound.png").exists():
        return None
    title, path = "Learning curves", folder / "curves.png"
    try:
        if path.exists():
            return picture(path.read_bytes(), title, CAPTION)
        with style():
            return drawn(curves_in_a_row(metrics), title, CAPTION)
    except DataError as error:
        return Picture(title, str(error))


_RECORD = (
    "record", "step", "epoch", "ELBO", "E log p(x|z)", "KL term", "log|det|", "steps/s", "seconds",
)  # fmt: skip


def _records(metrics: list[dict[str, Any]], stage: str = "") -> list[tuple[str, ...]]:
    """The last record of each split, and the best validation."""
    rows = []
    for split in ("train", "validation"):
        scored = _scored(metrics, split)
        if scored:
            rows.append(_record(f"{stage}{split}, last", scored[-1]))
        if scored and split == "validation":
            rows.append(
                _record(f"{stage}validation, best", max(scored, key=lambda row: row["elbo"]))
            )
    return rows


def _record(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    def show(key: str, form: str) -> str:
        value = row.get(key)
        return format(value, form) if isinstance(value, int | float) else "–"

    terms = (show(key, ",.2f") for key in ("elbo", "log_likelihood", "kl", "ladj"))
    speed = (show("steps_per_second", ",.1f"), show("seconds", ",.1f"))
    return (name, show("step", ",d"), show("epoch", "g"), *terms, *speed)


def _outcome(about: Mapping[str, Any]) -> dict[str, Any]:
    outcome = about.get("outcome") or {}
    # Without validations there is no best one.
    never = outcome.get("best_elbo") == -math.inf
    return {k: v for k, v in outcome.items() if not (never and k in ("best_step", "best_elbo"))}


def _settings(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = _rows(spec)
    out = []
    for group in dict.fromkeys(group for group, *_ in rows):
        own = [(name, value, default) for at, name, value, default in rows if at == group]
        marked = [k for k, (_, value, default) in enumerate(own) if value != default]
        out.append({"name": group, "rows": own, "marked": marked})
    return out


def _rows(spec: Mapping[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """(role, setting, value, default of the chosen part) in the order of the spec."""
    return [
        (role, name, value, default)
        for role, part in RunSpec.from_dict(spec).parts.items()
        for (name, value), default in zip(part.values().items(), part.defaults().values(), strict=True)
    ]


def _estimates(file: Path) -> list[Estimate]:
    estimates = read_kind(file, dict).get("estimates")
    if not isinstance(estimates, Mapping):
        raise RunError(f"{file}: holds no estimates; evaluate the run again")
    return [Estimate.from_dict(values) for values in estimates.values()]


def _scored(metrics: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [
        row
        for row in metrics
        if row.get("split") == split and isinstance(row.get("elbo"), int | float)
    ]

