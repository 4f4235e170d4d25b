"""The shapes that public signatures state are checked at run time by jaxtyping and beartype."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "VARFLOW_TEST_SHAPES": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        timeout=200,
    )


@pytest.mark.parametrize(
    ("file", "which"),
    [
        ("flows/test_contract.py", "batch_shapes or context_broadcasts"),
        ("test_model.py", "terms or identity_flow"),
        ("posteriors/test_quantizer.py", "two_stage_bound"),
    ],
)
def test_signatures_hold_while_the_battery_runs(file, which):
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file), "-k", which)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_a_wrong_shape_is_caught_by_the_checks():
    script = (
        "import sys; sys.path.insert(0, 'tests'); import conftest, torch\n"
        "from varflow.flows import Planar\n"
        "Planar(2).push(torch.ones(3, 2, dtype=torch.int64))\n"
    )
    done = run("-c", script)
    assert "TypeCheckError" in done.stderr
