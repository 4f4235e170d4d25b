"""Priors p(z): ``log_prob(z, context=None)``, ``sample(shape)``, ``event_shape``."""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

_EXPORTS = {
    "Prior": "varflow.priors.prior:Prior",
    "StandardNormal": "varflow.priors.normal:StandardNormal",
    "Flow": "varflow.priors.flow:Flow",
    "flow_prior": "varflow.priors.flow:flow_prior",
    "Experts": "varflow.priors.experts:Experts",
    "Gaussians": "varflow.priors.gaussians:Gaussians",
    "Mixture": "varflow.priors.mixture:Mixture",
    "Vamp": "varflow.priors.vamp:Vamp",
    "Ancestral": "varflow.priors.ancestral:Ancestral",
    "GaussianLayer": "varflow.priors.layer:GaussianLayer",
    "Reads": "varflow.priors.layer:Reads",
    "UniformCodes": "varflow.priors.code_grid:UniformCodes",
    "PixelCNN": "varflow.priors.pixelcnn:PixelCNN",
    "GatedPixelCNN": "varflow.priors.gated_pixelcnn:GatedPixelCNN",
    "ByClass": "varflow.priors.by_class:ByClass",
}

#: name in a spec → a callable ``(features, **settings) -> Prior``. Flows take ``length`` and ``hidden``, the mixture
#: ``components``, the VampPrior ``event_shape``, ``support``, ``components`` and ``start``.
TABLE = {
    "normal": "varflow.priors.normal:StandardNormal",
    "mixture": "varflow.priors.mixture:Mixture",
    "vamp": "varflow.priors.vamp:Vamp",
    "maf": "varflow.priors.flow:maf",
    "iaf": "varflow.priors.flow:iaf",
    "coupling": "varflow.priors.flow:coupling",
    "nice": "varflow.priors.flow:nice",
    "spline": "varflow.priors.flow:spline",
    "planar": "varflow.priors.flow:planar",
    "radial": "varflow.priors.flow:radial",
    "sylvester": "varflow.priors.flow:sylvester",
    "triangular": "varflow.priors.flow:triangular",
}

#: The same for priors over grids of codes: a callable ``(shape, codes, **settings) -> Prior``. The networks take
#: ``layers``, ``channels``, ``kernel``, ``embedding``, ``hidden`` and ``classes``.
CODES = {
    "uniform-codes": "varflow.priors.code_grid:UniformCodes",
    "pixelcnn": "varflow.priors.pixelcnn:PixelCNN",
    "gated-pixelcnn": "varflow.priors.gated_pixelcnn:GatedPixelCNN",
}

#: All names in a spec.
CHOICES = {**TABLE, **CODES}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.priors.ancestral import Ancestral as Ancestral
    from varflow.priors.by_class import ByClass as ByClass
    from varflow.priors.code_grid import UniformCodes as UniformCodes
    from varflow.priors.experts import Experts as Experts
    from varflow.priors.flow import Flow as Flow
    from varflow.priors.flow import flow_prior as flow_prior
    from varflow.priors.gated_pixelcnn import GatedPixelCNN as GatedPixelCNN
    from varflow.priors.gaussians import Gaussians as Gaussians
    from varflow.priors.layer import GaussianLayer as GaussianLayer
    from varflow.priors.layer import Reads as Reads
    from varflow.priors.mixture import Mixture as Mixture
    from varflow.priors.normal import StandardNormal as StandardNormal
    from varflow.priors.pixelcnn import PixelCNN as PixelCNN
    from varflow.priors.prior import Prior as Prior
    from varflow.priors.vamp import Vamp as Vamp
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
