"""Networks: vectors or images in, vectors or images out. They know nothing of densities."""

from varflow.core.lazy import attach

_EXPORTS = {
    "MLP": "varflow.networks.mlp:MLP",
    "ConvEncoder": "varflow.networks.conv:ConvEncoder",
    "ConvDecoder": "varflow.networks.conv:ConvDecoder",
    "StridedEncoder": "varflow.networks.strided:StridedEncoder",
    "StridedDecoder": "varflow.networks.strided:StridedDecoder",
    "MADE": "varflow.networks.made:MADE",
    "Linear": "varflow.networks.linear:Linear",
    "output_features": "varflow.networks.sizes:output_features",
    "MaskedConv": "varflow.networks.masked:MaskedConv",
    "VQEncoder": "varflow.networks.vq:VQEncoder",
    "VQDecoder": "varflow.networks.vq:VQDecoder",
}

#: name in a spec → the encoder of a pair, whose settings build both.
TABLE = {
    "mlp": "varflow.networks.mlp:MLP",
    "conv": "varflow.networks.conv:ConvEncoder",
    "strided": "varflow.networks.strided:StridedEncoder",
    "grid": "varflow.networks.vq:VQEncoder",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
