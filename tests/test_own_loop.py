"""docs/own_loop.md is executed, block by block, and its losses reach the answers it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "own_loop.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def page() -> dict[str, dict[str, Any]]:
    """What each block leaves behind, by its first answer; they run in the order of the page, as one program."""
    torch.set_num_threads(1)
    state: dict[str, Any] = {}
    found = {}
    for block, name in zip(BLOCKS[:3], ("density", "energy", "vae"), strict=True):
        exec(compile(block, str(PAGE), "exec"), state)
        found[name] = dict(state)
    return found


def test_all_blocks_are_known():
    assert len(BLOCKS) == 4
    assert not any("varflow.training" in block for block in BLOCKS)


def test_the_density_reaches_the_entropy(page):
    """Of these 4,000 rows: their mean of −log p under the truth has a standard error of 0.016."""
    assert abs(float(page["density"]["cross_entropy"]) - page["density"]["entropy"]) < 0.06
    assert float(page["density"]["entropy"]) == pytest.approx(2.327, abs=5e-4)


def test_the_energy_reaches_log_z(page):
    gap = float(page["energy"]["minus_elbo"]) + page["energy"]["log_z"]
    assert -0.02 < gap < 0.05


def test_the_vae_reaches_the_exact_model(page):
    gap = float(page["vae"]["bound"] - page["vae"]["surprise"])
    assert -0.02 < gap < 0.06
