"""models/: every model opens, fits its card, and is found again by an evaluation of its own."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

import varflow as vf
from varflow.core.files import present, read_json, weights_digest
from varflow.evaluation.estimate import Estimate
from varflow.runs.collection import collection, table

HOME = Path(__file__).parents[1] / "models"
MODELS = sorted(path.parent for path in HOME.glob("*/spec.json"))
MOST = 20_000_000


def estimates(folder: Path) -> dict[str, Estimate]:
    names = present(folder, ["evaluation/test.json", "evaluation/target.json"])
    assert names, folder
    held = read_json(folder / names[0])
    assert held["weights"] == weights_digest(folder)
    return {name: Estimate.from_dict(e) for name, e in held["estimates"].items()}


def test_they_are_small_and_listed() -> None:
    if not MODELS:
        pytest.skip("models/ is empty: no row worth keeping is finished yet")
    assert sum(path.stat().st_size for path in HOME.rglob("*") if path.is_file()) <= MOST
    assert [kept.folder for kept in collection(HOME)] == MODELS
    assert all(name.name in table(collection(HOME)) for name in MODELS)


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_opens_in_the_precision_of_training(folder: Path) -> None:
    run = vf.load(folder)
    wanted = torch.float64 if run.spec.training.precision == "float64" else torch.float32
    assert {p.dtype for p in run.model.parameters()} == {wanted}
    for name in present(folder, ["**/*.json"]):
        text = (folder / name).read_text()
        assert '"/' not in text, f"{name} says where something lies on a machine"
    assert "models/" in (folder / "README.md").read_text()
    assert estimates(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_the_numbers_of_the_card_are_found_again(folder: Path) -> None:
    """By other random numbers and the same test points: the two differ by their Monte-Carlo errors."""
    card, run = estimates(folder), vf.load(folder)
    simulated = run.infers_target or run.spec.get("data") in ("gaussian-1", "gaussian-2", "three-clusters")
    if not simulated and "VARFLOW_DATA" not in os.environ:
        pytest.skip("VARFLOW_DATA is not set, which is where the test pictures lie")
    # Nothing is to be written into models/.
    run.other_data = True
    limit = {} if run.infers_target else {"limit": card["elbo"].points}
    found = run.evaluate(samples=card["elbo"].samples, seed=card["elbo"].seed + 1, **limit)
    for name in ("elbo", "nll", "kl_q_p"):
        if name in card:
            a, b = card[name], found.estimates[name]
            assert a.points == b.points
            errors = [e.monte_carlo_error or 0.0 for e in (a, b)]
            assert abs(a.value - b.value) <= 5 * math.hypot(*errors) + 1e-6, name
