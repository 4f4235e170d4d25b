"""A run as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from varflow.errors import RunError
from varflow.files import read_json, write_text
from varflow.specs import RunSpec

_NAMES = {
    "elbo": "ELBO",
    "log_likelihood": "E log p(x|z)",
    "kl": "KL term",
    "ladj": "log|det| of the flow",
    "nll": "−log p(x)",
    "bits_per_dim": "bits/dim",
    "active_units": "active latents",
    "aggregated_distance": "distance of q(z) from p(z)",
}
#: The numbers that a reader looks for first.
_HEADLINES = ("nll", "elbo", "bits_per_dim")

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5c5c66; --paper: #fff; --line: #d9d9de;
  --tint: #f4f5f7; --mark: #fff2cc; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a5a5ad; --paper: #17181b;
  --line: #38393f; --tint: #212328; --mark: #4a3f1c; --accent: #6db8e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; padding-bottom: 0.25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1rem 0; }
.card { background: var(--tint); border-radius: 8px; padding: 0.7rem 1rem; min-width: 12rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: left; padding: 0.3rem 0.7rem 0.3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; }
td.number { white-space: nowrap; overflow-wrap: normal; }
table.settings td:first-child { width: 14rem; }
tr.changed td { background: var(--mark); }
figure { margin: 1.25rem 0; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; background: #fff;
  border-radius: 6px; padding: 6px; }
pre { background: var(--tint); border-radius: 6px; padding: 0.7rem 1rem; white-space: pre-wrap;
  font-size: 0.88rem; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --tint: #f4f4f4;
    --mark: #eee; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2, h3 { break-after: avoid; }
  figure, tr, .card { break-inside: avoid; }
  figure img { max-height: 20cm; width: auto; }
  tr.changed td:first-child { font-weight: 700; }
}
"""


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder from the files that are there, and return its path.

    It leads with the estimates, then figures, training, settings, environment, and the command that
    repeats the run. What is not there yet (an evaluation, figures) is said in its place. The file
    appears whole or not at all, and everything that comes from the folder is escaped.

    Raises:
        RunError: the folder holds no run, a file in it is damaged, or the report cannot be written.
    """
    folder = Path(folder)
    spec = _object(folder / "spec.json")
    about = _optional(folder / "run.json")
    data = _optional(folder / "data.json")
    metrics = _metrics(folder / "metrics.jsonl")
    title = _title(spec, data)
    sections = [
        f"<h1>{escape(title)}</h1>",
        _lead(spec, about, data),
        *_results(folder, metrics),
        *_figures(folder),
        *_training(folder, metrics, about),
        *_settings(spec, about),
        *_facts("Data", data, "data.json"),
        *_facts("Environment", _optional(folder / "environment.json"), "environment.json"),
        *_reproduce(spec, about),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _title(spec: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    posterior = spec.get("posterior", {})
    flow = posterior.get("flow", "none")
    kind = "amortized " if posterior.get("amortized") else ""
    q = "Gaussian posterior" if flow == "none" else f"Gaussian posterior + {kind}{flow} flow"
    name = data.get("name") or spec.get("data", {}).get("data", "unnamed data")
    return f"{name}: {posterior.get('latent', '?')} latents, {q}"


def _lead(spec: Mapping[str, Any], about: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    parts = []
    if protocol := data.get("protocol"):
        parts.append(f"Protocol of the data: {protocol}.")
    if recipe := about.get("recipe"):
        parts.append(f"Recipe: {recipe}.")
    if own := about.get("own_parts"):
        parts.append(f"Parts given in Python: {', '.join(map(str, own))}; settings of these do not apply.")
    if "seed" in spec.get("training", {}):
        parts.append(f"Seed {spec['training']['seed']}.")
    return _paragraph(" ".join(parts), soft=True)


def _results(folder: Path, metrics: list[dict[str, Any]]) -> list[str]:
    out = [_heading("Results")]
    files = sorted((folder / "evaluation").glob("*.json"))
    if not files:
        out.append(
            _paragraph(
                "Not evaluated yet: there are no estimates with errors. "
                f"`varflow evaluate {shlex.quote(str(folder.name))}` makes them."
            )
        )
        values = [row for row in metrics if row.get("split") == "validation" and _is_number(row.get("elbo"))]
        if values:
            best = max(values, key=lambda row: row["elbo"])
            out.append(
                _paragraph(
                    f"Seen in training: best validation ELBO {best['elbo']:.2f} nats at step {best.get('step')}, "
                    "one draw of q(z|x) for each example, chosen as the best of "
                    f"{len(values)} validations and therefore slightly optimistic."
                )
            )
        return out
    for file in files:
        values = _object(file)
        estimates = _estimates(values, file)
        out.append(f"<h3>{escape(file.stem)} split</h3>")
        cards = [
            f'<div class="card">{escape(_label(e))}<b>{escape(_value(e))}</b>'
            f'<span class="soft">{escape(str(e.get("unit", "")))}</span></div>'
            for name in _HEADLINES
            for e in estimates
            if e.get("name") == name
        ]
        out.append(f'<div class="cards">{"".join(cards)}</div>')
        columns = ("quantity", "value", "unit", "Monte-Carlo error", "points", "samples", "k̂ > 0.7", "estimator")
        rows = [
            (
                _label(e),
                _value(e),
                e.get("unit", ""),
                _number(e.get("monte_carlo_error")),
                _number(e.get("points")),
                _number(e.get("samples")),
                "–" if not _is_number(e.get("khat")) else f"{e['khat']:.1%}",
                e.get("estimator", ""),
            )
            for e in estimates
        ]
        out.append(_table(columns, rows, numbers={1, 3, 4, 5, 6}))
        seeds = sorted({str(e["seed"]) for e in estimates if e.get("seed") is not None})
        protocols = sorted({str(e["protocol"]) for e in estimates if e.get("protocol")})
        out.append(
            _paragraph(
                f"Protocol: {', '.join(protocols) or 'not stated'}. Seed: {', '.join(seeds) or 'not stated'}.",
                soft=True,
            )
        )
    out.append(
        _paragraph(
            "± is one standard error over the examples of the split: how far the mean would move with other "
            "examples of the same kind. The Monte-Carlo error is what a larger number of posterior samples would "
            "remove. The k̂ column is the share of examples whose importance weights have too heavy a tail to be "
            "trusted. ELBO is a lower bound of log p(x); −log p(x) is estimated by importance sampling and is "
            "an upper bound in expectation.",
            soft=True,
        )
    )
    return out


def _figures(folder: Path) -> list[str]:
    out = [_heading("Figures")]
    index = folder / "figures" / "index.json"
    entries = [entry for entry in _list(index) if entry.get("file") != "curves.png"]
    if not entries:
        return [*out, _paragraph("No figures have been drawn for this run.")]
    for entry in entries:
        # Only the name: an index that points elsewhere shows nothing from there.
        path = index.parent / Path(str(entry.get("file", ""))).name
        title, caption = str(entry.get("title", path.stem)), str(entry.get("caption", ""))
        out.append(f"<h3>{escape(title)}</h3>")
        try:
            out.append(_picture(path.read_bytes(), title, caption))
        except OSError:
            out.append(_paragraph(f"{path.name} is missing from the folder."))
    return out


def _training(folder: Path, metrics: list[dict[str, Any]], about: Mapping[str, Any]) -> list[str]:
    out = [_heading("Training")]
    if not metrics:
        return [*out, _paragraph("No metrics have been recorded.")]
    from varflow.errors import DataError
    from varflow.figures.gallery import CURVES_CAPTION, draw_curves
    from varflow.figures.style import style

    drawn = folder / "figures" / "curves.png"
    try:
        if drawn.exists():
            picture = drawn.read_bytes()
        else:
            buffer = io.BytesIO()
            with style():
                draw_curves(metrics).savefig(buffer, dpi=150, format="png")
            picture = buffer.getvalue()
        out.append(_picture(picture, "Learning curves", CURVES_CAPTION))
    except DataError as error:
        out.append(_paragraph(str(error)))
    rows = []
    for split in ("train", "validation"):
        own = [row for row in metrics if row.get("split") == split]
        if own:
            rows.append(_record(f"{split}, last", own[-1]))
        scored = [row for row in own if _is_number(row.get("elbo"))]
        if split == "validation" and scored:
            rows.append(_record(f"{split}, best", max(scored, key=lambda row: row["elbo"])))
    out.append(
        _table(
            ("record", "step", "epoch", "ELBO", "E log p(x|z)", "KL term", "log|det|", "steps/s", "seconds"),
            rows,
            numbers=set(range(1, 9)),
        )
    )
    out.append(
        _paragraph("Nats for each example, without error estimates: these steer the fit.", soft=True)
    )
    if outcome := about.get("outcome"):
        out.append(f"<h3>How the fit ended</h3>{_pairs(_flat(outcome))}")
    return out


def _record(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("step", "epoch", "elbo", "log_likelihood", "kl", "ladj", "steps_per_second", "seconds")
    return (name, *(_number(row.get(key)) for key in keys))


def _settings(spec: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    out = [_heading("Configuration")]
    out.append(_paragraph("Marked rows differ from the defaults, which are in the last column.", soft=True))
    defaults = RunSpec().to_dict()
    for group, settings in spec.items():
        if not isinstance(settings, Mapping):
            continue
        rows = []
        for name, value in settings.items():
            default = defaults.get(group, {}).get(name)
            changed = ' class="changed"' if value != default else ""
            cells = "".join(f"<td>{escape(_plain(cell))}</td>" for cell in (name, value, default))
            rows.append(f"<tr{changed}>{cells}</tr>")
        out.append(
            f'<h3>{escape(str(group))}</h3><div class="scroll"><table class="settings">'
            f"<tr><th>setting</th><th>value</th><th>default</th></tr>{''.join(rows)}</table></div>"
        )
    return out


def _facts(title: str, values: Mapping[str, Any], file: str) -> list[str]:
    if not values:
        return [_heading(title), _paragraph(f"{file} is not in the folder.")]
    return [_heading(title), _pairs(_flat(values))]


def _reproduce(spec: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    out = [_heading("How to reproduce")]
    if about.get("own_parts") or about.get("data_given"):
        out.append(
            _paragraph(
                "Parts or data were given in Python, so the command line alone does not repeat this run: "
                "call varflow.fit with the same objects and these settings."
            )
        )
    out.append(f"<pre>{escape(command(spec))}</pre>")
    out.append(
        _paragraph(
            "The same seed, versions, device, precision and number of threads give the same numbers; the files "
            "spec.json, data.json (with checksums) and environment.json of the run hold all of them.",
            soft=True,
        )
    )
    return out


def command(spec: Mapping[str, Any]) -> str:
    """The command line that fits a spec: the settings that differ from the defaults, as flags.

    >>> command({"data": {"data": "digits"}, "posterior": {"amortized": True, "latent": 2}})
    'varflow fit --data digits --amortized --latent 2'
    """
    defaults = RunSpec().to_dict()
    words = ["varflow", "fit"]
    for group, settings in spec.items():
        if not isinstance(settings, Mapping):
            continue
        for name, value in settings.items():
            if value == defaults.get(group, {}).get(name):
                continue
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
    return shlex.join(words)
