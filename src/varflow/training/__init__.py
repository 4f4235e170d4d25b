"""The loop, checkpoints, the guard against NaN."""

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

__getattr__, __dir__ = attach(__name__, _EXPORTS)
