"""A fitted model as graphs that other programs run: torch.export and ONNX.

Each graph holds the preprocessing too, so that what goes in and comes out are data as they are stored. Any number of
rows goes through one; nothing in it is random: noise is an input. Where training draws noise (binarization,
dequantization, rounded columns) the encoder reads the expected x, and a density is taken in the middle of the step or
the bin, as :meth:`varflow.Run.distribution` takes it.

Rows that training standardized go in and come out in float64. A mean is taken off them before they are rounded to the
dtype of the model: a column near 10⁹ with a spread of 1 has nothing left of it in float32.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from varflow.core.errors import SpecError, unknown
from varflow.core.files import make_folder, write_atomically, write_json
from varflow.data.protocols import Protocol
from varflow.evaluation.points import evaluating
from varflow.model import Model
from varflow.posteriors.gaussian import Gaussian
from varflow.priors.flow import Flow
from varflow.priors.gaussians import Gaussians

if TYPE_CHECKING:
    from varflow.runs.run import Run

Format = Literal["onnx", "torch"]

#: format → what its files end in.
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
#: What is in the folder.
ABOUT = "export.json"

_STANDARD_NORMAL = "independent standard normal numbers"


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a graph or comes out of it.

    Attributes:
        name: of it in the graph.
        shape: after the dimension of rows.
        dtype: of its numbers.
        unit: what they are, in words.
        top: where it holds integers 0 … top; None for others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    unit: str
    top: int | None = None

    def example(self, rows: int) -> Tensor:
        shape = (rows, *self.shape)
        source = torch.Generator().manual_seed(0)
        if self.top is not None:
            return torch.randint(0, self.top + 1, shape, generator=source).to(self.dtype)
        # Within (0, 1), where uniform numbers and any others may be.
        return torch.rand(shape, generator=source, dtype=torch.float64).to(self.dtype)

    def told(self) -> dict[str, Any]:
        kind = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "dtype": kind, "shape": ["batch", *self.shape], "unit": self.unit}


class Graph(nn.Module):
    """A function of tensors with the modules that it uses, which is what torch exports."""

    def __init__(self, function: Callable[..., Any], *parts: Any) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@dataclass(frozen=True)
class Plan:
    """A graph to be exported: what it computes, of what, and from which parts of the model."""

    does: str
    function: Callable[..., Any]
    parts: tuple[Any, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def export(run: Run, folder: Path | str, format: str = "onnx") -> dict[str, Any]:
    """See :meth:`varflow.Run.export`."""
    if format not in SUFFIXES:
        raise unknown("format", format, SUFFIXES)
    if not hasattr(torch.compiler, "is_exporting"):
        raise SpecError(
            f"export: needs torch 2.7 or later, this is torch {torch.__version__}; run: pip install --upgrade torch"
        )
    if format == "onnx":
        _require_onnx()
    if not isinstance(run.model, Model):
        raise SpecError("export: several fits were trained together here, and a graph is of one; fit one seed")
    if run.conditions is not None:
        names = ", ".join(run.conditions.names)
        raise SpecError(f"export: this run is conditioned on {names}, and graphs take x alone; use the run itself")
    model, preprocessing = run.model, run.preprocessing
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
        preprocessing = None if preprocessing is None else preprocessing.to(torch.device("cpu"))
    plans, left_out = _plans(run, model, preprocessing)
    blobs: dict[str, bytes] = {}
    with evaluating(model), torch.no_grad():
        for name, plan in plans.items():
            try:
                blobs[name] = _serialized(plan, format)
            except Exception as error:  # torch has no common class for what it cannot export
                left_out[name] = f"{name}: cannot be exported: {_reason(error)}"
    if not blobs:
        raise SpecError("export: nothing of this run can be exported; " + "; ".join(left_out.values()))
    folder = Path(folder)
    make_folder(folder)
    for name, blob in blobs.items():
        write_atomically(folder / (name + SUFFIXES[format]), lambda file, blob=blob: file.write(blob))  # type: ignore[misc]
    about = _about(run, preprocessing, format, {name: plans[name] for name in blobs}, left_out)
    write_json(folder / ABOUT, about)
    return about


def _plans(run: Run, model: Model, preprocessing: Protocol | None) -> tuple[dict[str, Plan], dict[str, str]]:
    """The graphs of a run by name; and for what is left out a sentence."""
    if preprocessing is None:
        return _of_target(model)
    if model.posterior.discrete and not model.posterior.codes:
        raise SpecError(
            "export: a prior over codes draws one code after the other, which is no graph; use run.sample"
        )
    dtype, shape = next(model.parameters()).dtype, run.form.event_shape
    levels = preprocessing.source_levels
    if levels is None:
        stored = torch.float64 if preprocessing.learned() else dtype
        x = Port("x", shape, stored, "x as the data are stored, in their units")
    else:
        x = Port("x", shape, torch.uint8, f"levels 0 to {levels - 1}", levels - 1)
    seen = _Seen(preprocessing, dtype)
    if model.posterior.observed:
        return _of_density(model, seen, x, run.form.event_shape)
    raw = x if levels is None else Port("x", shape, dtype, x.unit + ", a mean between them")
    return (_of_codes if model.posterior.discrete else _of_latents)(model, seen, x, raw)


@dataclass(frozen=True)
class _Seen:
    """The preprocessing without noise, both ways."""

    preprocessing: Protocol
    dtype: torch.dtype

    def expected(self, values: Tensor) -> Tensor:
        """E[x | values]."""
        return self.preprocessing.expected(values).to(self.dtype)

    def point(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """x and ladj of values as they are; of levels in the middle of their bins."""
        if self.preprocessing.source_levels is not None:
            values = values.to(self.dtype) + 0.5
        return self.preprocessing.encode_point(values, self.dtype)

    def draw(self, x: Tensor) -> Tensor:
        """What a draw of x stands for in the units of the data; levels as whole numbers in the dtype of the model."""
        if self.preprocessing.source_levels is not None:
            return self.preprocessing.invert(x) * self.preprocessing.top
        return self.preprocessing.invert(x.double() if self.preprocessing.learned() else x)

    def mean(self, x: Tensor) -> Tensor:
        """What a mean of x stands for in the units of the data; levels unrounded."""
        return self.draw(x) if self.preprocessing.source_levels is None else self.preprocessing.mean_levels(x)

    def noted(self, does: str, instead: str) -> str:
        """What a graph does, with what it takes where training draws noise."""
        noise = {"binarize": "binarizes", "dequantize": "dequantizes"}.get(self.preprocessing.purpose or "")
        return f"{does}; at {instead}, where training {noise} at random" if noise else does


def _of_latents(model: Model, seen: _Seen, x: Port, raw: Port) -> tuple[dict[str, Plan], dict[str, str]]:
    posterior, prior, likelihood = model.posterior, model.prior, model.likelihood
    size, dtype = prior.event_shape, seen.dtype
    z = Port("z", size, dtype, "latents")
    noise = Port("noise", size, dtype, _STANDARD_NORMAL)
    plans: dict[str, Plan] = {}
    left_out: dict[str, str] = {}
    if isinstance(posterior, Gaussian) and posterior.flow is not None:

        def base(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q = posterior.forward(seen.expected(values))
            return q.mean, q.log_scale.exp(), q.centre

        def draw(values: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return _push(posterior(seen.expected(values)), noise)

        plans["encoder"] = Plan(
            seen.noted(
                "mean and scale of the Gaussian of x before the flow, and the image of the mean under the flow",
                "the expected x",
            ),
            base,
            (posterior,),
            (x,),
            (
                Port("base_mean", size, dtype, "latents before the flow"),
                Port("base_scale", size, dtype, "standard deviations of latents before the flow"),
                Port("centre", size, dtype, "latents"),
            ),
        )
        plans["posterior"] = Plan(
            seen.noted("a draw z of q(z|x) from noise, and its log q(z|x)", "the expected x"),
            draw,
            (posterior,),
            (x, noise),
            (z, Port("log_q", (), dtype, "nats")),
        )
    elif isinstance(posterior, Gaussian):

        def moments(values: Tensor) -> tuple[Tensor, Tensor]:
            q = posterior.forward(seen.expected(values))
            return q.mean, q.log_scale.exp()

        plans["encoder"] = Plan(
            seen.noted("mean and scale of the Gaussian q(z|x)", "the expected x"),
            moments,
            (posterior,),
            (x,),
            (
                Port("mean", size, dtype, "latents"),
                Port("scale", size, dtype, "standard deviations of latents"),
            ),
        )
    else:
        name = type(posterior).__name__
        left_out["encoder"] = (
            f"encoder: q(z|x) of {name} is no Gaussian under a flow, so it has no mean and scale in one graph; use "
            "run.embed(x)"
        )

    def decode(z: Tensor) -> Tensor:
        return seen.mean(likelihood.mean(z))

    plans["decoder"] = Plan("the mean of p(x|z)", decode, (likelihood,), (z,), (raw,))
    if isinstance(prior, Flow):
        _add_sampler(plans, left_out, "prior", "a draw z of p(z) from noise", prior, dtype, lambda e: e, z)
    elif not prior.standard:
        left_out["prior"] = (
            f"prior: draws of {type(prior).__name__} are no map of noise; use run.sample, or z of run.embed"
        )
    return plans, left_out


def _of_codes(model: Model, seen: _Seen, x: Port, raw: Port) -> tuple[dict[str, Plan], dict[str, str]]:
    posterior: Any = model.posterior
    likelihood = model.likelihood
    codes = Port(
        "codes", posterior.grid, torch.int64, f"numbers of codewords, 0 to {posterior.codes - 1}", posterior.codes - 1
    )

    def encode(values: Tensor) -> Tensor:
        encoded = posterior.encoder(seen.expected(values))
        vectors = encoded.movedim(1, -1)
        found: Tensor = posterior.codebook.nearest(vectors.reshape(-1, vectors.shape[-1]))
        return found.reshape(vectors.shape[:-1])

    def decode(codes: Tensor) -> Tensor:
        words = nn.functional.embedding(codes, posterior.codebook.weight).movedim(-1, 1)
        return seen.mean(likelihood.mean(words))

    plans = {
        "encoder": Plan(seen.noted("the codes of x", "the expected x"), encode, (posterior,), (x,), (codes,)),
        "decoder": Plan("the mean of p(x|z) at the codewords", decode, (posterior, likelihood), (codes,), (raw,)),
    }
    left = "prior: codes are drawn one after the other, which is no graph; use run.sample"
    return plans, {"prior": left}


def _of_density(
    model: Model, seen: _Seen, x: Port, shape: tuple[int, ...]
) -> tuple[dict[str, Plan], dict[str, str]]:
    prior, dtype = model.prior, seen.dtype

    def log_prob(values: Tensor) -> Tensor:
        point, ladj = seen.point(values)
        return prior.log_prob(point.flatten(1)) + ladj

    middle = "the middle of a " + ("step" if x.top is None else "bin")
    scored = Port("log_prob", (), dtype, f"nats, {seen.preprocessing.scored}")
    plans = {"log_prob": Plan(seen.noted("log p(x)", middle), log_prob, (prior,), (x,), (scored,))}
    left_out: dict[str, str] = {}
    drawn = x if x.top is None else Port("x", shape, dtype, x.unit)
    if isinstance(prior, Flow):
        convert = lambda e: seen.draw(e.unflatten(-1, shape))  # noqa: E731
        _add_sampler(plans, left_out, "sampler", "a draw x of p(x) from noise", prior, dtype, convert, drawn)
    else:
        left_out["sampler"] = (
            f"sampler: draws of {type(prior).__name__} are no map of noise; use run.sample, or a flow prior"
        )
    return plans, left_out


def _of_target(model: Model) -> tuple[dict[str, Plan], dict[str, str]]:
    """q(z) of a fit to a target."""
    posterior = model.posterior
    if not isinstance(posterior, Gaussian):
        raise SpecError(
            f"export: q(z) of {type(posterior).__name__} is no Gaussian under a flow, which is what a graph of q(z) "
            "can be; use run.sample"
        )
    size, dtype = (posterior.features,), next(model.parameters()).dtype
    plan = Plan(
        "a draw z of q(z) from noise, and its log q(z)",
        lambda noise: _push(posterior(), noise),
        (posterior,),
        (Port("noise", size, dtype, _STANDARD_NORMAL),),
        (Port("z", size, dtype, "latents"), Port("log_q", (), dtype, "nats")),
    )
    return {"sampler": plan}, {}


def _push(q: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z of a Gaussian under a flow from its noise, and log q(z)."""
    z = q.mean + q.log_scale.exp() * noise
    constant = 0.5 * noise.shape[-1] * math.log(2 * math.pi)
    log_q = -0.5 * noise.square().sum(-1) - constant - q.log_scale.sum(-1)
    if q.flow is None:
        return z, log_q
    z, ladj = q.flow.push(z, q.flow_local)
    return z, log_q - ladj


def _add_sampler(
    plans: dict[str, Plan],
    left_out: dict[str, str],
    name: str,
    does: str,
    prior: Flow,
    dtype: torch.dtype,
    convert: Callable[[Tensor], Tensor],
    out: Port,
) -> None:
    """A draw of a flow prior as a function of its noise, where its base is one too."""
    base = prior.base
    noise = Port("noise", prior.event_shape, dtype, _STANDARD_NORMAL)
    uniform = "independent uniform numbers on [0, 1)"
    inputs = [noise]
    if isinstance(base, Gaussians):
        inputs.append(Port("component", (), dtype, f"{uniform}, which choose a component of the base"))
        upto = base.log_weights.exp().cumsum(0)[:-1]
        identity = torch.eye(*prior.event_shape, dtype=torch.float64)
        roots = torch.linalg.solve_triangular(base.whitening.double(), identity, upper=False).to(dtype)
    elif not base.standard:
        left_out[name] = f"{name}: draws of the base {type(base).__name__} are no map of noise; use run.sample"
        return
    if prior.defensive:
        inputs.append(Port("defensive", (), dtype, f"{uniform}, which choose the base itself"))

    def draw(noise: Tensor, *rest: Tensor) -> Tensor:
        e = noise
        if isinstance(base, Gaussians):
            which = (rest[0].unsqueeze(-1) >= upto).sum(-1)
            e = base.means[which] + (roots[which] @ noise.unsqueeze(-1)).squeeze(-1)
        z = prior.decode(e)
        if prior.defensive:
            z = torch.where(rest[-1].unsqueeze(-1) < prior.defensive, e, z)
        return convert(z)

    plans[name] = Plan(does, draw, (prior,), tuple(inputs), (out,))


def _serialized(plan: Plan, format: str) -> bytes:
    """The graph of a plan in a file of a format."""
    graph = Graph(plan.function, *plan.parts).eval()
    examples = tuple(port.example(2) for port in plan.inputs)
    batch = torch.export.Dim("batch")
    with _quiet():
        # One entry for *inputs, which is a tuple of all of them.
        program = torch.export.export(graph, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))
        foreign = {str(node.target) for node in program.graph.nodes if "varflow" in str(node.target)}
        if foreign:
            raise SpecError(f"it holds {', '.join(sorted(foreign))}, which only varflow has")
        file = io.BytesIO()
        if format == "torch":
            torch.export.save(program, file)
            return file.getvalue()
        made = torch.onnx.export(
            program,
            input_names=[port.name for port in plan.inputs],
            output_names=[port.name for port in plan.outputs],
            dynamo=True,
            verbose=False,
        )
        assert made is not None
        return bytes(made.model_proto.SerializeToString())


#: Loggers of torch's exporters, and of the optimizer of graphs behind them.
_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's own exporters warn of what they themselves call, and of packages that nobody asked for."""
    logs = [logging.getLogger(name) for name in _LOGGERS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        # What it could not trace torch prints to stderr, whole, before it raises.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _about(
    run: Run, preprocessing: Protocol | None, format: str, plans: dict[str, Plan], left_out: dict[str, str]
) -> dict[str, Any]:
    from varflow import __version__

    kept = None
    if preprocessing is not None:
        kept = {
            "protocol": preprocessing.name,
            "levels": preprocessing.source_levels,
            "noise": preprocessing.purpose,
            **preprocessing.learned(),
        }
    return {
        "format": format,
        "varflow": __version__,
        "columns": list(run.columns),
        "preprocessing": kept,
        "graphs": {
            name: {
                "file": name + SUFFIXES[format],
                "does": plan.does,
                "inputs": [port.told() for port in plan.inputs],
                "outputs": [port.told() for port in plan.outputs],
            }
            for name, plan in plans.items()
        },
        "left_out": left_out,
    }


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise SpecError(
            "format: onnx needs onnx and onnxscript, which are not installed; run: pip install 'varflow[onnx]'"
        ) from None


def _reason(error: Exception) -> str:
    """What torch says that is about the model: the operator that a format lacks, else its first line."""
    said = str(error)
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", said)
    if missing:
        return f"ONNX has no {missing[1]}; use format=torch"
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return "its code takes one way or another by the numbers that go in, which a graph cannot"
    lines = said.strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
