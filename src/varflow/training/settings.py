"""Settings of the loop and of the machine, and of the fit of a code prior."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from varflow.core.durations import PATIENCE, VALIDATION
from varflow.core.errors import SpecError
from varflow.core.settings import Above, AtLeast, Settings, settings


@settings
class TrainingSettings(Settings):
    """The loop and the machine."""

    batch: Annotated[
        int, "Examples in a step; the last, incomplete batch of an epoch is left out.", AtLeast(1)
    ] = 128
    epochs: Annotated[float | None, "Budget in passes over the training split.", Above(0)] = 20.0
    steps: Annotated[int | None, "Budget in updates, instead of epochs.", AtLeast(1)] = None
    patience: Annotated[
        str | None,
        "Stop when the validation bound has not improved by more than its standard error for so long, a warm-up not "
        'counted: e.g. "5 epochs", "2000 steps", or auto: the longer of 10 epochs and 1000 steps.',
        PATIENCE,
    ] = None
    keep: Annotated[
        Literal["best", "last"],
        "Weights kept at the end: the best on the validation split, by more than the standard error, or the last.",
    ] = "best"
    validate_every: Annotated[
        str,
        'Between two validations: e.g. "5 epochs", "200 steps", or auto: the longer of 1 epoch and 100 steps.',
        VALIDATION,
    ] = "auto"
    save_every: Annotated[
        float,
        "Minutes between two resumable checkpoints; one is always written at the end.",
        Above(0),
    ] = 5.0
    seed: Annotated[int, "Seed of everything random in the run.", AtLeast(0)] = 0
    device: Annotated[str, "auto, cpu, cuda, cuda:0, ..."] = "auto"
    precision: Annotated[
        Literal["float32", "float64", "bf16"],
        "Arithmetic; bf16 runs the networks in bfloat16, densities and reductions in float32.",
    ] = "float32"
    compile: Annotated[
        bool,
        "Compile the training step with torch.compile: tens of seconds once, then faster steps.",
    ] = False
    graph: Annotated[
        Literal["auto", "on", "off"],
        "Launch the whole step as one CUDA graph: auto where the device is CUDA and the step can be captured.",
    ] = "auto"
    threads: Annotated[int | None, "CPU threads; without it torch's choice.", AtLeast(1)] = None
    fits: Annotated[
        int,
        "Targets: fits with the seeds seed, seed + 1, … (and data_seed, …) stacked and trained together.",
        AtLeast(1),
    ] = 1

    either: ClassVar[tuple[tuple[str, str], ...]] = (("epochs", "steps"),)

    def check(self, spec: Any) -> None:
        if self.fits > 1 and spec.get("target") == "none":
            raise SpecError(
                f"fits: was {self.fits}; only fits to a target are stacked, run the seeds one by one"
            )


@settings
class CodePriorSettings(Settings):
    """The prior over codes, fitted to the codes of a finished quantizer."""

    prior_epochs: Annotated[
        float | None, "Budget of the code prior in passes over the training codes.", Above(0)
    ] = 20.0
    prior_steps: Annotated[
        int | None, "Budget of the code prior in updates, instead of prior_epochs.", AtLeast(1)
    ] = None
    prior_batch: Annotated[int, "Grids of codes in a step of the code prior.", AtLeast(1)] = 128
    prior_patience: Annotated[
        str | None,
        "Stop the code prior when the validation codes' log p has not improved for so long; as patience.",
        PATIENCE,
    ] = None

    either: ClassVar[tuple[tuple[str, str], ...]] = (("prior_epochs", "prior_steps"),)
