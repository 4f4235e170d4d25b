"""The loop, checkpoints, the guard against NaN."""

from varflow.core.lazy import attach

_EXPORTS = {
    "Engine": "varflow.training.engine:Engine",
    "Loop": "varflow.training.loop:Loop",
    "Progress": "varflow.training.progress:Progress",
    "build_optimizer": "varflow.training.optimizers:build_optimizer",
}

#: name in a spec → its builder.
OPTIMIZERS = {
    "adam": "varflow.training.optimizers:FusedAdam",
    "adamw": "torch.optim:AdamW",
    "adamax": "torch.optim:Adamax",
    "rmsprop": "torch.optim:RMSprop",
    "sgd": "torch.optim:SGD",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
