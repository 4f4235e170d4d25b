"""The model card of a run: README.md in its folder, made of the files beside it and of nothing else.

What varflow writes stands between two marks. What is written above and below them, and the front matter that the hub
reads, is the user's and stays as it is; so does a README.md without the marks.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from markupsafe import Markup

from varflow.core.errors import RunError
from varflow.core.files import ARTEFACT, TRAINING_ROWS, present, read_metrics, write_text
from varflow.core.settings import described, names_in, read
from varflow.data import PROTOCOLS, SOURCES
from varflow.data.kinds import HEADS
from varflow.data.protocols import restored
from varflow.report.page import columns_of, result_of, seen_in_training, title_of
from varflow.report.read import read_kind
from varflow.report.render import code, plain, render
from varflow.settings.roles import Chosen
from varflow.settings.spec import SPEC_VERSION, RunSpec

CARD = "README.md"
BEGIN = "<!-- varflow writes from here on; your own words above stay -->"
END = "<!-- varflow writes up to here; your own words below stay -->"

#: A table with more columns is described in a sentence.
_COLUMNS = 40
#: What is learned of single columns → its name in a table.
_LEARNED = {"loc": "location", "scale": "scale", "step": "step", "tail": "tail ν"}
#: The roles that say what the model is.
_MODEL = (
    "target", "likelihood", "network", "posterior", "flow", "hamiltonian", "extended_flow", "layers_above", "prior",
    "objective",
)  # fmt: skip
_ERRORS = (
    "± is one standard error over the examples, the Monte-Carlo error what more samples would remove; the share of "
    "examples with Pareto k̂ > 0.7 is that whose importance weights cannot be trusted. Log-probabilities are in nats."
)
_TARGET_ERRORS = (
    "± is one standard error over fits that differ in their seeds, which a single fit has not; the Monte-Carlo error "
    "is what more samples would remove. KL(q‖p) and KL(p‖q) are 0 where q is exact."
)
_LIMITS = (
    "It describes data like those above and no others: rows from another source or in other units get numbers that "
    "mean nothing. A low log p(x) does not prove a row wrong, and a drawn x is no observation. Nothing above tests "
    "the model for decisions about people, and its weights can give away traits of the rows that it was fitted to."
)
_TARGET_LIMITS = (
    "q(z) stands for this one density and for no other. What it leaves out (a mode, a tail) its samples do not show, "
    "so check them against the numbers above before a result rests on them."
)


def write_card(folder: str | Path) -> Path | None:
    """Write README.md into a run folder and return its path; None where it holds a README.md of the user's own.

    Raises:
        RunError: the folder holds no run, a file in it is damaged, or the card cannot be written.
    """
    folder = Path(folder)
    path = folder / CARD
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if before is not None and not written_by_varflow(before):
        return None
    write_text(path, card(folder, before=before))
    return path


def written_by_varflow(text: str) -> bool:
    """Whether a README.md has the marks between which varflow writes."""
    return BEGIN in text and END in text.partition(BEGIN)[2]


def card(
    folder: Path,
    address: str | None = None,
    before: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> str:
    """The text of the card of a run.

    Args:
        folder: the run.
        address: what ``vf.load`` is given; without it the name of the folder.
        before: the card so far, whose words outside the marks are kept.
        sizes: file → bytes, of the files to list; without it all of a run that are in the folder.

    Raises:
        RunError: no run, or a damaged file.
    """
    spec = RunSpec.from_dict(read_kind(folder / "spec.json", dict))
    about, data = (read_kind(folder / name, dict) for name in ("run.json", "data.json"))
    # They stand in a line of Python below.
    own = [name for name in map(str, about.get("own_parts") or ()) if name.isidentifier()]
    of_target = data.get("support") == "none"
    results = [result_of(folder, file) for file in sorted((folder / "evaluation").glob("*.json"))]
    place = address or folder.resolve().name
    text = render(
        "card.md",
        title=title_of(spec.to_dict(), about, data),
        kind=_kind(spec, data, own),
        state=_state(folder, about),
        parts=_parts(spec, data, about.get("own_parts") or ()),
        training=_training(spec, about),
        of_target=of_target,
        data=_target(data) if of_target else _data(folder, data, about),
        preprocessing="" if of_target else _preprocessing(folder, data),
        learned=None if of_target else _learned(folder, data),
        results=results,
        evaluate=shlex.join(["varflow", "evaluate", place]),
        seen=seen_in_training(read_metrics(folder)),
        explained=[_TARGET_ERRORS if of_target else _ERRORS] if results else [],
        usage=Markup("\n".join(usage(spec, data, own, place))),
        commands=_commands(place, of_target),
        limits=_TARGET_LIMITS if of_target else _LIMITS,
        files=_files(_sizes(folder) if sizes is None else sizes),
    )
    written = f"{BEGIN}\n{text.strip()}\n{END}"
    if before is None or not written_by_varflow(before):
        return f"{_front_matter(spec, of_target, own)}\n{written}\n"
    above, _, rest = before.partition(BEGIN)
    return above + written + rest.partition(END)[2]


def usage(spec: RunSpec, data: Mapping[str, Any], own: Sequence[str], place: str) -> list[str]:
    """At most five lines of Python that use the model: only methods that it has."""
    parts = ", ".join(f"{json.dumps(name)}: {name}" for name in own)
    given = f", parts={{{parts}}}" if own else ""
    lines = ["import varflow as vf", f"run = vf.load({json.dumps(place)}{given})"]
    if data.get("support") == "none":
        fits = int(spec.get("fits", 1))
        lines.append("z = run.sample(5)  # draws of q(z)" + (f", of each of {fits} fits" if fits > 1 else ""))
        if not own and not spec.get("leapfrog"):
            lines.append(f"log_q = run.log_q({'z[0]' if fits > 1 else 'z'})  # log q(z) in nats")
        return lines
    lines.append("x = run.sample(5)  # in the units of the data")
    kind = _model(spec, own)
    how = {"density": "exact", "codes": "a lower bound", "latent": "by importance sampling"}.get(kind)
    lines.append("log_p = run.log_prob(x)  # nats for each row" + (f", {how}" if how else ""))
    if kind == "latent":
        lines.append("z = run.embed(x)  # means of q(z|x)")
    elif kind == "codes":
        lines.append("codes = run.embed(x)  # the codes of x")
    elif kind == "density" and _by_flow(spec, own):
        lines.append("z = run.embed(x)  # points of the base of the flow")
    return lines


def _model(spec: RunSpec, own: Sequence[str]) -> str:
    """What is fitted to data: a density, latents, codes, or what was given in Python."""
    if "posterior" in own:
        return "given"
    if spec.get("likelihood") == "identity":
        return "density"
    return "codes" if spec.get("posterior") == "quantizer" else "latent"


def _by_flow(spec: RunSpec, own: Sequence[str]) -> bool:
    prior = spec.parts["prior"]
    return "prior" not in own and names_in(prior.role.table)[prior.choice].startswith("varflow.priors.flow:")


def _kind(spec: RunSpec, data: Mapping[str, Any], own: Sequence[str]) -> str:
    shape = "×".join(map(str, data.get("event_shape") or ["?"]))
    if data.get("support") == "none":
        name = data.get("name")
        return f"A variational fit of q(z) in {shape} dimensions to the density {name}; nothing is observed."
    kind = _model(spec, own)
    if kind == "given":
        return "A model whose parts were given in Python."
    if kind == "density":
        return "A density p(x) fitted by maximum likelihood; log p(x) is exact."
    if kind == "codes":
        return (
            "A vector-quantized model: x becomes a grid of codes, p(codes) is the prior, p(x|codes) the likelihood; "
            "log p(x) is bounded from below."
        )
    latents = int(spec.get("latent")) + int(spec.get("top_latent") or 0)
    return (
        f"A latent-variable model p(x) = ∫ p(x|z) p(z) dz of {latents} latents, with the variational posterior "
        "q(z|x); log p(x) is estimated by importance sampling."
    )


def _state(folder: Path, about: Mapping[str, Any]) -> list[Any]:
    """What a reader has to know before all else."""
    known = about.get("varflow") or read_kind(folder / "environment.json", dict, {}).get("varflow")
    said: list[Any] = [f"Written by varflow{f' {known}' if known else ''}, format {SPEC_VERSION} of spec.json."]
    outcome = about.get("outcome") or {}
    if not outcome.get("finished"):
        said.append(f"The fit is not finished: {outcome.get('reason', 'it was cut off')}.")
    if origin := about.get("origin"):
        said.append(Markup("A copy of {}.").format(code(origin)))
    return said


def _parts(
    spec: RunSpec, data: Mapping[str, Any], own: Mapping[str, Any] | Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of the table of parts."""
    return [_part(role, part, data, own) for role, part in spec.parts.items() if _speaks(role, part, spec)]


def _speaks(role: str, part: Chosen, spec: RunSpec) -> bool:
    """Whether a part has a row in the table."""
    if role not in _MODEL or part.settings is None:
        return False
    # A density has one objective whatever it is called, its likelihood.
    if role == "objective" and spec.get("likelihood") == "identity":
        return False
    # Parts that a number switches on are there where it is not 0.
    return not part.settings.switch or bool(getattr(part.settings, part.settings.switch))


def _part(
    role: str, part: Chosen, data: Mapping[str, Any], own: Mapping[str, Any] | Sequence[str]
) -> dict[str, Any]:
    """A row of the table of parts: role, choice, and the settings by which it was built; of a part of the user's own
    the import paths of what it is made of.
    """
    what = role.replace("_", " ")
    if role in own or ("posterior" in own and role in ("network", "flow", "hamiltonian", "layers_above")):
        paths = own.get(role) if isinstance(own, Mapping) else None
        return {"what": what, "choice": "given in Python", "settings": code(", ".join(paths)) if paths else "–"}
    shown = {name: value for name, value in part.values().items() if name != part.role.name}
    choice = part.choice
    if hasattr(part.settings, "choice"):
        found = part.settings.choice(str(data.get("support")))
        kind = read(names_in(part.role.table)[found])
        shown = {name: value for name, value in shown.items() if kind is not None and name in described(kind)}
        choice = f"{found} ({part.choice})"
    words = ", ".join(f"{name}={plain(value)}" for name, value in shown.items() if value is not None)
    return {"what": what, "choice": code(choice) if choice else "–", "settings": code(words)}


def _training(spec: RunSpec, about: Mapping[str, Any]) -> str:
    outcome = about.get("outcome") or {}
    words = f"Fitted by {spec.get('optimizer')} with lr {plain(spec.get('lr'))}"
    words += f", batch {spec.get('batch')}, seed {spec.get('seed')}, precision {spec.get('precision')}"
    if "step" in outcome:
        words += f"; {outcome['step']:,} steps in {outcome.get('seconds', 0):.0f} s, {outcome.get('reason')}"
    if recipe := about.get("recipe"):
        words += f"; recipe {recipe}"
    return words + "."


def _target(data: Mapping[str, Any]) -> list[Any]:
    told = {k: v for k, v in data.items() if k not in ("support", "protocol", "splits", "levels", "event_shape")}
    size = "×".join(map(str, data.get("event_shape") or ["?"]))
    return [f"{size} dimensions", *(f"{name.replace('_', ' ')}: {plain(value)}" for name, value in told.items())]


def _data(folder: Path, data: Mapping[str, Any], about: Mapping[str, Any]) -> list[Any]:
    name = str(data.get("name"))
    given = ", given in Python" if about.get("data_given") else ""
    facts: list[Any] = [f"{name}{given}" + (f": {SOURCES[name]}" if name in SOURCES else "")]
    shape, columns = data.get("event_shape") or ["?"], [str(c) for c in data.get("columns") or ()]
    if len(shape) == 1:
        one = f"a row of {shape[0]} columns"
        if columns:
            listed = ", ".join(columns[:_COLUMNS]) + (", …" if len(columns) > _COLUMNS else "")
            one += f": {listed}"
    else:
        picture = read_kind(folder / "preprocessing.json", dict).get("picture")
        size = "×".join(map(str, shape))
        one = f"a picture, channels×height×width {size}" if picture else f"an array of shape {size}"
    levels = data.get("source_levels")
    facts.append(f"one example: {one}" + (f"; levels 0 to {levels - 1}" if levels else ""))
    sizes = ", ".join(f"{size:,} {split}" for split, size in (data.get("sizes") or {}).items())
    facts.append(f"examples: {sizes}" + (f" ({data['split']})" if data.get("split") else ""))
    if classes := data.get("classes"):
        facts.append(f"classes: {', '.join(map(str, classes[:_COLUMNS]))}")
    for file, sums in (data.get("checksums") or {}).items():
        facts.append(Markup("MD5 sum of {}: {}").format(code(file), code(sums.get("md5"))))
    return facts


def _preprocessing(folder: Path, data: Mapping[str, Any]) -> str:
    facts = read_kind(folder / "preprocessing.json", dict)
    name = str(facts.get("protocol"))
    words = f"Protocol {name}. x as the model sees it: {PROTOCOLS.get(name, 'the stored values')}."
    try:
        kept = restored(name, facts.get("levels"), facts.get("learned") or {})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{folder / 'preprocessing.json'}: not what varflow wrote ({error}); restore it") from error
    words += f" log p(x) is the logarithm of the {kept.scored}."
    if facts.get("learned") and _learned(folder, data) is None:
        words += f" Learned in training, and kept in preprocessing.json: {', '.join(facts['learned'])}."
    return words


def _learned(folder: Path, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was learned of each column, as a table; None where there are too many of them, or none."""
    learned = read_kind(folder / "preprocessing.json", dict).get("learned") or {}
    if "columns" in learned:
        rows = columns_of(folder)
        return {"columns": HEADS, "rows": rows[: 5 * _COLUMNS]}
    shape = data.get("event_shape") or []
    if len(shape) != 1 or shape[0] > _COLUMNS:
        return None
    kept = {
        title: values
        for name, title in _LEARNED.items()
        for values in [learned.get(name)]
        if isinstance(values, list) and len(values) == shape[0] and any(values)
    }
    if not kept:
        return None
    heads = [str(head) for head in data.get("columns") or ()]
    if len(heads) != shape[0]:
        heads = [str(number) for number in range(shape[0])]
    cells = zip(heads, *kept.values(), strict=True)
    return {"columns": ["column", *kept], "rows": [[head, *map(plain, values)] for head, *values in cells]}


def _commands(place: str, of_target: bool) -> Markup:
    words = [["varflow", "sample", place, "--out", "samples"]]
    words += [] if of_target else [["varflow", "score", place, "new.csv", "--out", "scores.csv"]]
    return Markup(", ").join(code(shlex.join(line)) for line in words)


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in present(folder, [*ARTEFACT, *TRAINING_ROWS])}


def _files(sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    known = {**ARTEFACT, **TRAINING_ROWS}
    what = {name: words for name in sizes for pattern, words in known.items() if fnmatchcase(name, pattern)}
    return [{"name": name, "size": f"{size:,}", "what": what.get(name, "–")} for name, size in sizes.items()]


def _front_matter(spec: RunSpec, of_target: bool, own: Sequence[str]) -> str:
    """What the hub reads: plain YAML. The license is the user's to name."""
    kind = {"density": "density-estimation", "codes": "vq-vae", "latent": "variational-autoencoder"}
    tags = ["varflow", "variational-inference" if of_target else kind.get(_model(spec, own), "generative-model")]
    flows = spec.get("flow", "none") != "none" or ("prior" in spec.parts and _by_flow(spec, own))
    tags += ["normalizing-flows"] if flows else []
    lines = ["---", "library_name: varflow", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join([*lines, "# license: name the one under which you pass this model on", "---"]) + "\n"
