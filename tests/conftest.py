"""One thread: the machines that run this are shared, and two thread pools on the same cores wait for each other."""

import os

# With VARFLOW_TEST_SHAPES=1 shapes and types are checked wherever signatures state them (tests/test_shapes.py).
# Not always: the checks come before varflow's own, whose messages are tested too.
if os.environ.get("VARFLOW_TEST_SHAPES") == "1":
    from jaxtyping import install_import_hook

    checked = ["flows", "likelihoods", "priors", "posteriors", "model", "evaluation", "networks"]
    install_import_hook([f"varflow.{room}" for room in checked], "beartype.beartype")

from collections.abc import Iterator

import pytest
import torch

torch.set_flush_denormal(True)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Initial weights and global draws are the same in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Numbers without a dtype are float64 in a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
