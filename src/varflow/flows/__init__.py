"""Invertible maps z → z′ with their log-determinants. :mod:`varflow.flows.flow` states the contract."""

from varflow.core.lazy import attach

#: Public names of the room.
_EXPORTS = {
    "Flow": "varflow.flows.flow:Flow",
    "Planar": "varflow.flows.planar:Planar",
    "Radial": "varflow.flows.radial:Radial",
    "Householder": "varflow.flows.householder:Householder",
    "Sylvester": "varflow.flows.sylvester:Sylvester",
    "AdditiveCoupling": "varflow.flows.coupling:AdditiveCoupling",
    "AffineCoupling": "varflow.flows.coupling:AffineCoupling",
    "nice": "varflow.flows.coupling:nice",
    "InverseAutoregressive": "varflow.flows.autoregressive:InverseAutoregressive",
    "MaskedAutoregressive": "varflow.flows.autoregressive:MaskedAutoregressive",
    "Affine": "varflow.flows.elementwise:Affine",
    "Reverse": "varflow.flows.elementwise:Reverse",
    "Triangular": "varflow.flows.triangular:Triangular",
    "Compose": "varflow.flows.compose:Compose",
    "as_transform": "varflow.flows.interop:as_transform",
    "from_transform": "varflow.flows.interop:from_transform",
    "from_zuko": "varflow.flows.interop:from_zuko",
    "spline": "varflow.flows.interop:spline",
}

#: name in a spec → a callable ``(features, length, context_features) -> Flow``.
TABLE = {
    "planar": "varflow.flows.planar:Planar",
    "radial": "varflow.flows.radial:Radial",
    "householder": "varflow.flows.householder:Householder",
    "sylvester": "varflow.flows.sylvester:Sylvester",
    "nice": "varflow.flows.coupling:nice",
    "additive": "varflow.flows.coupling:AdditiveCoupling",
    "coupling": "varflow.flows.coupling:AffineCoupling",
    "iaf": "varflow.flows.autoregressive:InverseAutoregressive",
    "maf": "varflow.flows.autoregressive:MaskedAutoregressive",
    "affine": "varflow.flows.elementwise:Affine",
    "triangular": "varflow.flows.triangular:Triangular",
    "spline": "varflow.flows.interop:spline",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
