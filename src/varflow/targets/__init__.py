"""Densities to infer that have no decoder, each with its exact answers.

A :class:`Target` is a prior that nothing is observed about. The Gaussian models are likelihoods
whose one z explains a whole data set; their evidence and posterior are known in closed form.
"""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

_EXPORTS = {
    "Target": "varflow.targets.target:Target",
    "U1": "varflow.targets.energies:U1",
    "U2": "varflow.targets.energies:U2",
    "U3": "varflow.targets.energies:U3",
    "U4": "varflow.targets.energies:U4",
    "Ring": "varflow.targets.shapes:Ring",
    "Banana": "varflow.targets.shapes:Banana",
    "Funnel": "varflow.targets.shapes:Funnel",
    "GaussianMixture": "varflow.targets.mixture:GaussianMixture",
    "Callable": "varflow.targets.callable:Callable",
    "Grid": "varflow.targets.quadrature:Grid",
    "Moments": "varflow.targets.quadrature:Moments",
    "grid": "varflow.targets.quadrature:grid",
    "integrate": "varflow.targets.quadrature:integrate",
    "GaussianModel": "varflow.targets.gaussian_model:GaussianModel",
    "CorrelatedGaussianModel": "varflow.targets.full_covariance:CorrelatedGaussianModel",
    "GaussianData": "varflow.targets.gaussian_data:GaussianData",
    "generate": "varflow.targets.gaussian_data:generate",
    "simulate": "varflow.targets.gaussian_data:simulate",
    "hamiltonian_gap": "varflow.targets.hamiltonian_bound:hamiltonian_gap",
    "best_hamiltonian_gap": "varflow.targets.hamiltonian_bound:best_hamiltonian_gap",
}

#: name in a spec → a callable ``(features) -> Target``; every option has a default. The Gaussian model is
#: the exception: a likelihood, whose prior is the standard normal.
TABLE = {
    "u1": "varflow.targets.energies:U1",
    "u2": "varflow.targets.energies:U2",
    "u3": "varflow.targets.energies:U3",
    "u4": "varflow.targets.energies:U4",
    "ring": "varflow.targets.shapes:Ring",
    "banana": "varflow.targets.shapes:Banana",
    "funnel": "varflow.targets.shapes:Funnel",
    "mixture": "varflow.targets.mixture:GaussianMixture",
    "gaussian-model": "varflow.targets.gaussian_data:simulate",
}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.targets.callable import Callable as Callable
    from varflow.targets.energies import U1 as U1
    from varflow.targets.energies import U2 as U2
    from varflow.targets.energies import U3 as U3
    from varflow.targets.energies import U4 as U4
    from varflow.targets.full_covariance import CorrelatedGaussianModel as CorrelatedGaussianModel
    from varflow.targets.gaussian_data import GaussianData as GaussianData
    from varflow.targets.gaussian_data import generate as generate
    from varflow.targets.gaussian_data import simulate as simulate
    from varflow.targets.gaussian_model import GaussianModel as GaussianModel
    from varflow.targets.hamiltonian_bound import best_hamiltonian_gap as best_hamiltonian_gap
    from varflow.targets.hamiltonian_bound import hamiltonian_gap as hamiltonian_gap
    from varflow.targets.mixture import GaussianMixture as GaussianMixture
    from varflow.targets.quadrature import Grid as Grid
    from varflow.targets.quadrature import Moments as Moments
    from varflow.targets.quadrature import grid as grid
    from varflow.targets.quadrature import integrate as integrate
    from varflow.targets.shapes import Banana as Banana
    from varflow.targets.shapes import Funnel as Funnel
    from varflow.targets.shapes import Ring as Ring
    from varflow.targets.target import Target as Target
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
