"""Invertible maps z → z′ with their log-determinants. :mod:`varflow.flows.flow` states the contract."""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.flows.autoregressive import InverseAutoregressive as InverseAutoregressive
    from varflow.flows.autoregressive import MaskedAutoregressive as MaskedAutoregressive
    from varflow.flows.compose import Compose as Compose
    from varflow.flows.coupling import AdditiveCoupling as AdditiveCoupling
    from varflow.flows.coupling import AffineCoupling as AffineCoupling
    from varflow.flows.coupling import nice as nice
    from varflow.flows.elementwise import Affine as Affine
    from varflow.flows.elementwise import Reverse as Reverse
    from varflow.flows.flow import Flow as Flow
    from varflow.flows.householder import Householder as Householder
    from varflow.flows.interop import as_transform as as_transform
    from varflow.flows.interop import from_transform as from_transform
    from varflow.flows.interop import from_zuko as from_zuko
    from varflow.flows.interop import spline as spline
    from varflow.flows.planar import Planar as Planar
    from varflow.flows.radial import Radial as Radial
    from varflow.flows.sylvester import Sylvester as Sylvester
    from varflow.flows.triangular import Triangular as Triangular
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
