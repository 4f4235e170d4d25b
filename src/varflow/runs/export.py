"""A fitted model as programs that run without varflow: torch.export files, or ONNX.

Each takes and gives the data as the user has them, the preprocessing being part of it, and any number of rows:

    encoder    x → mean, scale and centre of q(z|x); codes of a quantizer; the base point of a density by a flow
    decoder    z → the mean of p(x|z); x of codes; x of a base point
    log_prob   x → log p(x) of a density, nats

The decoder of an autoregressive density runs one feature after the other, and is left out above 8 features.
Nothing is random in them. Where training draws noise (binarization, dequantization) the encoder is given the mean of
what is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from varflow.core.errors import SpecError, unknown
from varflow.core.files import make_folder, write_atomically, write_json
from varflow.data.protocols import Protocol
from varflow.model import Model
from varflow.priors.flow import Flow
from varflow.runs.rows import one_model

if TYPE_CHECKING:
    from varflow.runs.run import Run

FORMATS = ("onnx", "torch")
#: Rows of the example that a program is traced with; 1 would be taken for a constant.
_ROWS = 3
#: Features of an autoregressive density up to which its decoder is exported.
_UNROLLED = 8


class Program(NamedTuple):
    """What is exported.

    Attributes:
        module: the function.
        example: one batch of what it takes.
        takes, gives: names of its input and outputs.
    """

    module: nn.Module
    example: Tensor
    takes: str
    gives: tuple[str, ...]


class _Encoder(nn.Module):
    """x → moments and centre of q(z|x)."""

    def __init__(self, model: Model, preprocessing: Protocol, dtype: torch.dtype) -> None:
        super().__init__()
        self.posterior = model.posterior
        self.seen = _Seen(preprocessing, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q = self.posterior(self.seen(x))
        if q.codes is not None:
            return (q.codes,)
        if q.diagonal is None:
            return (q.centre,)
        mean, log_scale = q.diagonal
        return mean, log_scale.exp(), q.centre


class _Decoder(nn.Module):
    """z, or codes, → the mean of p(x|z) as the data are stored, levels not rounded."""

    def __init__(self, model: Model, preprocessing: Protocol, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.posterior = model.posterior if model.posterior.discrete else None
        self.likelihood = model.likelihood
        self.shown = _Shown(preprocessing, event_shape)

    def forward(self, z: Tensor) -> Tensor:
        if self.posterior is not None:
            z = self.posterior.decode_codes(z)  # type: ignore[operator]
        mean: Tensor = self.likelihood.mean(z)
        return self.shown(mean)


class _ToBase(nn.Module):
    """x → the point of the flow's base."""

    def __init__(self, prior: Flow, preprocessing: Protocol, dtype: torch.dtype) -> None:
        super().__init__()
        self.prior, self.seen = prior, _Seen(preprocessing, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.prior.encode(self.seen(x).flatten(1)),)


class _FromBase(nn.Module):
    """A point of the flow's base → x."""

    def __init__(self, prior: Flow, preprocessing: Protocol, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.prior, self.shown = prior, _Shown(preprocessing, event_shape)

    def forward(self, e: Tensor) -> Tensor:
        return self.shown(self.prior.decode(e))


class _LogProb(nn.Module):
    """x → log p(x), in the units of the data."""

    def __init__(self, prior: nn.Module, preprocessing: Protocol, dtype: torch.dtype) -> None:
        super().__init__()
        self.prior, self.preprocessing, self.dtype = prior, preprocessing, dtype

    def forward(self, x: Tensor) -> Tensor:
        seen, ladj = self.preprocessing.encode(x, _middle(self.preprocessing, x), self.dtype)
        log_prob: Tensor = self.prior.log_prob(seen.flatten(1))  # type: ignore[operator]
        return log_prob + ladj


class _Seen(nn.Module):
    """x as the model sees it; the mean of what is drawn."""

    def __init__(self, preprocessing: Protocol, dtype: torch.dtype) -> None:
        super().__init__()
        self.preprocessing, self.dtype = preprocessing, dtype

    def forward(self, x: Tensor) -> Tensor:
        if self.preprocessing.purpose == "binarize":
            return self.preprocessing.expected(x).to(self.dtype)
        return self.preprocessing.encode(x, _middle(self.preprocessing, x), self.dtype)[0]


class _Shown(nn.Module):
    """What the model gives, as the data are stored: real numbers in their units, or levels that are not rounded."""

    def __init__(self, preprocessing: Protocol, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.preprocessing, self.event_shape = preprocessing, tuple(event_shape)

    def forward(self, mean: Tensor) -> Tensor:
        found = self.preprocessing.invert(mean.reshape(-1, *self.event_shape))
        return found if self.preprocessing.source_levels is None else found * self.preprocessing.top


def _middle(preprocessing: Protocol, x: Tensor) -> Tensor | None:
    """The middle of dequantization noise, where a protocol of levels needs a draw."""
    if preprocessing.purpose is None or preprocessing.source_levels is None:
        return None
    return preprocessing.draw(x, torch.full_like(x, 0.5, dtype=torch.float32))


def programs(run: Run) -> dict[str, Program]:
    """What of a run can be exported, by name.

    Raises:
        SpecError: a fit to a target, a prior over codes alone, or a density that is no flow.
    """
    model, kept = one_model(run, "export", "there is nothing to encode"), run.preprocessing
    assert kept is not None
    home = next(model.parameters())
    shape = run.form.event_shape
    rows = _ROWS if kept.source_levels is None else kept.source_levels
    x = torch.zeros(_ROWS, *shape, dtype=home.dtype if kept.source_levels is None else torch.uint8)
    x = x + (torch.arange(_ROWS) % rows).to(x.dtype).reshape(-1, *[1] * len(shape))
    if model.posterior.observed:
        if not isinstance(model.prior, Flow):
            raise SpecError(f"export: a density by {type(model.prior).__name__} is no flow; use a flow prior")
        encoder: nn.Module = _ToBase(model.prior, kept, home.dtype)
        found = {
            "encoder": Program(encoder, x, "x", ("base_point",)),
            "log_prob": Program(_LogProb(model.prior, kept, home.dtype), x, "x", ("log_prob",)),
        }
        features = model.prior.event_shape[0]
        if getattr(model.prior.flow, "fast_inverse", False) and not model.prior.inverted and features > _UNROLLED:
            # One feature after the other: the program would hold the network so many times.
            return found
        base = torch.randn(_ROWS, features, dtype=home.dtype)
        return {**found, "decoder": Program(_FromBase(model.prior, kept, shape), base, "base_point", ("x",))}
    if model.posterior.discrete and not model.posterior.codes:
        raise SpecError("export: this run is a prior over codes alone; export the quantizer's run")
    encoder = _Encoder(model, kept, home.dtype)
    with torch.no_grad():
        out = encoder(x)
    names = ("codes",) if model.posterior.discrete else ("mean", "scale", "centre") if len(out) == 3 else ("centre",)
    latent = out[0] if model.posterior.discrete else out[-1]
    decoder = _Decoder(model, kept, shape)
    return {
        "encoder": Program(encoder, x, "x", names),
        "decoder": Program(decoder, latent.detach(), "codes" if model.posterior.discrete else "z", ("x",)),
    }


def export(run: Run, folder: Path, format: Literal["onnx", "torch"] = "onnx") -> list[Path]:
    """See :meth:`varflow.Run.export`."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "onnx":
        _check_onnx()
    made = programs(run)
    make_folder(folder)
    written, about = [], {}
    for name, program in made.items():
        path = folder / f"{name}.{'onnx' if format == 'onnx' else 'pt2'}"
        _write(path, name, program, format)
        about[name] = _about(path, program)
        written.append(path)
    assert run.preprocessing is not None
    facts = {
        "format": format,
        "programs": about,
        "preprocessing": run.preprocessing.name,
        "levels": run.preprocessing.source_levels,
        "columns": list(run.columns),
        "unit": "x as the data are stored: real numbers in their units, or levels; log_prob in nats, of this x",
        "noise": "none: where training draws noise, its mean",
    }
    write_json(folder / "programs.json", facts)
    return [*written, folder / "programs.json"]


def _about(path: Path, program: Program) -> dict[str, Any]:
    with torch.no_grad():
        out = program.module(program.example)
    out = out if isinstance(out, tuple) else (out,)

    def form(tensor: Tensor) -> dict[str, Any]:
        return {"shape": ["batch", *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}

    given = {name: form(tensor) for name, tensor in zip(program.gives, out, strict=True)}
    return {"file": path.name, "takes": {program.takes: form(program.example)}, "gives": given}


def _write(path: Path, name: str, program: Program, format: str) -> None:
    """One program, whole or not at all.

    Raises:
        SpecError: torch cannot export it; the sentence says why.
    """
    module, batch = program.module.eval(), torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, (program.example,), dynamic_shapes=({0: batch},))
            if format == "torch":
                write_atomically(path, lambda file: torch.export.save(exported, file))
                return
            converted = torch.onnx.export(
                exported.run_decompositions(_stable()),
                (),
                dynamo=True,
                input_names=[program.takes],
                output_names=list(program.gives),
                verbose=False,
            )
    except SpecError:
        raise
    except Exception as error:  # torch raises what a step of the trace leads it to
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(f"export: the {name} of this model cannot be exported as {format}: {why[:200]}") from error
    assert converted is not None
    blob = converted.model_proto.SerializeToString()
    write_atomically(path, lambda file: file.write(blob))


def _stable() -> dict[Any, Any]:
    """Sums of exponentials as ONNX runtimes do not compute them by themselves: without overflow and underflow."""
    aten = torch.ops.aten

    def logsumexp(x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
        largest = x.amax(dim, keepdim=True)
        largest = torch.where(largest.isinf(), 0.0, largest)
        total = (x - largest).exp().sum(dim, keepdim=True).log() + largest
        return total if keepdim else total.squeeze(dim)

    def logaddexp(a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b) + torch.log1p((-(a - b).abs()).exp())

    def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
        scaled = beta * x
        return (scaled.clamp_min(0.0) + torch.log1p((-scaled.abs()).exp())) / beta

    table = {aten.logsumexp.default: logsumexp, aten.logaddexp.default: logaddexp, aten.softplus.default: softplus}
    return {**torch.export.default_decompositions(), **table}


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SpecError(
            "format: onnx needs onnx and onnxscript; install them with: pip install 'varflow[onnx]', or use "
            "format=torch"
        ) from error
