"""The code prior of a vector-quantized model, fitted to the codes of the finished quantizer.

The quantizer learns encoder, codebook and decoder under the uniform prior over codes. Then every picture is coded
once, the codes are kept in the run (``prior/codes.safetensors``), and the prior is fitted to them by maximum
likelihood: the same loop, with budget and optimizer of its own and nothing of the quantizer in reach of it. What
it writes is a run's files again, in ``prior/``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varflow.core import random, ranks
from varflow.core.errors import DataError, RunError
from varflow.core.files import make_folder, read_metrics
from varflow.data.codes import from_codes
from varflow.data.dataset import SPLITS, Dataset
from varflow.model import Model
from varflow.priors import UniformCodes
from varflow.runs.assemble import density
from varflow.runs.folder import (
    STATE,
    WEIGHTS,
    Elsewhere,
    Memory,
    RunFolder,
    forget,
    read_state,
    read_weights,
    save_weights,
)
from varflow.settings.spec import RunSpec
from varflow.training.callbacks import Callbacks, Fitting
from varflow.training.engine import Engine
from varflow.training.loop import Loop, Outcome
from varflow.training.progress import Progress

#: The code prior's folder in that of the run, and the cache in it.
FOLDER, CODES = "prior", "codes.safetensors"
#: Pictures coded at once; a change changes the noise that training pictures are coded with.
_CHUNK = 500


def needed(model: Any) -> bool:
    """Whether the prior of a model waits for codes: a quantizer under a prior that learns."""
    return (
        isinstance(model, Model)
        and model.posterior.codes > 0
        and any(parameter.requires_grad for parameter in model.prior.parameters())
    )


def first(model: Model) -> Model:
    """The model of the quantizer: the same encoder, codebook and decoder under the uniform prior."""
    posterior = model.posterior
    home = next(itertools.chain(posterior.parameters(), posterior.buffers()))
    uniform = UniformCodes(posterior.grid, posterior.codes).to(home.device, home.dtype)
    return Model(uniform, model.likelihood, posterior).train(model.training)


def settings(spec: RunSpec) -> RunSpec:
    """What the loop reads while the code prior is fitted: maximum likelihood, its own budget and optimizer."""
    if not spec.has("code_prior"):
        # The quantizer and its prior were given in Python.
        spec = spec.replace(posterior="quantizer", network="grid", prior="pixelcnn")
    own = {**spec.parts["code_prior"].values(), **spec.prior_optimizer.values()}
    stage = {name.removeprefix("prior_"): value for name, value in own.items()}
    unused = "epochs" if stage["epochs"] is None else "steps"
    del stage[unused]
    return spec.replace(objective="elbo", beta=1.0, warmup="0 steps", free_bits=0.0, **stage)


def joined(
    model: Model, weights: dict[str, Tensor], folder: Path
) -> tuple[Model, dict[str, Tensor]]:
    """The model of a run with the weights of both stages; of the first alone, while there is no second."""
    path = folder / FOLDER / WEIGHTS
    if not path.exists():
        return first(model), weights
    return model, {**weights, **read_weights(path)}


def begun(folder: Path) -> bool:
    """Whether a run has cached codes, which the quantizer must not outgrow."""
    return (folder / FOLDER / CODES).exists()


def fit(
    spec: RunSpec,
    model: Model,
    dataset: Dataset,
    engine: Engine,
    folder: Path | None,
    quiet: bool = False,
    start: Callable[[], object] = lambda: None,
    callbacks: Callbacks | None = None,
    finished: bool = True,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Code all pictures with the finished quantizer, and fit the model's prior to the codes.

    Args:
        spec: of the run.
        model: with the weights of the quantizer; its prior learns, in place.
        dataset: pictures, on the engine's device.
        engine: as in the quantizer.
        folder: of the run; an interrupted fit of a code prior in it goes on. None keeps everything in memory.
        quiet: show no progress.
        start: called once it is sure that there is something to do.
        callbacks: of the run; they see the prior, its codes and its records.
        finished: whether a fit in ``folder`` that has used its budget also came to its end.

    Returns:
        How it ended, and its records.

    Raises:
        DataError: labels are asked for and missing, or beyond the classes.
        RunError: a damaged cache or state, or a code prior whose fit is finished.
        NonFiniteError: as in any fit.
    """
    model.eval()
    room = None if folder is None else folder / FOLDER
    writes = room is not None and ranks.rank() == 0
    progress = Progress(0, quiet=quiet or ranks.rank() > 0)
    codes = cached(model, dataset, spec.training.seed, room, progress)
    pairs = _data(model, dataset, codes).to(engine.device, engine.dtype)
    if model.prior.classes is not None:
        model.prior.count(pairs.raw("train")[:, 0])
    sink = Memory() if room is None else RunFolder(room) if writes else Elsewhere()
    learns, own = density(model.prior), settings(spec)
    fitting = Fitting(spec, learns, pairs, folder, "code prior")
    loop = Loop(learns, pairs, own, engine, sink, progress, callbacks, fitting)
    progress.steps = loop.steps
    if isinstance(sink, RunFolder):
        sink.watch(loop.kept_weights)
    _go_on(loop, sink, room, finished)
    start()
    ranks.meet()
    ranks.copy_first(model.prior)
    try:
        with progress, ranks.lockstep():
            outcome = loop.run()
    finally:
        if isinstance(sink, RunFolder):
            sink.close()
    records = ranks.first(lambda: sink.records if isinstance(sink, Memory) else read_metrics(room or Path()))
    return outcome, records


def cached(
    model: Model, dataset: Dataset, seed: int, room: Path | None, progress: Progress
) -> dict[str, Tensor]:
    """The codes ``[N, *grid]`` of every picture of every split, read from ``room`` or made and kept there.

    A training picture is coded once, under one draw of its noise and flip; validation and test pictures under the
    fixed draw that evaluation uses. Encoded in the dtype of the parameters, as evaluation does it, whatever the
    precision of training.

    Raises:
        RunError: the file is damaged, or not of these pictures and this codebook.
    """
    path = None if room is None else room / CODES

    def get() -> dict[str, Tensor]:
        if path is not None and path.exists():
            return read(path, model, dataset)
        progress.say(f"code prior: coding {sum(dataset.sizes.values()):,} pictures")
        codes = {split: encode(model, dataset, split, seed) for split in SPLITS}
        if path is not None:
            make_folder(path.parent)
            save_weights(path, codes, 0)
        return codes

    return ranks.first(get)


@torch.no_grad()
def encode(model: Model, dataset: Dataset, split: str, seed: int) -> Tensor:
    """The codes of a split in the smallest integers that hold them, on the CPU."""
    posterior = model.posterior
    kind = _kind(posterior.codes)
    parts = [torch.empty(0, *posterior.grid, dtype=kind)]
    noise = random.derive(seed, "cached codes", 0)
    for chunk, start in enumerate(range(0, dataset.sizes[split], _CHUNK)):
        index = torch.arange(start, min(start + _CHUNK, dataset.sizes[split]))
        with random.stream(noise, chunk):
            codes = posterior(dataset.batch(split, index).seen).codes
        assert codes is not None
        parts.append(codes.cpu().to(kind))
    return torch.cat(parts)


def read(path: Path, model: Model, dataset: Dataset) -> dict[str, Tensor]:
    """The codes in a cache.

    Raises:
        RunError: damaged, or not of these pictures and this codebook.
    """
    posterior = model.posterior
    codes = read_weights(path)
    for split in SPLITS:
        shape, kind = (dataset.sizes[split], *posterior.grid), _kind(posterior.codes)
        found = codes.get(split)
        if (
            found is None
            or found.shape != shape
            or found.dtype != kind
            or _beyond(found, posterior.codes)
        ):
            raise RunError(
                f"{path}: does not hold the {split} codes of this run ({shape}, below {posterior.codes}); "
                "delete it and resume, and the pictures are coded again"
            )
    return codes


def _data(model: Model, dataset: Dataset, codes: Mapping[str, Tensor]) -> Dataset:
    name = f"codes of {dataset.name}"
    classes = model.prior.classes
    if classes is None:
        return from_codes(codes, name=name)
    labels = {split: dataset.labels(split) for split in SPLITS}
    for split, values in labels.items():
        if values is None:
            raise DataError(
                f"classes: was {classes}, and {dataset.name} has no labels ({split}); use classes=0, or data with "
                "labels"
            )
        if _beyond(values, classes):
            raise DataError(
                f"classes: was {classes}, and labels of {dataset.name} go from {int(values.min())} to "
                f"{int(values.max())}; use classes={int(values.max()) + 1}"
            )
    return from_codes(codes, {k: v.cpu() for k, v in labels.items() if v is not None}, name=name)


def _go_on(loop: Loop, sink: Any, room: Path | None, finished: bool) -> None:
    """From the state of an interrupted fit, where there is one; else from the start."""
    if room is None:
        return
    state = ranks.first(lambda: read_state(room) if (room / STATE).exists() else None)
    if state is None:
        if isinstance(sink, RunFolder):
            forget(room)
        return
    loop.load_state(state)
    if loop.step >= loop.steps and finished:
        raise RunError(
            f"folder: {room.parent} is finished in both stages ({loop.step} of {loop.steps} steps of the prior); "
            "give a larger budget, e.g. prior_epochs or prior_steps, to go on"
        )
    if isinstance(sink, RunFolder):
        sink.rewind(state)


def _beyond(values: Tensor, size: int) -> bool:
    """Whether a value is none of 0 … size − 1."""
    return bool(((values < 0) | (values >= size)).any())


def _kind(codes: int) -> torch.dtype:
    if codes <= 1 << 8:
        return torch.uint8
    return torch.int16 if codes <= 1 << 15 else torch.int32
