"""How a reader calls what is estimated."""

#: Quantity → its name on a page.
NAMES = {
    "elbo": "ELBO",
    "log_likelihood": "E log p(x|z)",
    "kl": "KL term",
    "ladj": "log|det| of the flow",
    "nll": "−log p(x)",
    "nll_standardized": "−log p of the standardized x",
    "bits_per_dim": "bits/dim",
    "active_units": "active latents",
    "aggregated_distance": "distance of q(z) from p(z)",
    "code_bits": "bits of the prior per code",
    "perplexity": "perplexity of the codes",
    "usage": "codes in use",
    "kl_q_p": "KL(q‖p)",
    "kl_p_q": "KL(p‖q)",
    "kl_q_p_grid": "KL(q‖p), quadrature",
    "kl_p_q_grid": "KL(p‖q), quadrature",
    "eubo": "EUBO",
    "log_z": "log Z",
    "log_z_error": "error of log Z",
    "ess_reverse": "reverse effective sample size",
    "ess_forward": "forward effective sample size",
    "mode_coverage": "mode coverage",
    "mode_divergence": "divergence over modes",
    "mean_error": "error of the mean",
    "covariance_error": "error of the covariance",
    "log_evidence": "log p(D)",
    "log_evidence_best": "log p(D), maximum likelihood",
    "evidence_gap": "log p(D) short of the maximum",
    "log_evidence_blocks": "Σ log p(block)",
    "log_evidence_blocks_best": "Σ log p(block), maximum likelihood",
    "diagonal_gap": "least gap of a diagonal q",
    "shift_error": "‖Δ − x̄‖²",
    "shift_error_truth": "‖Δ − Δ*‖²",
    "scale_error": "‖σ − σ*‖²",
    "scale_error_best": "‖σ − σ̂‖²",
    "scale_floor": "floor of ‖σ − σ*‖²",
    "scale_floor_expected": "expected floor of ‖σ − σ*‖²",
    "noise_error": "‖Σ − Σ*‖²",
    "noise_error_best": "‖Σ − Σ̂‖²",
    "noise_floor": "floor of ‖Σ − Σ*‖²",
    "noise_floor_expected": "expected floor of ‖Σ − Σ*‖²",
    "nll_one_chain": "−log p(x), one chain",
    "acceptance": "acceptance",
    "lower": "log p(x), from below",
    "upper": "log p(x), from above",
    "gap": "upper − lower",
    "elbo_refined": "ELBO, q refined",
    "nll_expected": "−E log p*(x), exact",
    "nll_true": "−log p*(x)",
    "kl_true": "KL(p*‖p)",
    "log_px": "log p(x)",
    "log_px_annealed": "log p(x), annealed",
    "log_px_importance": "log p(x), importance weights",
    "inference_gap": "inference gap",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
    "removed_nll": "−log p(removed | rest)",
    "removed_nll_continuous": "−log p(removed | rest), continuous cells",
    "removed_rmse": "RMSE of removed numbers, standardized",
    "removed_accuracy": "accuracy of removed values",
    "coverage_50": "coverage of 50 % intervals",
    "coverage_80": "coverage of 80 % intervals",
    "coverage_90": "coverage of 90 % intervals",
    "coverage_95": "coverage of 95 % intervals",
}
#: What a file of estimates is of, by the last word of its name.
KINDS = {
    "target": "Against the exact answers",
    "annealed": "Annealed importance sampling",
    "simulated": "Data simulated from the model: bounds from both sides",
    "gaps": "The inference gap taken apart",
    "curve": "The bound against the number of samples",
    "removed": "Cells removed and predicted from the rest of their rows",
}
#: The numbers that a reader looks for first.
HEADLINES = (
    "nll", "elbo", "bits_per_dim", "perplexity", "kl_q_p", "kl_p_q", "mode_coverage", "evidence_gap", "scale_error",
)  # fmt: skip


def name_of(quantity: str) -> str:
    """How a reader calls a quantity; of two methods their names stay behind it."""
    for mark in (", ", " less "):
        first, found, rest = quantity.partition(mark)
        if found and first in NAMES:
            return f"{NAMES[first]}{mark}{rest}"
    if quantity.startswith("bound_"):
        return f"bound, k = {int(quantity.removeprefix('bound_')):,}"
    return NAMES.get(quantity, quantity)
