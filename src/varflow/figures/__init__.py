"""One function a figure: arrays and Axes in, the Axes out; :func:`gallery` draws what fits a run.

Nothing here touches matplotlib's global state: no pyplot, no windows, and the style holds inside
``with style():`` only.
"""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

_EXPORTS = {
    "canvas": "varflow.figures.base:canvas",
    "style": "varflow.figures.base:style",
    "save": "varflow.figures.base:save",
    "image_grid": "varflow.figures.pictures:image_grid",
    "reconstructions": "varflow.figures.pictures:reconstructions",
    "decoded_grid": "varflow.figures.pictures:decoded_grid",
    "prior_quantiles": "varflow.figures.pictures:prior_quantiles",
    "latents": "varflow.figures.scatter:latents",
    "latent_scatter": "varflow.figures.scatter:latent_scatter",
    "aggregate": "varflow.figures.scatter:aggregate",
    "flow_grid": "varflow.figures.warp:flow_grid",
    "learning_curves": "varflow.figures.curves:learning_curves",
    "weights": "varflow.figures.curves:weights",
    "overlaid_curves": "varflow.figures.curves:overlaid_curves",
    "bound_by_samples": "varflow.figures.curves:bound_by_samples",
    "plane": "varflow.figures.scatter:plane",
    "decoded_trajectories": "varflow.figures.pictures:decoded_trajectories",
    "hamiltonian_schedule": "varflow.figures.curves:hamiltonian_schedule",
    "pairs": "varflow.figures.scatter:pairs",
    "density": "varflow.figures.targets:density",
    "density_grid": "varflow.figures.targets:density_grid",
    "density_on_grid": "varflow.figures.targets:density_on_grid",
    "density_of_samples": "varflow.figures.targets:density_of_samples",
    "bound_curves": "varflow.figures.targets:bound_curves",
    "animate": "varflow.figures.targets:animate",
    "error_by_dimension": "varflow.figures.gaussian_model:error_by_dimension",
    "rows_of": "varflow.figures.gaussian_model:rows_of",
    "code_maps": "varflow.figures.pictures:code_maps",
    "code_usage": "varflow.figures.curves:code_usage",
    "code_curves": "varflow.figures.curves:code_curves",
    "codeword_colours": "varflow.figures.pictures:codeword_colours",
    "progress_of_trials": "varflow.figures.sweeps:progress_of_trials",
    "values_by_setting": "varflow.figures.sweeps:values_by_setting",
    "marginal": "varflow.figures.tables:marginal",
    "missing_cells": "varflow.figures.tables:missing_cells",
    "imputed_values": "varflow.figures.tables:imputed_values",
    "coverage": "varflow.figures.tables:coverage",
    "ranks": "varflow.figures.tables:ranks",
    "reliability": "varflow.figures.tables:reliability",
    "gallery": "varflow.figures.gallery_data:gallery",
    "target_gallery": "varflow.figures.gallery_target:target_gallery",
}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.figures.base import canvas as canvas
    from varflow.figures.base import save as save
    from varflow.figures.base import style as style
    from varflow.figures.curves import bound_by_samples as bound_by_samples
    from varflow.figures.curves import code_curves as code_curves
    from varflow.figures.curves import code_usage as code_usage
    from varflow.figures.curves import hamiltonian_schedule as hamiltonian_schedule
    from varflow.figures.curves import learning_curves as learning_curves
    from varflow.figures.curves import overlaid_curves as overlaid_curves
    from varflow.figures.curves import weights as weights
    from varflow.figures.gallery_data import gallery as gallery
    from varflow.figures.gallery_target import target_gallery as target_gallery
    from varflow.figures.gaussian_model import error_by_dimension as error_by_dimension
    from varflow.figures.gaussian_model import rows_of as rows_of
    from varflow.figures.pictures import code_maps as code_maps
    from varflow.figures.pictures import codeword_colours as codeword_colours
    from varflow.figures.pictures import decoded_grid as decoded_grid
    from varflow.figures.pictures import decoded_trajectories as decoded_trajectories
    from varflow.figures.pictures import image_grid as image_grid
    from varflow.figures.pictures import prior_quantiles as prior_quantiles
    from varflow.figures.pictures import reconstructions as reconstructions
    from varflow.figures.scatter import aggregate as aggregate
    from varflow.figures.scatter import latent_scatter as latent_scatter
    from varflow.figures.scatter import latents as latents
    from varflow.figures.scatter import pairs as pairs
    from varflow.figures.scatter import plane as plane
    from varflow.figures.sweeps import progress_of_trials as progress_of_trials
    from varflow.figures.sweeps import values_by_setting as values_by_setting
    from varflow.figures.tables import coverage as coverage
    from varflow.figures.tables import imputed_values as imputed_values
    from varflow.figures.tables import marginal as marginal
    from varflow.figures.tables import missing_cells as missing_cells
    from varflow.figures.tables import ranks as ranks
    from varflow.figures.tables import reliability as reliability
    from varflow.figures.targets import animate as animate
    from varflow.figures.targets import bound_curves as bound_curves
    from varflow.figures.targets import density as density
    from varflow.figures.targets import density_grid as density_grid
    from varflow.figures.targets import density_of_samples as density_of_samples
    from varflow.figures.targets import density_on_grid as density_on_grid
    from varflow.figures.warp import flow_grid as flow_grid
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
