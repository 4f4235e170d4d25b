"""A run as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varflow.core.errors import DataError, RunError
from varflow.core.files import read_json, read_metrics, write_text
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import outdated
from varflow.report import html
from varflow.settings.flags import spec_types
from varflow.settings.spec import RunSpec

_NAMES = {
    "elbo": "ELBO",
    "log_likelihood": "E log p(x|z)",
    "kl": "KL term",
    "ladj": "log|det| of the flow",
    "nll": "−log p(x)",
    "bits_per_dim": "bits/dim",
    "active_units": "active latents",
    "aggregated_distance": "distance of q(z) from p(z)",
    "code_bits": "bits of the prior per code",
    "perplexity": "perplexity of the codes",
    "usage": "codes in use",
    "kl_q_p": "KL(q‖p)",
    "kl_p_q": "KL(p‖q)",
    "kl_q_p_grid": "KL(q‖p), quadrature",
    "kl_p_q_grid": "KL(p‖q), quadrature",
    "eubo": "EUBO",
    "log_z": "log Z",
    "log_z_error": "error of log Z",
    "ess_reverse": "reverse effective sample size",
    "ess_forward": "forward effective sample size",
    "mode_coverage": "mode coverage",
    "mode_divergence": "divergence over modes",
    "mean_error": "error of the mean",
    "covariance_error": "error of the covariance",
    "log_evidence": "log p(D)",
    "log_evidence_best": "log p(D), maximum likelihood",
    "evidence_gap": "log p(D) short of the maximum",
    "log_evidence_blocks": "Σ log p(block)",
    "log_evidence_blocks_best": "Σ log p(block), maximum likelihood",
    "diagonal_gap": "least gap of a diagonal q",
    "shift_error": "‖Δ − x̄‖²",
    "shift_error_truth": "‖Δ − Δ*‖²",
    "scale_error": "‖σ − σ*‖²",
    "scale_error_best": "‖σ − σ̂‖²",
    "scale_floor": "floor of ‖σ − σ*‖²",
    "scale_floor_expected": "expected floor of ‖σ − σ*‖²",
    "noise_error": "‖Σ − Σ*‖²",
    "noise_error_best": "‖Σ − Σ̂‖²",
    "noise_floor": "floor of ‖Σ − Σ*‖²",
    "noise_floor_expected": "expected floor of ‖Σ − Σ*‖²",
    "nll_one_chain": "−log p(x), one chain",
    "acceptance": "acceptance",
    "lower": "log p(x), from below",
    "upper": "log p(x), from above",
    "gap": "upper − lower",
    "elbo_refined": "ELBO, q refined",
    "nll_expected": "−E log p*(x), exact",
    "nll_true": "−log p*(x)",
    "kl_true": "KL(p*‖p)",
    "log_px": "log p(x)",
    "log_px_annealed": "log p(x), annealed",
    "log_px_importance": "log p(x), importance weights",
    "inference_gap": "inference gap",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
}
#: What a file of estimates is of, by the last word of its name.
_KINDS = {
    "target": "Against the exact answers",
    "annealed": "Annealed importance sampling",
    "simulated": "Data simulated from the model: bounds from both sides",
    "gaps": "The inference gap taken apart",
    "curve": "The bound against the number of samples",
}
#: The numbers that a reader looks for first.
_HEADLINES = (
    "nll", "elbo", "bits_per_dim", "perplexity", "kl_q_p", "kl_p_q", "mode_coverage", "evidence_gap", "scale_error",
)  # fmt: skip

_ERRORS = (
    "± is one standard error over the examples of the split: how far the mean would move with "
    "other examples of the same kind. The Monte-Carlo error is what more posterior samples would "
    "remove. The k̂ column is the share of examples whose importance weights have too heavy a tail "
    "to be trusted. The ELBO is a lower bound of log p(x); −log p(x) is estimated by importance "
    "sampling, which errs upwards on average."
)

_OUTDATED = "The run has gone on since: these estimates are of weights that it no longer has. Make them again."

_TARGET_ERRORS = (
    "± is one standard error over fits that differ in their seeds; one fit has none. The Monte-Carlo "
    "error is what more samples would remove. KL(q‖p) = log Z − ELBO and KL(p‖q) = EUBO − log Z are "
    "0 where q is exact; effective sample sizes are 1 there. The k̂ column is the share of fits "
    "whose importance weights have too heavy a tail to be trusted."
)


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder from the files that are there, and return its path.

    It leads with the estimates; figures, training, settings, data, environment and the command that
    repeats the run follow. What is not there yet (an evaluation, figures) is said in its place. The
    page appears whole or not at all, and everything that comes from the folder is escaped.

    Raises:
        RunError: the folder holds no run, a file in it is damaged, or the page cannot be written.
    """
    folder = Path(folder)
    spec = _read(folder / "spec.json", dict)
    about, data = (_read(folder / name, dict, {}) for name in ("run.json", "data.json"))
    metrics = read_metrics(folder)
    title = _title(spec, about, data)
    body = [
        html.heading(title, level=1),
        _lead(spec, about, data),
        html.heading("Results"),
        *_results(folder, metrics),
        html.heading("Figures"),
        *_figures(folder / "figures"),
        html.heading("Training"),
        *_training(folder, metrics, about),
        html.heading("Configuration"),
        *_settings(spec),
        html.heading("Target" if data.get("support") == "none" else "Data"),
        _facts(data, "data.json"),
        html.heading("Environment"),
        _facts(_read(folder / "environment.json", dict, {}), "environment.json"),
        html.heading("How to reproduce"),
        *_reproduce(spec, about),
    ]
    path = folder / "report.html"
    write_text(path, html.page(title, body))
    return path


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
    for setting, value in whole.changes(recipes.find(str(name)).spec).items():
        flag = setting.replace("_", "-")
        if types[setting] is bool:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def _title(spec: Mapping[str, Any], about: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    if "posterior" in (about.get("own_parts") or ()):
        return f"{data.get('name') or 'unnamed data'}: a model given in Python"
    settings = {name: value for _, name, value, _ in _rows(spec)}
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
        names = ", ".join(map(str, own))
        said.append(f"Given in Python: {names}; the settings of these parts do not apply.")
    said += [f"Seed {value}." for _, name, value, _ in _rows(spec) if name == "seed"]
    return html.paragraph(" ".join(said), soft=True)


def _results(folder: Path, metrics: list[dict[str, Any]]) -> list[str]:
    files = sorted((folder / "evaluation").glob("*.json"))
    if not files:
        how = f"varflow evaluate {shlex.quote(str(folder))}"
        out = [
            html.paragraph("Not evaluated yet, so there are no estimates with errors. Make them:")
        ]
        out.append(html.code(how))
        scored = _scored(metrics, "validation")
        if scored:
            best = max(scored, key=lambda row: row["elbo"])
            out.append(
                html.paragraph(
                    f"Seen in training: a validation ELBO of {best['elbo']:.2f} nats at step "
                    f"{best.get('step')}, one draw of q(z|x) for each example. It is the best of "
                    f"{len(scored)} validations, which makes it optimistic, and has no error bar."
                )
            )
        return out
    out, explained = [], []
    for file in files:
        estimates = _estimates(file)
        of_target = file.stem == "target"
        # One fit has no spread over fits.
        lone = of_target and all(e.points == 1 for e in estimates)
        shown = Estimate.number if lone else Estimate.figures
        split, _, kind = file.stem.rpartition("-")
        name = _KINDS.get(kind, f"{file.stem} split") + (f", {split} split" if split else "")
        out.append(html.heading(name, level=3))
        if outdated(folder, _read(file, dict)):
            out.append(html.paragraph(_OUTDATED))
        headlines = [e for name in _HEADLINES for e in estimates if e.name == name]
        out.append(html.cards((_NAMES[e.name], shown(e), e.unit) for e in headlines))
        columns = (
            "quantity", "value" if lone else "value ± standard error", "unit", "Monte-Carlo error",
            "samples", "fits" if of_target else "points", "k̂ > 0.7", "estimator",
        )  # fmt: skip
        rows = [
            (
                _NAMES.get(e.name, e.name),
                shown(e),
                e.unit,
                "unknown" if e.monte_carlo_error is None else f"{e.monte_carlo_error:.2g}",
                f"{e.samples:,}",
                f"{e.points:,}",
                "–" if e.khat is None else f"{e.khat:.1%}",
                e.estimator,
            )
            for e in estimates
        ]
        out.append(html.table(columns, rows, whole=range(len(columns) - 1)))
        protocols = ", ".join(sorted({e.protocol for e in estimates}))
        seeds = ", ".join(sorted({str(e.seed) for e in estimates}))
        what = "Target" if of_target else "Protocol"
        out.append(
            html.paragraph(f"{what}: {protocols}. Seed of the estimates: {seeds}.", soft=True)
        )
        notes = _read(file, dict).get("notes")
        out += [html.paragraph(f"Note: {note}", soft=True) for note in notes or []]
        explained.append(_TARGET_ERRORS if of_target else _ERRORS)
    return [*out, *(html.paragraph(text, soft=True) for text in dict.fromkeys(explained))]


def _figures(folder: Path) -> list[str]:
    entries = [e for e in _read(folder / "index.json", list, []) if isinstance(e, dict)]
    out = []
    for entry in entries:
        # The name alone: an index that points out of its folder shows nothing from there.
        path = folder / Path(str(entry.get("file", ""))).name
        if path.name == "curves.png":
            continue
        title, caption = str(entry.get("title", path.stem)), str(entry.get("caption", ""))
        out.append(html.heading(title, level=3))
        try:
            out.append(html.picture(path.read_bytes(), title, caption))
        except OSError:
            out.append(html.paragraph(f"{path.name} is listed, but not in the folder."))
        except DataError as error:
            out.append(html.paragraph(str(error)))
    return out or [html.paragraph("No figures have been drawn for this run.")]


def _training(folder: Path, metrics: list[dict[str, Any]], about: Mapping[str, Any]) -> list[str]:
    if not metrics:
        return [html.paragraph("No metrics have been recorded.")]
    # The curves of a fit to a target have log Z drawn in, and stand among the figures.
    drawn = (folder / "figures" / "bound.png").exists()
    out = [] if drawn else [_curves(folder / "figures" / "curves.png", metrics)]
    rows = []
    later = read_metrics(folder / "prior")
    if later:
        note = "In the second stage the ELBO is log p(codes) of the prior that is fitted to them."
        out.append(html.paragraph(note, soft=True))
    for split, records, stage in (
        *((split, metrics, "") for split in ("train", "validation")),
        *((split, later, "second stage, ") for split in ("train", "validation")),
    ):
        scored = _scored(records, split)
        if scored:
            rows.append(_record(f"{stage}{split}, last", scored[-1]))
        if scored and split == "validation":
            rows.append(_record(f"{stage}validation, best", max(scored, key=lambda row: row["elbo"])))
    columns = (
        "record", "step", "epoch", "ELBO", "E log p(x|z)", "KL term", "log|det|", "steps/s",
        "seconds",
    )  # fmt: skip
    out.append(html.table(columns, rows, whole=range(len(columns))))
    each = "for each example" if _scored(metrics, "validation") else "of the training steps"
    note = f"Terms in nats {each}. They steer the fit and carry no error estimates."
    out.append(html.paragraph(note, soft=True))
    if outcome := about.get("outcome"):
        # Without validations there is no best one.
        never = outcome.get("best_elbo") == -math.inf
        told = {k: v for k, v in outcome.items() if not (never and k in ("best_step", "best_elbo"))}
        out += [html.heading("How the fit ended", level=3), html.facts(told)]
    return out


def _curves(drawn: Path, metrics: list[dict[str, Any]]) -> str:
    from varflow.figures.album import CURVES_CAPTION, draw_curves
    from varflow.figures.base import style

    try:
        if drawn.exists():
            picture = drawn.read_bytes()
        else:
            buffer = io.BytesIO()
            with style():
                draw_curves(metrics).savefig(buffer, dpi=150, format="png")
            picture = buffer.getvalue()
        return html.picture(picture, "Learning curves", CURVES_CAPTION)
    except DataError as error:
        return html.paragraph(str(error))


def _record(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    def show(key: str, form: str) -> str:
        value = row.get(key)
        return format(value, form) if isinstance(value, int | float) else "–"

    terms = (show(key, ",.2f") for key in ("elbo", "log_likelihood", "kl", "ladj"))
    speed = (show("steps_per_second", ",.1f"), show("seconds", ",.1f"))
    return (name, show("step", ",d"), show("epoch", "g"), *terms, *speed)


def _settings(spec: Mapping[str, Any]) -> list[str]:
    out = [
        html.paragraph("Marked settings differ from the defaults in the last column.", soft=True)
    ]
    rows = _rows(spec)
    for group in dict.fromkeys(group for group, *_ in rows):
        own = [(name, value, default) for at, name, value, default in rows if at == group]
        out.append(html.heading(group, level=3))
        out.append(
            html.table(
                ("setting", "value", "default"),
                [tuple(map(html.plain, row)) for row in own],
                marked=[k for k, (_, value, default) in enumerate(own) if value != default],
                kind="settings",
            )
        )
    return out


def _facts(values: Mapping[str, Any], file: str) -> str:
    return html.facts(values) if values else html.paragraph(f"{file} is not in the folder.")


def _reproduce(spec: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    out = []
    if about.get("own_parts") or about.get("data_given"):
        out.append(
            html.paragraph(
                "Parts or data were given in Python, so the command line alone does not repeat "
                "this run: call varflow.fit with the same objects and the settings of this command."
            )
        )
    out.append(html.code(command(spec, about.get("recipe"))))
    note = (
        "Same seed, versions, device, precision and number of threads: same numbers. spec.json, "
        "data.json and environment.json in the run folder hold all of them."
    )
    return [*out, html.paragraph(note, soft=True)]


def _rows(spec: Mapping[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """(role, setting, value, default of the chosen part) in the order of the spec."""
    return [
        (role, name, value, default)
        for role, part in RunSpec.from_dict(spec).parts.items()
        for (name, value), default in zip(part.values().items(), part.defaults().values(), strict=True)
    ]


def _estimates(file: Path) -> list[Estimate]:
    estimates = _read(file, dict).get("estimates")
    if not isinstance(estimates, Mapping):
        raise RunError(f"{file}: holds no estimates; evaluate the run again")
    return [Estimate.from_dict(values) for values in estimates.values()]


def _scored(metrics: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [
        row
        for row in metrics
        if row.get("split") == split and isinstance(row.get("elbo"), int | float)
    ]


def _read(path: Path, kind: type, missing: Any = None) -> Any:
    """A JSON file of one kind; ``missing`` where it is not there, if that is given."""
    if missing is not None and not path.exists():
        return missing
    value = read_json(path)
    if not isinstance(value, kind):
        raise RunError(f"{path}: holds a {type(value).__name__}; restore the file or fit again")
    return value
