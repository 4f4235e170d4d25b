"""Networks: vectors or images in, vectors or images out. They know nothing of densities."""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

_EXPORTS = {
    "MLP": "varflow.networks.mlp:MLP",
    "ConvEncoder": "varflow.networks.conv:ConvEncoder",
    "ConvDecoder": "varflow.networks.conv:ConvDecoder",
    "StridedEncoder": "varflow.networks.strided:StridedEncoder",
    "StridedDecoder": "varflow.networks.strided:StridedDecoder",
    "ContextEncoder": "varflow.networks.context:ContextEncoder",
    "MADE": "varflow.networks.made:MADE",
    "Linear": "varflow.networks.linear:Linear",
    "ColumnFeatures": "varflow.networks.columns:ColumnFeatures",
    "TableEncoder": "varflow.networks.columns:TableEncoder",
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

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.networks.columns import ColumnFeatures as ColumnFeatures
    from varflow.networks.columns import TableEncoder as TableEncoder
    from varflow.networks.context import ContextEncoder as ContextEncoder
    from varflow.networks.conv import ConvDecoder as ConvDecoder
    from varflow.networks.conv import ConvEncoder as ConvEncoder
    from varflow.networks.linear import Linear as Linear
    from varflow.networks.made import MADE as MADE
    from varflow.networks.masked import MaskedConv as MaskedConv
    from varflow.networks.mlp import MLP as MLP
    from varflow.networks.sizes import output_features as output_features
    from varflow.networks.strided import StridedDecoder as StridedDecoder
    from varflow.networks.strided import StridedEncoder as StridedEncoder
    from varflow.networks.vq import VQDecoder as VQDecoder
    from varflow.networks.vq import VQEncoder as VQEncoder
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
