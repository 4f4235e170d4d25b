"""A run as plain values, and back: what a pickle of an estimator holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from varflow.core.form import Form
from varflow.data.protocols import Protocol, restored
from varflow.runs.assemble import build
from varflow.runs.loading import assign_weights
from varflow.runs.run import Run
from varflow.settings.spec import RunSpec


def packed(run: Run) -> dict[str, Any]:
    """Settings, preprocessing and weights as plain values and arrays."""
    kept = run.preprocessing
    assert kept is not None
    single = run.spec.training.precision != "float64"
    weights = {}
    for name, tensor in run.model.state_dict().items():
        # What was trained in float32 is a float32 number still.
        small = tensor.float() if single and tensor.dtype == torch.float64 else tensor.clone()
        weights[name] = small.cpu().numpy()
    return {
        "spec": run.spec.to_dict(),
        "form": {"event_shape": list(run.form.event_shape), "support": run.form.support, "levels": run.form.levels},
        "preprocessing": {"protocol": kept.name, "levels": kept.source_levels, "learned": kept.learned()},
        "weights": weights,
        "metrics": run.metrics,
        "outcome": run.outcome,
    }


def unpacked(values: dict[str, Any]) -> Run:
    """The run of :func:`packed`, its model built again.

    Raises:
        RunError: settings of another version of varflow, or weights that do not fit them.
    """
    spec = RunSpec.from_dict(values["spec"])
    form = Form(tuple(values["form"]["event_shape"]), values["form"]["support"], values["form"]["levels"])
    # First: in float32 the weights of a fit in float64 would lose half their digits.
    model = build(spec, form).double()
    weights = {name: torch.tensor(array) for name, array in values["weights"].items()}
    assign_weights(model, weights, Path("the pickled estimator"))
    device = spec.training.device
    if device != "cpu":
        device = "cuda" if device == "auto" else device
        device = device if torch.cuda.is_available() else "cpu"
    facts = values["preprocessing"]
    kept: Protocol = restored(facts["protocol"], facts["levels"], facts["learned"]).to(torch.device(device))
    return Run(spec, model.to(device).eval(), form, None, values["metrics"], values["outcome"], preprocessing=kept)
