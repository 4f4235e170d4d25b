"""The shapes that public signatures state are checked at run time by jaxtyping and beartype."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
#: Files of the battery, and which of their tests.
BATTERY = {
    "flows/test_contract.py": "batch_shapes or context_broadcasts",
    "test_model.py": "terms or identity_flow",
    "posteriors/test_quantizer.py": "two_stage_bound",
}

# One process for all of it: to load the package with its checks takes as long as the battery.
PROGRAM = """
import json, sys
import pytest

found = {"passed": [], "failed": []}

class Outcomes:
    def pytest_runtest_logreport(self, report):
        if report.failed or (report.when == "call" and report.passed):
            found[report.outcome].append(report.nodeid)

    def pytest_sessionfinish(self):
        import torch
        from varflow.flows import Planar

        try:
            Planar(2).push(torch.ones(3, 2, dtype=torch.int64))
        except Exception as error:
            found["wrong shape"] = type(error).__name__

pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]], [Outcomes()])
print()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def checked() -> dict:
    """What a process that checks shapes says of a wrong one, and of the battery."""
    files = [str(Path("tests") / file) for file in BATTERY]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *files, "-k", " or ".join(BATTERY.values())],
        env={**os.environ, "VARFLOW_TEST_SHAPES": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("file", BATTERY)
def test_signatures_hold_while_the_battery_runs(file: str, checked: dict) -> None:
    assert [name for name in checked["failed"] if file in name] == []
    assert any(file in name for name in checked["passed"])


@pytest.mark.slow
def test_a_wrong_shape_is_caught_by_the_checks(checked: dict) -> None:
    assert "TypeCheckError" in checked["wrong shape"]
