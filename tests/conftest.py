"""What every test starts from, and the switches by which ``make test-portable`` changes it.

VARFLOW_TEST_THREADS: threads of torch in a test (1). The machines that run this are shared, and two thread
    pools on the same cores wait for each other.
VARFLOW_TEST_SEED: what a test's global generator starts from (0).
VARFLOW_TEST_ORDER: a seed by which files, and tests in a file, are shuffled (not set: as written).
VARFLOW_TEST_SHAPES: 1 to check shapes at run time (tests/test_shapes.py).
"""

import os
import random

# Before torch starts its threads, and for every process that a test starts: threads that share a core wait.
os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("VARFLOW_TEST_THREADS", "1"))

# Shapes and types are checked wherever signatures state them. Not always: the checks come before varflow's
# own, whose messages are tested too.
if os.environ.get("VARFLOW_TEST_SHAPES") == "1":
    from jaxtyping import install_import_hook

    checked = ["flows", "likelihoods", "priors", "posteriors", "model", "evaluation", "networks"]
    install_import_hook([f"varflow.{room}" for room in checked], "beartype.beartype")

from collections.abc import Iterator

import pytest
import torch

torch.set_flush_denormal(True)
torch.set_num_threads(int(os.environ.get("VARFLOW_TEST_THREADS", "1")))
SEED = int(os.environ.get("VARFLOW_TEST_SEED", "0"))
ORDER = os.environ.get("VARFLOW_TEST_ORDER")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ORDER is None:
        return
    # Tests of one file stay together: they share what is fitted once for them.
    files = {item.path: random.Random(f"{ORDER} {item.path.name}").random() for item in items}
    tests = {item.nodeid: random.Random(f"{ORDER} {item.nodeid}").random() for item in items}
    items.sort(key=lambda item: (files[item.path], str(item.path), tests[item.nodeid]))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Initial weights and global draws are the same in every run of a test."""
    torch.manual_seed(SEED)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test computes: on the CPU, and on a CUDA device where there is one (``make gpu``)."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    chosen: str = request.param
    return chosen


@pytest.fixture
def float64() -> Iterator[None]:
    """Numbers without a dtype are float64 in a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def few_training_rows(monkeypatch):
    """A fit scores and embeds training rows for a second; here one block of them is enough."""
    for room in ("scores", "latent_space"):
        monkeypatch.setattr(f"varflow.runs.{room}._SECONDS", 0.0)
