"""One function a figure: arrays and Axes in, the Axes out; :func:`gallery` draws what fits a run.

Nothing here touches matplotlib's global state: no pyplot, no windows, and the style holds inside
``with style():`` only.
"""

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
    "gallery": "varflow.figures.gallery_data:gallery",
    "target_gallery": "varflow.figures.gallery_target:target_gallery",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
