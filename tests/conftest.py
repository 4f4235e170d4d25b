"""One thread (the machines that run this are shared), and shapes checked wherever signatures state them."""

import os

from jaxtyping import install_import_hook

# The checks wrap every call; what torch.compile traces has to be plain, so subprocesses that compile leave it out.
_CHECKED = ["flows", "likelihoods", "priors", "posteriors", "model", "evaluation"]

if os.environ.get("VARFLOW_TEST_SHAPES", "1") == "1":
    install_import_hook([f"varflow.{room}" for room in _CHECKED], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_flush_denormal(True)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Initial weights and global draws are the same in every run of a test."""
    torch.manual_seed(0)
