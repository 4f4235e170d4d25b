"""Bounds, gaps and annealing of a run from Python: kept where the command line keeps them, and compared."""

from __future__ import annotations

import pytest
import torch

import varflow as vf
from varflow.core.errors import SpecError
from varflow.evaluation import Annealing, Evaluation, Refinement

SMALL = {"latent": 2, "hidden": 8, "layers": 1, "steps": 12, "threads": 1, "quiet": True}


def test_curve_gaps_and_annealing_are_kept_and_join_a_comparison(tmp_path) -> None:
    runs = [vf.fit("digits", seed=seed, out=tmp_path / f"run-{seed}", **SMALL) for seed in (0, 1)]
    annealing = Annealing(chains=2, temperatures=4, warmup=4)
    for run in runs:
        run.evaluate(samples=20, limit=10)
        run.gaps(4, settings=Refinement(steps=3, samples=2, evaluation=10), annealing=annealing)
        found = run.anneal(4, settings=annealing)
        assert Evaluation.load(run.folder, "test-annealed").estimates == found.estimates
    compared = vf.compare(runs)
    assert compared.names == ["run-0", "run-1"]
    assert {"nll", "annealed/nll", "amortization_gap"} <= set(compared.estimates[0])
    curve = runs[0].curve(20, points=10)
    assert curve.estimates["bound_20"].value == pytest.approx(-compared.estimates[0]["nll"].value)
    assert "bound, k = 20" in curve._repr_html_()
    assert "bound" in runs[0].figures
    assert not list((runs[0].folder / "evaluation").glob("*.chunk*"))


def test_runs_that_have_nothing_to_compare_or_to_average_over_are_refused() -> None:
    run = vf.fit("digits", **SMALL)
    with pytest.raises(SpecError, match="runs: one is in memory"):
        vf.compare([run, run])
    density = vf.fit("density", torch.randn(60, 2), prior_length=1, steps=2, quiet=True)
    with pytest.raises(SpecError, match=r"curve: the latents here are x itself.*run.evaluate\(\)"):
        density.curve(10)
    target = vf.fit("energy", target="u1", length=2, samples=8, steps=2, quiet=True)
    with pytest.raises(SpecError, match="gaps: "):
        target.gaps(2)
