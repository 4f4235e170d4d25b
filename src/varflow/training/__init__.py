"""The loop, checkpoints, the guard against NaN."""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

_EXPORTS = {
    "Callback": "varflow.training.callbacks:Callback",
    "Engine": "varflow.training.engine:Engine",
    "Fitting": "varflow.training.callbacks:Fitting",
    "Loop": "varflow.training.loop:Loop",
    "Progress": "varflow.training.progress:Progress",
}

#: name in a spec → its builder.
OPTIMIZERS = {
    "adam": "varflow.training.optimizers:FusedAdam",
    "adamw": "varflow.training.optimizers:AdamW",
    "adamax": "varflow.training.optimizers:Adamax",
    "rmsprop": "varflow.training.optimizers:RMSprop",
    "sgd": "varflow.training.optimizers:SGD",
}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.training.callbacks import Callback as Callback
    from varflow.training.callbacks import Fitting as Fitting
    from varflow.training.engine import Engine as Engine
    from varflow.training.loop import Loop as Loop
    from varflow.training.progress import Progress as Progress
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
